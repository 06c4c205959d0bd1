"""The tokenizer of a model that nt_dist exported, by sentencepiece itself: no tokenizer.json says the same."""

import re
import shutil
from itertools import groupby
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizer

_MODEL = "tokenizer.model"


class SentencePieceTokenizer(PreTrainedTokenizer):
    """The tokens of tokenizer.model, after BOS where there is one."""

    vocab_files_names = {"vocab_file": _MODEL}  # noqa: RUF012

    def __init__(self, vocab_file, add_dummy_prefix=False, **settings):
        self.vocab_file, self.add_dummy_prefix = vocab_file, add_dummy_prefix
        self.pieces = SentencePieceProcessor(model_file=str(vocab_file))
        super().__init__(add_dummy_prefix=add_dummy_prefix, **settings)

    @property
    def vocab_size(self):
        """Pieces of the model."""
        return len(self.pieces)

    def get_vocab(self):
        """Return the pieces, and those that were added, with their tokens."""
        return {self.pieces.id_to_piece(token): token for token in range(len(self.pieces))} | self.added_tokens_encoder

    def tokenize(self, text, **settings):
        """Cut a text into pieces and what was added; the model's own special tokens are text, as in training, unless
        split_special_tokens is False."""
        if not settings.get("split_special_tokens", self.split_special_tokens):
            return super().tokenize(text, **settings)
        added = [token for token, number in self.added_tokens_encoder.items() if number >= self.vocab_size]
        if not added:
            return self._tokenize(text)
        parts = re.split(f"({'|'.join(map(re.escape, sorted(added, key=len, reverse=True)))})", text)
        return [piece for part in parts for piece in ([part] if part in added else self._tokenize(part))]

    def _tokenize(self, text, **settings):
        return self.pieces.encode(text, out_type=str)

    def _convert_token_to_id(self, token):
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index):
        return self.pieces.id_to_piece(index)

    def convert_tokens_to_string(self, tokens):
        """Return the text of pieces."""
        return self._text([self.pieces.piece_to_id(piece) for piece in tokens])

    def _text(self, tokens):
        """Return the text of tokens with the space before it, which sentencepiece cuts off at a beginning."""
        before = self.pieces.encode("a")
        return self.pieces.decode(before + tokens)[len(self.pieces.decode(before)) :]

    def _decode(self, token_ids, skip_special_tokens=False, **settings):
        """Return a text; the space before it belongs to it unless the token before says that it begins here."""
        tokens = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        special = {*self.all_special_ids} - {self.unk_token_id}  # sentencepiece has a text for that
        text = ""
        for is_special, run in groupby(tokens, special.__contains__):
            if not is_special:
                text += self._text(list(run))
            elif not skip_special_tokens:
                text += "".join(map(self.convert_ids_to_tokens, run))
        begins = skip_special_tokens and tokens[:1] == [self.bos_token_id] and self.add_dummy_prefix
        return text.removeprefix(" ") if begins else text

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        """Return a text's tokens, or a pair's, each after BOS where there is one."""
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        return bos + token_ids_0 + ([] if token_ids_1 is None else bos + token_ids_1)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """Copy tokenizer.model into a folder."""
        saved = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}{_MODEL}"
        if Path(self.vocab_file).absolute() != saved.absolute():
            shutil.copyfile(self.vocab_file, saved)
        return (str(saved),)
