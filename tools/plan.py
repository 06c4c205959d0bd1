"""Lists the layouts of a model that fit on a number of GPUs, fastest first, with memory, bytes moved and step time.

    python tools/plan.py --config configs/llama_1b.toml --gpus 64 --gpu h100 [--top 10] [--wide] [--ds_config FILE]
        [section.key=value ...]
    python tools/plan.py --config FILE [--gpus N] [section.key=value ...]

With --gpu (h100, h200, a100, rtx3090, rtx4090 or rtx5090, eight to a node), every layout that the rules allow is looked
at: tensor, pipe, trail and data degree, ZeRO stage, micro-batch; the config's own degrees and train.micro_batch_size do
not matter. The command of the first is printed, and with --wide what memory and traffic are made of. --gpu_memory gives
another size than the data sheet's. Without --gpu, the memory of the model's state at the config's own layout, by ZeRO
stage.
From formulas (nt_dist/planning, nt_dist/planning/memory.py, nt_dist/model/flops.py); nothing is built.
"""

import argparse

from nt_dist.command_line import run_main
from nt_dist.config import Config, parse_command_line
from nt_dist.config.stages import stage_at
from nt_dist.families import load_config


def main() -> int:
    """Parse the command line and print the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks (default 1)")
    kinds = ("h100", "h200", "a100", "rtx3090", "rtx4090", "rtx5090")
    parser.add_argument("--gpu", choices=kinds, help="plan all layouts on this GPU")
    parser.add_argument("--gpu_memory", "--gpu-memory", type=float, metavar="GB", help="its memory, in 10^9 bytes")
    parser.add_argument("--wide", action="store_true", help="all columns: kinds of memory, bytes sent")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="layouts shown; 0: all (default 10)")
    arguments, rest = parser.parse_known_args()
    if arguments.gpus < 1:
        parser.error(f"--gpus {arguments.gpus}: must be at least 1")
    if arguments.gpu_memory is not None and not (arguments.gpu and arguments.gpu_memory > 0):
        parser.error(f"--gpu_memory {arguments.gpu_memory:g}: must be above 0, and goes with --gpu")
    path, ds_config, overrides = parse_command_line(rest)
    if arguments.gpu:
        config = stage_at(load_config(path, overrides, ds_config, check_paths=False), 1)
        return show_layouts(config, arguments, path, overrides)
    config = load_config(path, overrides, ds_config, world_size=arguments.gpus, check_paths=False)
    return show_stages(stage_at(config, 1))  # where the density falls, the first model is the largest


def show_layouts(config: Config, arguments: argparse.Namespace, path: str, overrides: list[str]) -> int:
    """Print the layouts that fit, and the command of the first; return the exit code, 1 where none does."""
    from dataclasses import replace

    from nt_dist.planning.gpus import GPUS, NODE, RESERVED  # takes seconds: torch
    from nt_dist.planning.layouts import brief_table, command_line, layouts_table, plan_layouts

    gpus, name, top = arguments.gpus, arguments.gpu, arguments.top
    gpu = replace(GPUS[name], memory=1e9 * arguments.gpu_memory) if arguments.gpu_memory else GPUS[name]
    plans, looked_at = plan_layouts(replace(config, world_size=gpus), gpu)
    print(_model_line(config))
    room = (gpu.memory - RESERVED) / 2**30
    print(
        f"{gpus} {name}: {len(plans)} layouts fit in {room:.1f} GiB a GPU ({looked_at} looked at, micro-batches", end=""
    )
    print(f" counted); memory in GiB on the fullest rank{f'; the first {top}' if 0 < top < len(plans) else ''}\n")
    if not plans:
        return 1
    print((layouts_table if arguments.wide else brief_table)(plans[: top or None]))
    print(f"\n    {command_line(plans[0], path, overrides, NODE)}")
    return 0


def show_stages(config: Config) -> int:
    """Print the state's memory at each ZeRO stage."""
    from nt_dist.planning.memory import plan_stages, plan_table

    print(_model_line(config), f"; {config.data_degree} data ranks, MiB on each rank\n", sep="")
    print(plan_table(config, plan_stages(config)))
    return 0


def _model_line(config: Config) -> str:
    from nt_dist.model.flops import token_flops
    from nt_dist.model.weights import count_parameters

    parameters, flops = count_parameters(config), token_flops(config)
    return (
        f"{parameters['stored']:,} weights stored of {parameters['dense']:,}, {config.train.precision}; training, FLOP "
        f"a {config.family.sample}: {flops.training_dense:.4g} dense-equivalent, "
        f"{flops.training_sparse:.4g} sparse-effective"
    )


if __name__ == "__main__":
    run_main(main)
