"""What the tests of the data package share: small texts and a config over them."""

import gzip
import json
import random
from pathlib import Path

import tokenizers

from nt_dist.config import Config
from nt_dist.families import make_config

SENTENCE = "the old house by sea stood empty while rain fell and nobody came to open its door again until spring"


def sentences(count: int, seed: int = 0) -> str:
    """Lines of text that differ."""
    choose, words = random.Random(seed), SENTENCE.split()
    return "".join(" ".join(choose.choices(words, k=9)).capitalize() + ".\n" for _ in range(count))


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """A jsonl file of texts, compressed by gzip if its name says so."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return path


def byte_level(folder: Path) -> Path:
    """A tokenizer.json of 300 pieces in ``folder``, as GPT-2's: of bytes, one special piece."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.enable_truncation(8)
    settings = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": tokenizers.pre_tokenizers.ByteLevel.alphabet()}
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, show_progress=False, **settings)
    model.train_from_iterator([sentences(60)], trainer)
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def config_over(folder: Path, vocab_size: int = 330, sequence_length: int = 16, **data) -> Config:
    """A config whose run is in ``folder``."""
    model = {"vocab_size": vocab_size, "max_seq_len": sequence_length}
    return make_config(
        {"model": model, "data": {"source": "jsonl", "num_workers": 0, **data}, "run": {"dir": str(folder / "run")}}
    )


def files_under(folder: Path) -> list[str]:
    """All files, but for the lock that says who prepares."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )
