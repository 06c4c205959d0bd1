"""A run's sentencepiece tokenizer as transformers reads it, with the same tokens for every text.

Written are ``tokenizer.json`` (of the tokenizers library), ``tokenizer_config.json`` and ``tokenizer.model`` itself. A
sentencepiece BPE joins, again and again, the two neighbours whose joint piece has the best score, the leftmost of equal
ones (Kudo and Richardson, EMNLP 2018, §3.1); the tokenizers library joins by a list of pairs. So the list has every cut
of every piece into two, in the order of the pieces' scores.
"""

import json
from pathlib import Path

import sentencepiece.sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from nt_dist.errors import DataError
from nt_dist.text.tokenizer import Tokenizer

_PIECE = proto.ModelProto.SentencePiece
_SPACE = "▁"
SAMPLES = (
    "",
    " ",
    "a",
    " a",
    "a ",
    "\n",
    "\n\n  indented\n\tby a tabulator\r\n",
    "x" + " " * 37 + "y",
    "The quick brown fox; jumps over 13 lazy dogs!",
    "def f(x):\n    return x ** 2  # squared\n",
    "naïve café é e\u0301 ñ ß Ω ж 日本語 한국어 العربية",
    "🌲👩‍🌾 \u200b\u00a0\ufeff\x00\x7f",
    "<s>no control</s> <unk> <0x0A> ▁▁ \u2581x",
    "aaaaaaaaaaaaaaaaaaaaaaa--------------======",
)
"""Odd texts, on which an export compares the two."""


def fast_tokenizer(tokenizer: Tokenizer) -> FastTokenizer:
    """Return a tokenizers.Tokenizer that gives the same tokens, BOS before each text where there is one.

    DataError if the model is of a kind that cannot be rewritten: not BPE, without byte fallback, with normalization.
    """
    model = proto.ModelProto.FromString(tokenizer.data)
    if broken := [rule for rule, holds in _rules(model).items() if not holds]:
        raise DataError(f"{tokenizer.name}: cannot be written for transformers: {'; '.join(broken)}")
    vocab = {piece.piece: number for number, piece in enumerate(model.pieces)}
    fast = FastTokenizer(
        models.BPE(vocab, _merges(model), byte_fallback=True, fuse_unk=True, unk_token=model.trainer_spec.unk_piece)
    )
    before = [normalizers.Replace(" ", _SPACE)]
    after = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        before.insert(0, normalizers.Prepend(_SPACE))
        after.append(decoders.Strip(" ", 1, 0))
    fast.normalizer, fast.decoder = normalizers.Sequence(before), decoders.Sequence(after)
    control = [piece.piece for piece in model.pieces if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)]
    fast.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    if tokenizer.bos is not None:
        bos = model.pieces[tokenizer.bos].piece
        fast.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B:1", special_tokens=[(bos, tokenizer.bos)]
        )
    return fast


def _rules(model: proto.ModelProto) -> dict[str, bool]:
    """What a model must be to be rewritten, and whether it is."""
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    long = [piece.piece for piece in model.pieces if piece.type == _PIECE.USER_DEFINED and len(piece.piece) > 1]
    return {
        "its kind must be BPE": trainer.model_type == trainer.BPE,
        "it must have byte fallback": trainer.byte_fallback,
        "it must not normalize characters": not normalizer.precompiled_charsmap,
        "it must not remove spaces": not normalizer.remove_extra_whitespaces,
        "it must not mark words by a space behind them": not trainer.treat_whitespace_as_suffix,
        f"its user-defined pieces must be single characters, not {', '.join(map(repr, long))}": not long,
    }


def _merges(model: proto.ModelProto) -> list[tuple[str, str]]:
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type in (_PIECE.NORMAL, _PIECE.USER_DEFINED)}
    found = [
        (-score, cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write the three files; the first two are read back and compared with the original on :data:`SAMPLES`, both ways.

    ``max_length`` is the length of the sequences that the model was trained on, in tokens. DataError if the tokenizer
    cannot be rewritten, or the two differ on a text; OSError if a file cannot be written.
    """
    fast = fast_tokenizer(tokenizer)
    eos, bos = fast.id_to_token(tokenizer.eos), tokenizer.bos
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        **({} if bos is None else {"bos_token": fast.id_to_token(bos)}),
        "unk_token": fast.model.unk_token,
        "pad_token": eos,
        "padding_side": "left",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # "</s>" in a text is four characters or so, as in training
    }
    (folder / "tokenizer.json").write_text(fast.to_str(pretty=True), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer.data)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    for text in SAMPLES:
        tokens, found = tokenizer.encode(text), theirs.encode(text, add_special_tokens=False)
        if found != tokens:
            raise DataError(f"{tokenizer.name}: rewritten for transformers, {text!r} becomes {found}, not {tokens}")
        if (back := theirs.decode(found)) != tokenizer.decode(tokens):
            raise DataError(f"{tokenizer.name}: rewritten for transformers, {tokens} becomes {back!r}")
