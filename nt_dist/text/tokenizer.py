"""Tokens: a sentencepiece model, given or trained on the corpus, the same for the same source and size; or one of the
tokenizers library, given as its tokenizer.json.

Training takes no normalisation and cuts nothing away, so that decoding gives the text back to the byte, but for the
character U+2581, by which sentencepiece writes a space: it comes back as one. BPE (Kudo and Richardson, EMNLP 2018)
with byte fallback, on whole lines.
"""

import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import sentencepiece

from nt_dist.errors import DataError
from nt_dist.files import check_plain, read_json, reading
from nt_dist.text.rows import ANSWERS, plain_text
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
# what pieces at the ends of a document are called, where nothing beside a tokenizer.json says it
_BEGINS = ("<s>", "<bos>", "<|begin_of_text|>", "[BOS]")
_ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]")


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

    def __reduce__(self):
        return type(self), (self.data, self.name)

    @property
    def pieces(self) -> dict[str, int]:
        """All pieces with their tokens."""
        return {self._model.id_to_piece(token): token for token in range(self.vocab_size)}

    @property
    def only_sentencepiece(self) -> list[str]:
        """The rules that a model must keep for a tokenizer.json to say the same, of those that it breaks."""
        import sentencepiece.sentencepiece_model_pb2 as proto

        model = proto.ModelProto.FromString(self.data)
        normalizer, trainer = model.normalizer_spec, model.trainer_spec
        written = [piece.piece for piece in model.pieces if piece.type == piece.USER_DEFINED and len(piece.piece) > 1]
        rules = {
            "its kind must be BPE": trainer.model_type == trainer.BPE,
            "it must have byte fallback": trainer.byte_fallback,
            "it must not normalize characters": not normalizer.precompiled_charsmap,
            "it must not remove spaces": not normalizer.remove_extra_whitespaces,
            "it must not mark words by a space behind them": not trainer.treat_whitespace_as_suffix,
            f"its user-defined pieces must be single characters, not {', '.join(map(repr, written))}": not written,
        }
        return [rule for rule, holds in rules.items() if not holds]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without BOS and EOS."""
        return self._model.encode(text)

    def document(self, text: str) -> list[int]:
        """The tokens of a text between BOS (where the model has one) and EOS."""
        return [*([] if self.bos is None else [self.bos]), *self.encode(text), self.eos]

    def piece(self, name: str) -> int | None:
        """The token of a piece, if there is one."""
        token = self._model.piece_to_id(name)
        return token if self._model.id_to_piece(token) == name else None

    def conversation(self, messages: Iterable[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        """The tokens of messages (role, content), and which of them count in the loss: those of answers.

        After BOS each message is ``<|role|>``, a line break and its content; an answer ends with EOS, which counts too,
        what others say with a line break. The role is a piece of its own where the tokenizer has it, or else text. A
        conversation that does not end with an answer has an EOS behind it that does not count.
        """
        parts: list[tuple[list[int], bool]] = [([] if self.bos is None else [self.bos], False)]
        for role, content in messages:
            name, is_answer = f"<|{role}|>", role == ANSWERS
            own, behind = self.piece(name), "\n" if is_answer else f"\n{content}\n"
            parts.append((self.encode(name + behind) if own is None else [own, *self.encode(behind)], False))
            if is_answer:
                parts.append(([*self.encode(content), self.eos], True))
        if not parts[-1][1]:
            parts.append(([self.eos], False))
        return [token for tokens, _ in parts for token in tokens], [is_answer for own, is_answer in parts for _ in own]

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; BOS and EOS give nothing."""
        return self._model.decode([int(token) for token in tokens])


class JsonTokenizer(Tokenizer):
    """One of the tokenizers library, of what :func:`read_tokenizer` gives for a tokenizer.json called ``name``."""

    only_sentencepiece = ()

    def __init__(self, data: bytes, name: str):
        try:
            import tokenizers
        except ModuleNotFoundError:
            raise DataError(f"{name}: reading it needs the extra [eval]: tokenizers is not installed") from None
        self.data, self.name, self.sha256 = data, name, hashlib.sha256(data).hexdigest()
        try:
            kept = json.loads(data)
            self._model = tokenizers.Tokenizer.from_str(json.dumps(kept["tokenizer"]))
            self.bos, self.eos = (None if each is None else self._model.token_to_id(each) for each in kept["ends"])
        except BaseException as error:  # of the library, of no other class
            self._refuse(error)
        self._model.no_truncation()
        self._model.no_padding()
        self._model.encode_special_tokens = True  # "</s>" in a text is four characters or so
        self.vocab_size = max(self._model.get_vocab().values(), default=-1) + 1
        if self.eos is None:
            rule = "tokenizer_config.json beside it must name one as eos_token"
            raise DataError(f"{name}: it is not known which piece ends a document; {rule}")
        if self.bos == self.eos:  # GPT-2's: documents follow an EOS anyway
            self.bos = None

    @property
    def pieces(self) -> dict[str, int]:
        return self._model.get_vocab()

    def _refuse(self, error: BaseException) -> NoReturn:
        """Raise a DataError for what the library has raised; its panics are no Exceptions."""
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise error
        raise DataError(f"{self.name}: is no file of the tokenizers library, or is damaged: {error}") from None

    def piece(self, name: str) -> int | None:
        return self._model.token_to_id(name)

    def encode(self, text: str) -> list[int]:
        try:
            return self._model.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            self._refuse(error)

    def decode(self, tokens: list[int]) -> str:
        return self._model.decode([int(token) for token in tokens])


