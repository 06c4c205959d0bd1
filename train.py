"""Trains a NeuroTrails LLaMA: ``deepspeed --num_gpus 2 train.py --config configs/quickstart.toml``.

    [deepspeed [launcher options] | python] train.py [--config FILE] [--ds_config FILE] [section.key=value …]
    python train.py [--single | --preview] …

``--help`` lists every setting. The config is checked before torch is imported, so that a mistake ends at once.
"""

import sys

from nt_dist.command_line import run_main
from nt_dist.config import parse_command_line
from nt_dist.config.help import help_text
from nt_dist.config.load import with_absolute_paths
from nt_dist.families import FAMILIES, load_config
from nt_dist.parallel import launcher


def main() -> int:
    """Trains, or continues, the run that the command line describes."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(FAMILIES.values()))
        return 0
    words = [word for word in sys.argv[1:] if word not in ("--single", "--preview")]
    if len(words) < len(sys.argv) - 1:
        launcher.forget()
    with launcher.said_once_a_host():
        config_path, ds_config, overrides = parse_command_line(words)
        config = load_config(config_path, overrides, ds_config, world_size=launcher.process().world_size)
    if "--preview" in sys.argv[1:]:
        from nt_dist.training.preview import preview

        preview(config)
        return 0
    from nt_dist.training.loop import train  # takes seconds: torch and DeepSpeed

    return train(with_absolute_paths(config))


if __name__ == "__main__":
    run_main(main)
