"""Text written by an ensemble, a token at a time, coloured by uncertainty on a terminal.

V pieces, T trails. Nucleus sampling: Holtzman et al., arXiv 1904.09751, §3.1. Uncertainty: Malinin and Gales, arXiv
2002.07650, §2: the entropy of the averaged prediction, and the part of it that is the trails' disagreement.
"""

import logging
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import torch

from nt_dist.errors import ConfigError, printable
from nt_dist.evaluation.predictions import predictions
from nt_dist.inference.ensemble import PROB, Ensemble, combine
from nt_dist.llama.layers import Cache
from nt_dist.model.place import Place
from nt_dist.text.tokenizer import Tokenizer

_SCALE = (40, 76, 112, 148, 184, 220, 214, 208, 202, 196)  # of the 256 colours, from green over yellow to red
_LOWEST = 1e-30  # a temperature at which the most likely token is drawn, and log-probabilities are fp32 all the same
_RESET = "\x1b[0m"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; ConfigError with everything that is out of its range."""

    temperature: float = 1.0  # divides the log-probabilities; 0 takes the most likely token
    top_p: float = 1.0  # the smallest set of likely tokens with at least this probability is drawn from; 1: all
    seed: int = 0
    top_k: int = 0  # so many of the likeliest tokens are drawn from; 0: all

    def __post_init__(self):
        rules = {
            f"--temperature {self.temperature:g} must be a number of at least 0": 0 <= self.temperature < math.inf,
            f"--top_p {self.top_p:g} must be in (0, 1]": 0 < self.top_p <= 1,
            f"--seed {self.seed} must be in [0, 2^63)": 0 <= self.seed < 2**63,
            f"--top_k {self.top_k} must be at least 0": self.top_k >= 0,
        }
        if problems := [rule for rule, holds in rules.items() if not holds]:
            raise ConfigError(problems)

    def choose(self, log_probs: torch.Tensor, generator: torch.Generator) -> int:
        """Return a token drawn from log-probabilities, fp32 [V]."""
        if self.temperature == 0:
            return int(log_probs.argmax())
        scaled = log_probs / max(self.temperature, _LOWEST)
        probs, tokens = scaled.softmax(-1).cpu().sort(descending=True, stable=True)
        if self.top_k:
            probs = probs[: self.top_k] / probs[: self.top_k].sum()
        before = probs.cumsum(0) - probs  # of the tokens more likely than each
        probs = probs.where((before < self.top_p) | (torch.arange(len(probs)) == 0), 0.0)
        return int(tokens[torch.multinomial(probs, 1, generator=generator)])


@dataclass(frozen=True)
class Piece:
    """Some text that was written, in whole characters, and the highest uncertainty of its tokens, in nats."""

    text: str
    uncertainty: float


def uncertainty(logits: torch.Tensor, kind: str) -> float:
    """Return how unsure an ensemble is of the next token, in nats, given the trails' logits [T, V].

    That is the "entropy" of the mean of the trails' probabilities, or the "mutual_information": that entropy less the
    mean of the trails' own entropies, which is 0 where all trails predict the same.
    """
    no_target, one = logits.new_zeros(1, 1, dtype=torch.int64), logits.new_ones(1, 1)
    (found,) = predictions(logits[:, None, None], no_target, one, len(logits), Place())
    return float(found.mutual_information if kind == "mutual_information" else found.entropy[-1])


def check_prompt(prompt: str, key: str = "--prompt") -> None:
    """Raise a ConfigError for a text whose bytes, on the command line or in the input, were no UTF-8."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ConfigError([f"{key} must be UTF-8 text"]) from None


def generate(
    ensemble: Ensemble,
    prompt: str,
    max_tokens: int,
    sampling: Sampling,
    how: str | int = PROB,
    kind: str = "none",
    stop: Sequence[str] = (),
) -> Iterator[Piece]:
    """Yield the text that follows ``prompt`` as it is written, up to ``max_tokens``, the end of a document, or what
    comes first of ``stop``, which is not written.

    A text longer than the sequences that were trained on goes on from its last half; what was before is forgotten, as a
    warning says the first time.
    ``how`` is the trails' combination, as ensemble.combine takes it; ``kind`` that of the uncertainty, as
    :func:`uncertainty` takes it, or "none", which costs nothing: pieces have 0.
    """
    tokenizer, generator = ensemble.tokenizer, torch.Generator().manual_seed(sampling.seed)
    first = tokenizer.eos if tokenizer.bos is None else tokenizer.bos  # without a BOS, documents follow an EOS
    tokens = [first, *tokenizer.encode(prompt)]
    cache, waiting, decoder, highest = Cache(), tokens, StreamDecoder(tokenizer, tokens[1:]), 0.0
    cut, held = False, StopText(stop)
    for _ in range(max_tokens):
        if cache.length + len(waiting) > ensemble.max_length:
            cache, waiting = Cache(), tokens[-max(ensemble.max_length // 2, 1) :]
            if not cut:
                text = "the text is longer than the %d tokens that the model was trained on; only the last %d are seen"
                _logger.warning(text, ensemble.max_length, len(waiting))
            cut = True
        logits = ensemble.logits(torch.tensor([waiting]), cache)[:, 0, -1]  # [T, V]
        token = sampling.choose(combine(logits, how), generator)
        if token == tokenizer.eos:
            break
        tokens.append(token)
        waiting = [token]
        if kind != "none":
            highest = max(highest, uncertainty(logits, kind))
        if text := held.add(decoder.add(token)):
            yield Piece(text, highest)
            highest = 0.0
        if held.found:
            return
    if text := held.add(decoder.rest()) + held.rest():
        yield Piece(text, highest)


class StopText:
    """Text as it comes, up to the first of some texts; a beginning of one is held back until it is seen to be none."""

    def __init__(self, texts: Sequence[str]):
        self.found, self._texts, self._held_back = False, [text for text in texts if text], ""

    def add(self, new: str) -> str:
        """Return the text that is now known to come before any of them; :attr:`found` says that one follows it."""
        text, self._held_back = self._held_back + new, ""
        if ends := [place for stop in self._texts if (place := text.find(stop)) >= 0]:
            self.found = True
            return text[: min(ends)]
        beginnings = (stop[:count] for stop in self._texts for count in range(len(stop) - 1, 0, -1))
        self._held_back = max((each for each in beginnings if text.endswith(each)), key=len, default="")
        return text.removesuffix(self._held_back)

    def rest(self) -> str:
        """Return what is held back, as nothing follows; none where one was found."""
        return self._held_back


class StreamDecoder:
    """The text of tokens as they come, in whole characters: the bytes of one may be several tokens.

    The text of the tokens ``before`` is known; whether a piece begins with a space can depend on there being some.
    """

    def __init__(self, tokenizer: Tokenizer, before: list[int]):
        self._decode, self._known, self._held_back = tokenizer.decode, before[-1:], []

    def add(self, token: int) -> str:
        """Return the text that is new with ``token``; none while a character is incomplete."""
        self._held_back.append(token)
        new = self.rest()
        if new.endswith("\ufffd"):
            return ""
        self._known, self._held_back = [token], []
        return new

    def rest(self) -> str:
        """Return what :meth:`add` holds back, broken characters as U+FFFD."""
        return self._decode(self._known + self._held_back)[len(self._decode(self._known)) :]


class Shares:
    """Where a figure stands among those before it: uncertainties of most tokens are near 0, and a few are large."""

    def __init__(self):
        self.known: list[float] = []  # ascending

    def add(self, figure: float) -> float:
        """Return the share of the figures before that are lower, equal ones counting half; of none, a half."""
        place = (bisect_left(self.known, figure) + bisect_right(self.known, figure)) / 2
        share = place / len(self.known) if self.known else 0.5
        insort(self.known, figure)
        return share

    def legend(self) -> str:
        """Return the scale's colours, each before the highest figure that it stands for, in nats."""
        steps = len(_SCALE)
        ends = [math.ceil(number * len(self.known) / steps) for number in range(1, steps + 1)]
        marks = (f"{colour(number / steps)}#{_RESET} {self.known[end - 1]:.3f}" for number, end in enumerate(ends))
        return "up to (nats): " + " ".join(marks)


def colour(share: float) -> str:
    """Return the escape sequence for an uncertainty that is above this share of the others."""
    return f"\x1b[38;5;{_SCALE[min(int(len(_SCALE) * share), len(_SCALE) - 1)]}m"


def write(pieces: Iterable[Piece], prompt: str, out: TextIO, kind: str) -> None:
    """Write a prompt and the pieces that follow it, each as soon as it is there.

    On a terminal they are coloured, each by where its uncertainty stands among those before it, with a legend in the
    end, and control characters in them are shown, not obeyed; elsewhere each piece is a line: its uncertainty, a
    tabulator, and its text as a Python string. Plain text everywhere if ``kind`` is "none".
    """
    shown = printable if out.isatty() else str
    if kind != "none" and not out.isatty():
        for piece in pieces:
            print(f"{piece.uncertainty:.4f}\t{piece.text!r}", file=out, flush=True)
        return
    print(shown(prompt), end="", file=out, flush=True)
    shares = Shares()
    for piece in pieces:
        text = shown(piece.text)
        text = text if kind == "none" else f"{colour(shares.add(piece.uncertainty))}{text}{_RESET}"
        print(text, end="", file=out, flush=True)
    print(f"\n\n{shares.legend()}" if shares.known else "", file=out, flush=True)