def read_tokenizer(path: Path) -> bytes:
    """What a tokenizer file says, one string of bytes for one tokenizer: a .model as it is; a tokenizer.json with the
    pieces that begin and end a document, which tokenizer_config.json beside it names. OSError if it cannot be read."""
    data = path.read_bytes()
    if not data.lstrip().startswith(b"{"):
        return data
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON: {error}") from None
    if "ends" in content:  # read before, and kept with prepared texts
        return data
    ends = _named_ends(path.parent / "tokenizer_config.json")
    if ends is None:
        found = [[name for name in names if name in pieces_of(content)] for names in (_BEGINS, _ENDS)]
        ends = [names[0] if len(names) == 1 else None for names in found]
    return json.dumps({"ends": ends, "tokenizer": content}).encode()


def _named_ends(file: Path) -> list[str | None] | None:
    """The pieces that begin and end a document, as a tokenizer_config.json names them; None if it is not there."""
    if not os.path.lexists(file):
        return None
    said = read_json(file, DataError)
    if not isinstance(said, dict):
        raise DataError(f"{file}: cannot be read: it must hold an object")
    ends = [said.get(name) for name in ("bos_token", "eos_token")]
    return [each.get("content") if isinstance(each, dict) else each for each in ends]


def pieces_of(content: Any) -> dict[str, int]:
    """The pieces of a tokenizer.json with their tokens; empty if it is none."""
    try:
        vocab = content["model"]["vocab"]
        pieces = dict(vocab) if isinstance(vocab, dict) else {piece: token for token, (piece, _) in enumerate(vocab)}
        return pieces | {each["content"]: each["id"] for each in content.get("added_tokens") or []}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def load_tokenizer(path: str | Path, vocab_size: int, key: str = "data.tokenizer") -> Tokenizer:
    """Read a tokenizer's file, which the setting ``key`` named; DataError unless it has ``vocab_size`` pieces."""
    with reading(f"{key} = {str(path)!r}", DataError):
        file = Path(os.path.expanduser(path))
        check_plain(file)
        data = read_tokenizer(file)
    tokenizer = (JsonTokenizer if data.startswith(b"{") else Tokenizer)(data, str(path))
    if tokenizer.vocab_size != vocab_size:
        has = f"{key} = {str(path)!r} has {tokenizer.vocab_size} pieces"
        raise DataError(f"{has}, model.vocab_size = {vocab_size}: they must be equal")
    return tokenizer


def train_tokenizer(source: Source, vocab_size: int, max_documents: int = 0) -> bytes:
    """Train a tokenizer on a source (of a large one, on beginnings of units spread over it); return its file. DataError
    if there is too little text for so many tokens, 256 bytes and 3 controls among them."""
    return train_on_mixture([(source, 1.0, max_documents)], vocab_size)


def train_on_mixture(sources: Sequence[tuple[Source, float, int]], vocab_size: int) -> bytes:
    """As :func:`train_tokenizer` on several sources, each with its share of the characters and ``max_documents``; short
    ones are gone over again."""
    # lists, as an error in reading must not cross sentencepiece
    texts = [list(_lines(source, count, round(share * _CHARACTERS))) for source, share, count in sources]
    lines = iter(texts[0] if len(texts) == 1 else list(_in_proportion(texts, [share for _, share, _ in sources])))
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


def _in_proportion(texts: Sequence[list[str]], shares: Sequence[float]) -> Iterator[str]:
    sizes = [sum(map(len, lines)) for lines in texts]
    for lines, size, share in zip(texts, sizes, shares, strict=True):
        left = share * sum(sizes)
        for line in itertools.cycle(lines if size else []):
            if left <= 0:
                break
            yield line
            left -= len(line)


def _lines(source: Source, max_documents: int, characters: int) -> Iterator[str]:
    """Lines for training: of each unit an equal share of what is left, so that short ones leave more to the others."""
    units = range(len(source.sizes))
    if not max_documents:
        units = units[:: -(-len(units) // source.most_sampled)]
    left, documents = characters, 0
    for place, unit in enumerate(units):
        share = left // (len(units) - place)
        for document in source.documents(unit):
            text = plain_text(document.text, source.is_chat)[:share]
            for line in text.split("\n"):
                yield from (line[start : start + _LONGEST_LINE] for start in range(0, len(line), _LONGEST_LINE))
            share -= len(text)
            left -= len(text)
            documents += 1
            if documents == max_documents:  # never so at 0, which means all
                return
            if share <= 0:
                break
