"""What tools/check_gpu.py runs, each in a process of its own: does a GPU compute what a CPU does, and how fast is it?

python -m benchmarks.gpu NAME [--tiny]      # one of CHECKS; prints JSON as its last line
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.plain_trainer import PlainTrainer
from benchmarks.setup import build_bench, random_batches, synchronizer
from benchmarks.timing import Clock
from nt_dist.config import Config
from nt_dist.engine.engine import train_step
from nt_dist.families import load_config
from nt_dist.llama.layers import Cache, step
from nt_dist.model.flops import token_flops
from nt_dist.model.trails import build_model
from nt_dist.parallel.mesh import Mesh, close, init_mesh
from nt_dist.planning.gpus import GPUS
from nt_dist.planning.memory import rank_memory

_meshes: list[Mesh] = []
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PARITY = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("tf32", 1), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
CONTENDERS = {
    "single dense": ["trails.count=1", "sparsity.density=1"],
    "NeuroTrails 0.9": [],
    "groups 0.2": ["sparsity.structure=groups", "sparsity.group_size=64", "sparsity.density=0.2"],
}
SMALL = ["model.hidden_size=64", "model.ffn_size=128", "model.num_layers=3", "model.num_attention_heads=4"]
SMALL += ["model.vocab_size=512", "model.max_seq_len=32", "trails.layers=2"]
STEPS, UPDATES_EVERY = 6, 2


def parity(tiny: bool) -> dict:
    """Train a small model six steps, three topology updates among them, in each precision and ZeRO stage.

    Returns:
        By case, the losses and the topology's checksums before and after.
    """
    found = {}
    for precision, stage in PARITY[:: 3 if tiny else 1]:
        numbers = {"tf32": ["train.tf32=true"]}.get(precision, [f"train.precision={precision}"])
        overrides = [*numbers, "train.lr=3e-3"]
        overrides += ["train.batch_size=8", "train.micro_batch_size=4", f"sparsity.update_every={UPDATES_EVERY}"]
        config = _config("llama_130m", [*SMALL, *overrides, "train.steps=100", "train.warmup_steps=0"], stage)
        bench = build_bench(config, _mesh(config))
        start, losses = _checksums(bench.topology), []
        for number in range(1, STEPS + 1):
            collects = bench.topology.collects_at(number)
            result = train_step(bench.engine, config, bench.mesh, bench.batches, number, collects)
            losses.append(result.objective)
            if number % UPDATES_EVERY == 0:
                bench.topology.update(number)
        found[f"{precision}, ZeRO {stage}"] = {"losses": losses, "start": start, "end": _checksums(bench.topology)}
        bench.engine.destroy()
    return found


def speed(name: str, tiny: bool) -> dict:
    """Time steps of a model of the paper as a single dense one, as NeuroTrails and in groups, and of plain layers.

    Returns:
        By contender: tokens a second, MFU (of dense-equivalent operations; for groups of the sparse ones), peak memory
        and the planner's, a topology update's cost in steps.
    """
    found = {}
    for contender, overrides in CONTENDERS.items():
        config = _timed_config(name, overrides, tiny)
        mesh, flops = _mesh(config), token_flops(config)
        bench = build_bench(config, mesh)
        seconds = _seconds(bench.step, mesh.device, tiny)
        peak = torch.cuda.max_memory_allocated() if mesh.device.type == "cuda" else None
        update = None
        if bench.topology.sparse:
            bench.step_before_update()  # warms up
            bench.update()
            update = _once(bench.step_before_update, mesh.device) + _once(bench.update, mesh.device)
        per_token = flops.training_sparse if "groups" in contender else flops.training_dense
        found[contender] = _rates(config, seconds, per_token, mesh.device) | {
            "peak_bytes": peak,
            "planned_bytes": rank_memory(config).ordinary,
            "update_steps": update and update / seconds - 1,
        }
        bench.engine.destroy()
        del bench
        if mesh.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    config = _timed_config(name, [], tiny)
    mesh = _mesh(config)
    plain, batches = PlainTrainer(config, mesh.device), random_batches(config, mesh.device)
    for how in ["plain layers"] + ["plain layers, compiled"] * (mesh.device.type == "cuda"):
        if "compiled" in how:
            plain.model = torch.compile(plain.model)
        seconds = _seconds(lambda: plain.step(batches), mesh.device, tiny)
        found[how] = _rates(config, seconds, token_flops(config).training_dense, mesh.device)
    return found


def profile(tiny: bool) -> dict:
    """Return the kernels of one step of llama_350m: how many, and the longest by name in milliseconds."""
    config = _timed_config("llama_350m", [], tiny)
    mesh = _mesh(config)
    bench = build_bench(config, mesh)
    _seconds(bench.step, mesh.device, tiny)
    on_gpu = mesh.device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as profiler:
        bench.step()
        synchronizer(mesh.device)()
    took = {
        each.key: (each.self_device_time_total if on_gpu else each.self_cpu_time_total, each.count)
        for each in profiler.key_averages()
        if not on_gpu or each.device_type == torch.autograd.DeviceType.CUDA
    }
    longest = sorted(took, key=lambda key: -took[key][0])[:12]
    return {
        "kernels_per_micro_batch": sum(count for _, count in took.values()) / config.accumulation_steps,
        "milliseconds": {key[:80]: took[key][0] / 1000 for key in longest},
    }


@torch.no_grad()
def decoding(tiny: bool) -> dict:
    """Return how many tokens a second llama_350m's three trails, and a single dense model, write for one sequence."""
    found = {}
    for contender in ("single dense", "NeuroTrails 0.9"):
        config = _timed_config("llama_350m", [*CONTENDERS[contender], "sparsity.storage=masked"], tiny)
        device = _mesh(config).device
        model = build_model(config, device=device).to(torch.bfloat16).eval()
        cache, token = Cache(), torch.ones(1, 1, dtype=torch.int64, device=device)
        step(model, token.expand(1, 8), cache)
        _once(lambda: step(model, token, cache), device)  # noqa: B023 - called at once
        count = 4 if tiny else 64
        seconds = _once(lambda: [step(model, token, cache) for _ in range(count)], device)  # noqa: B023
        found[contender] = {"tokens_per_second": count / seconds}
    return found


