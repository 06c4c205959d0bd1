"""A run's tokenizer as transformers reads it, with the same tokens for every text.

Written are ``tokenizer_config.json``, ``tokenizer.json`` (of the tokenizers library) and, of a sentencepiece model,
``tokenizer.model`` with a class in Python that keeps it where the tokenizer is saved again: llama.cpp reads no other.
What no tokenizer.json can say another class reads from ``tokenizer.model``, by sentencepiece.

A sentencepiece BPE joins, again and again, the two neighbours whose joint piece has the best score, the leftmost of
equal ones (Kudo and Richardson, EMNLP 2018, §3.1); the tokenizers library joins by a list of pairs. So the list has
every cut of every piece into two, in the order of the pieces' scores.
"""

import json
import shutil
import sys
from pathlib import Path

import sentencepiece.sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from nt_dist.errors import DataError
from nt_dist.export.hf import tokenization_tokenizers
from nt_dist.export.hf.tokenization_sentencepiece import SentencePieceTokenizer
from nt_dist.text.tokenizer import JsonTokenizer, Tokenizer

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

    DataError if it cannot be rewritten; see :attr:`Tokenizer.only_sentencepiece`.
    """
    if isinstance(tokenizer, JsonTokenizer):
        fast = FastTokenizer.from_str(json.dumps(json.loads(tokenizer.data)["tokenizer"]))
    else:
        fast = _rewritten(tokenizer)
    begin = [] if tokenizer.bos is None else [(fast.id_to_token(tokenizer.bos), tokenizer.bos)]
    before = "".join(f"{piece} " for piece, _ in begin)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{before}$A", pair=f"{before}$A {before}$B:1", special_tokens=begin
    )
    return fast


def _rewritten(tokenizer: Tokenizer) -> FastTokenizer:
    if broken := tokenizer.only_sentencepiece:
        raise DataError(f"{tokenizer.name}: cannot be written as a tokenizer.json: {'; '.join(broken)}")
    model = proto.ModelProto.FromString(tokenizer.data)
    vocab = {piece.piece: number for number, piece in enumerate(model.pieces)}
    fast = FastTokenizer(
        models.BPE(vocab, _merges(model), byte_fallback=True, fuse_unk=True, unk_token=model.trainer_spec.unk_piece)
    )
    before = [normalizers.Replace(" ", _SPACE)]
    # sentencepiece cuts the first space off whatever it decodes; here it stays, for what follows a prompt may begin so
    after = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        before.insert(0, normalizers.Prepend(_SPACE))
    fast.normalizer, fast.decoder = normalizers.Sequence(before), decoders.Sequence(after)
    control = [piece.piece for piece in model.pieces if piece.type in (_PIECE.CONTROL, _PIECE.UNKNOWN)]
    fast.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    return fast


def _merges(model: proto.ModelProto) -> list[tuple[str, str]]:
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type in (_PIECE.NORMAL, _PIECE.USER_DEFINED)}
    found = [
        (-score, cut, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int, is_plain: bool = False) -> None:
    """Write the files; they are read back and compared with the original on :data:`SAMPLES`, both ways.

    ``max_length`` is the length of the sequences that the model was trained on, in tokens; ``is_plain`` that no code of
    ours may be needed. DataError if the tokenizer cannot be written so, or the two differ on a text; OSError
    if a file cannot be written.
    """
    is_json, is_rewritten = isinstance(tokenizer, JsonTokenizer), is_plain or not tokenizer.only_sentencepiece
    reader = PreTrainedTokenizerFast if is_rewritten else SentencePieceTokenizer
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_rewritten else SentencePieceTokenizer.__name__,
        "padding_side": "left",
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],  # before version 5 there are others by default
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # "</s>" in a text is four characters or so, as in training
    }
    space = ""
    if is_rewritten:
        fast_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    if not is_json:
        model = proto.ModelProto.FromString(tokenizer.data)
        space = " " if model.normalizer_spec.add_dummy_prefix else ""
        settings |= {"add_dummy_prefix": bool(space), "unk_token": model.trainer_spec.unk_piece}
        ours = tokenization_tokenizers.PreTrainedTokenizerFast if is_rewritten else SentencePieceTokenizer
        module = ours.__module__.rpartition(".")[2]
        name = f"{module}.{ours.__name__}"
        settings["auto_map"] = {"AutoTokenizer": [None, name] if is_rewritten else [name, None]}
        shutil.copyfile(sys.modules[ours.__module__].__file__, folder / f"{module}.py")
        (folder / "tokenizer.model").write_bytes(tokenizer.data)
    pieces = {token: piece for piece, token in tokenizer.pieces.items()}
    settings |= {"eos_token": pieces[tokenizer.eos], "pad_token": pieces[tokenizer.eos]}
    if tokenizer.bos is not None:
        settings["bos_token"] = pieces[tokenizer.bos]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    theirs = reader.from_pretrained(folder, local_files_only=True)
    for text in SAMPLES:
        tokens, found = tokenizer.encode(text), theirs.encode(text, add_special_tokens=False)
        if found != tokens:
            raise DataError(f"{tokenizer.name}: rewritten for transformers, {text!r} becomes {found}, not {tokens}")
        back = theirs.decode(found, skip_special_tokens=is_json)  # the tokenizers library leaves out an unknown piece
        if back != (space if tokens else "") + tokenizer.decode(tokens):
            raise DataError(f"{tokenizer.name}: rewritten for transformers, {tokens} becomes {back!r}")
