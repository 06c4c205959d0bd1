"""The tokenizer of a model that nt_dist exported: a tokenizer.json, with the sentencepiece model that it says again.

It needs transformers only, which reads the same tokens without it.
"""

import shutil
from pathlib import Path

import transformers
from transformers import AddedToken

_MODEL = "tokenizer.model"


class PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):
    """transformers' own, under its name: what was saved must be read where this file may not be run, too."""

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "vocab_file": _MODEL}  # noqa: RUF012
    can_save_slow_tokenizer = False  # or "Fast" is cut off the name when it is saved

    def _save_pretrained(self, save_directory, file_names, legacy_format=None, filename_prefix=None):
        """Save tokenizer.model, too, which llama.cpp reads; transformers leaves it behind."""
        names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        kept = Path(self.init_kwargs["vocab_file"])
        saved = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{_MODEL}"
        if kept.absolute() != saved.absolute():
            shutil.copyfile(kept, saved)
        return (*names, str(saved))

    def _add_tokens(self, new_tokens, special_tokens=False):
        """Find in texts what a user adds as special, too; only the model's own, "</s>" and the like, are text there."""
        own = self._tokenizer.get_vocab(with_added_tokens=False)
        known = [each for each in new_tokens if str(each) in own]
        others = [_not_special(each) for each in new_tokens if str(each) not in own]
        return super()._add_tokens(known, special_tokens) + super()._add_tokens(others)

    def _decode(self, token_ids, skip_special_tokens=False, **settings):
        """Return a text; the space before it belongs to it unless the token before says that it begins here."""
        tokens = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        begins = skip_special_tokens and tokens[:1] == [self.bos_token_id] and self.init_kwargs["add_dummy_prefix"]
        if skip_special_tokens:
            special = set(self.all_special_ids)
            tokens = [token for token in tokens if token not in special]
        text = super()._decode(tokens, skip_special_tokens=skip_special_tokens, **settings)
        return text.removeprefix(" ") if begins else text


def _not_special(token):
    if isinstance(token, str):
        return token
    how = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(token.content, **how, special=False)
