"""Prepares the texts of a config: tokenizes them into indexed .bin/.idx files, which training then opens.

    python tools/prepare_data.py [--config configs/X.toml] [section.key=value …]
    mpirun -np 8 python tools/prepare_data.py --config configs/X.toml        many processes, on many nodes

data.num_workers is the number of processes that tokenize (under mpirun, of each rank). A run that was stopped goes on
from the chunks it had made. train.py prepares by itself; large corpora are better prepared ahead, for its other ranks
wait meanwhile.
"""

import logging
import sys

from nt_dist.command_line import run_main
from nt_dist.config import Config, parse_command_line
from nt_dist.families import load_config


def main() -> None:
    """Prepare and say where the files are."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    from nt_dist.text.communicator import open_communicator
    from nt_dist.text.mixture import open_data, prepare_data

    with open_communicator() as communicator:
        logging.basicConfig(level=logging.INFO if communicator.rank == 0 else logging.WARNING, format="%(message)s")
        config = communicator.agree(_config)
        folders = prepare_data(config, communicator)
        communicator.on_first(lambda: open_data(config))
        if communicator.rank == 0:
            print(*folders.values(), sep="\n")


def _config() -> Config:
    path, ds_config, overrides = parse_command_line(sys.argv[1:])
    return load_config(path, overrides, ds_config)


if __name__ == "__main__":
    run_main(main)
