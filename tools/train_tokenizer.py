"""Trains a sentencepiece tokenizer of model.vocab_size pieces on the texts of a config.

    python tools/train_tokenizer.py [--out FILE.model] [--config configs/X.toml] [section.key=value …]

Without --out it is written where data.tokenizer = "auto" looks for it. Training is deterministic.
"""

import argparse
import logging
from pathlib import Path

from nt_dist.command_line import run_main
from nt_dist.config import parse_command_line
from nt_dist.families import load_config


def main() -> None:
    """Train and say where the file is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE.model", help="where to write it")
    arguments, others = parser.parse_known_args()
    from nt_dist.errors import DataError
    from nt_dist.files import check_file, write_whole
    from nt_dist.text.prepare import find_tokenizer

    if arguments.out:
        check_file("--out", arguments.out)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path, ds_config, overrides = parse_command_line(others)
    config = load_config(path, [*overrides, "data.tokenizer=auto"], ds_config)
    tokenizer = find_tokenizer(config)
    if arguments.out:
        write_whole(arguments.out, tokenizer.data, DataError)
    print(arguments.out or tokenizer.name)


if __name__ == "__main__":
    run_main(main)