CHECKS: dict[str, Callable[[bool], dict]] = {
    "parity": parity,
    "llama_130m": lambda tiny: speed("llama_130m", tiny),
    "llama_350m": lambda tiny: speed("llama_350m", tiny),
    "profile": profile,
    "decoding": decoding,
}


def _config(name: str, overrides: list[str], stage: int) -> Config:
    return load_config(CONFIGS / f"{name}.toml", overrides, CONFIGS / f"ds/zero{stage}.json", check_paths=False)


def _timed_config(name: str, overrides: list[str], tiny: bool) -> Config:
    micro_batch = 2 if tiny else _config(name, [], 1).train.micro_batch_size
    sizes = [f"train.micro_batch_size={micro_batch}", f"train.batch_size={2 * micro_batch}"]
    return _config(name, [*overrides, *(SMALL if tiny else []), *sizes], 1)


def _mesh(config: Config) -> Mesh:
    """One rank's, the same for all configs of a process: DeepSpeed keeps its group."""
    if not _meshes:
        _meshes.append(init_mesh(config))
    return _meshes[0]


def _checksums(topology) -> dict[str, list]:
    return {name: weight.checksum().tolist() for name, weight in topology.sparse.items()}


def _once(work: Callable[[], object], device: torch.device) -> float:
    return Clock(synchronizer(device)).seconds(work, 1)


def _seconds(work: Callable[[], object], device: torch.device, tiny: bool) -> float:
    """Median seconds of a call, after two to warm up."""
    took = [_once(work, device) for _ in range(4 if tiny else 9)]
    return statistics.median(took[2:])


def _rates(config: Config, seconds: float, flops_per_token: float, device: torch.device) -> dict:
    rate = config.train.batch_size * config.model.max_seq_len / seconds
    name = torch.cuda.get_device_name().lower() if device.type == "cuda" else ""
    peak = next((gpu.rate["bf16"] for kind, gpu in GPUS.items() if kind in name), None)
    return {"tokens_per_second": rate, "mfu": peak and rate * flops_per_token / peak}


def main() -> None:
    """Run one check and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CHECKS)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    found = CHECKS[arguments.name](arguments.tiny)
    close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
