"""Says how much memory a model's weights need on one rank at each ZeRO stage, by kind, and its work per token.

    python tools/plan.py --config configs/llama_1b.toml --gpus 8 [--ds_config FILE] [section.key=value ...]

From formulas (nt_dist/training/memory_plan.py, nt_dist/training/flops.py); nothing is built. Activations and logits
come on top.
"""

import argparse

from nt_dist.command_line import run_main
from nt_dist.config import load_config, parse_command_line


def main() -> int:
    """Parse the command line and print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks (default 1)")
    arguments, rest = parser.parse_known_args()
    if arguments.gpus < 1:
        parser.error(f"--gpus {arguments.gpus}: must be at least 1")
    path, ds_config, overrides = parse_command_line(rest)
    config = load_config(path, overrides, ds_config, world_size=arguments.gpus, check_paths=False)

    from nt_dist.model.weights import count_parameters  # takes seconds: torch
    from nt_dist.training.flops import token_flops
    from nt_dist.training.memory_plan import plan_stages, plan_table

    parameters, flops = count_parameters(config), token_flops(config)
    print(f"{parameters['stored']:,} weights stored of {parameters['dense']:,}, {config.train.precision}", end=", ")
    print(f"{config.data_degree} data ranks; MiB on each rank\n")
    print(plan_table(config, plan_stages(config)))
    print(f"\ntraining, FLOP a token: {flops.training_dense:.4g} dense-equivalent, ", end="")
    print(f"{flops.training_sparse:.4g} sparse-effective")
    return 0


if __name__ == "__main__":
    run_main(main)
