"""Tokens: a sentencepiece model, given or trained on the corpus, the same for the same source and size.

Training takes no normalisation and cuts nothing away, so that decoding gives the text back to the byte, but for the
character U+2581, by which sentencepiece writes a space: it comes back as one. BPE (Kudo and Richardson, EMNLP 2018)
with byte fallback, on whole lines.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from nt_dist.errors import DataError
from nt_dist.files import check_plain, reading
from nt_dist.text.sources import Source

_CHARACTERS = 16_000_000  # to train on, at most: seconds of work, and enough for tens of thousands of tokens
_LONGEST_LINE = 4000  # characters; sentencepiece passes over lines longer than its max_sentence_length (bytes)
_SETTINGS = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.9995,
    "max_sentence_length": 4 * _LONGEST_LINE,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "num_threads": 1,  # stands in the file: another number is another file
    "minloglevel": 2,
}


class Tokenizer:
    """A sentencepiece model, of the bytes of a .model file called ``name``; DataError if it is none, or has no EOS."""

    def __init__(self, data: bytes, name: str):
        self.data, self.name, self.sha256 = data, name, hashlib.sha256(data).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            if not data:
                raise RuntimeError("it is empty")
            self._model.load_from_serialized_proto(data)
        except (RuntimeError, UnicodeDecodeError) as error:  # the latter where its own message holds wrong bytes
            raise DataError(f"{name}: is not a sentencepiece model") from error
        self.vocab_size: int = len(self._model)
        self.bos: int | None = self._model.bos_id() if self._model.bos_id() >= 0 else None  # None in T5's
        self.eos: int = self._model.eos_id()
        if self.eos < 0:
            raise DataError(f"{name}: has no end-of-sentence piece, which must end each document")

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without BOS and EOS."""
        return self._model.encode(text)

    def document(self, text: str) -> list[int]:
        """The tokens of a text between BOS (where the model has one) and EOS."""
        return [*([] if self.bos is None else [self.bos]), *self.encode(text), self.eos]

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; BOS and EOS give nothing."""
        return self._model.decode([int(token) for token in tokens])


def load_tokenizer(path: str | Path, vocab_size: int, key: str = "data.tokenizer") -> Tokenizer:
    """Read a .model file, which the setting ``key`` named; DataError unless it has ``vocab_size`` pieces."""
    with reading(f"{key} = {str(path)!r}", DataError):
        file = Path(os.path.expanduser(path))
        check_plain(file)
        data = file.read_bytes()
    tokenizer = Tokenizer(data, str(path))
    if tokenizer.vocab_size != vocab_size:
        has = f"{key} = {str(path)!r} has {tokenizer.vocab_size} pieces"
        raise DataError(f"{has}, model.vocab_size = {vocab_size}: they must be equal")
    return tokenizer


def train_tokenizer(source: Source, vocab_size: int, max_documents: int = 0) -> bytes:
    """Train a tokenizer on a source (of a large one, on beginnings of units spread over it); return its file. DataError
    if there is too little text for so many tokens, 256 bytes and 3 controls among them."""
    lines = iter(list(_lines(source, max_documents)))  # an error in reading must not cross sentencepiece
    model, train = io.BytesIO(), sentencepiece.SentencePieceTrainer.train
    try:
        train(sentence_iterator=lines, model_writer=model, vocab_size=vocab_size, **_SETTINGS)
    except RuntimeError as error:
        message = str(error)
        if limit := re.search(r"value <= (\d+)", message):
            reason = f"the corpus has text for {limit[1]} pieces at most; use more text or a smaller vocabulary"
        elif needed := re.search(r"required_chars\. \d+ vs (\d+)", message):
            reason = f"must be at least {needed[1]}, the bytes and the characters of the corpus"
        else:
            reason = f"training a tokenizer failed: {' '.join(message.split())}"
        raise DataError(f"model.vocab_size = {vocab_size}: {reason}") from error
    return model.getvalue()


def _lines(source: Source, max_documents: int) -> Iterator[str]:
    """Lines for training: of each unit an equal share of what is left, so that short ones leave more to the others."""
    units = range(len(source.sizes))
    if not max_documents:
        units = units[:: -(-len(units) // source.most_sampled)]
    left, documents = _CHARACTERS, 0
    for place, unit in enumerate(units):
        share = left // (len(units) - place)
        for document in source.documents(unit):
            text = document.text[:share]
            for line in text.split("\n"):
                yield from (line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE))
            share -= len(text)
            left -= len(text)
            documents += 1
            if documents == max_documents:  # never so at 0, which means all
                return
            if share <= 0:
                break
