"""The benchmarks from their settings to a text and to plain figures."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.communication import measure_traffic, traffic_table
from benchmarks.control import control_table, limit_files, measure_control
from benchmarks.decoding import SHAPE, measure_decoding
from benchmarks.inference import measure_inference
from benchmarks.loading import measure_loading, measure_workers
from benchmarks.memory import measure_memory, memory_table
from benchmarks.saving import measure_saving
from benchmarks.setup import unit
from benchmarks.speed import measure_speed
from benchmarks.timing import Clock
from benchmarks.trunk import measure_trunk
from nt_dist.config import Config
from nt_dist.model.counts import count_micro_batch
from nt_dist.parallel.mesh import Mesh

Say = Callable[[str], None]


def run_speed(
    config: Config, mesh: Mesh, densities: list[float], say: Say, *, num_rounds: int, num_steps: int, cpu_time: bool
) -> tuple[str, dict]:
    """Measures the speed; see speed.measure_speed.

    Args:
        say: Told how far it is.

    Returns:
        Markdown, and every round's figures.
    """
    turns = {"num_rounds": num_rounds, "num_steps": num_steps, "cpu_time": cpu_time}
    report = measure_speed(config, mesh, densities, **turns, progress=say)
    where = describe(config, mesh.device)
    head = f"{where}; {num_rounds} rounds of {num_steps} steps of {report.per_step:,} {report.unit}"
    head += f"{', by CPU time' if cpu_time else ''}\n\n"
    return head + report.table(), {"where": where, **report.to_dict()}


def run_memory(config: Config, mesh: Mesh, densities: list[float], say: Say) -> tuple[str, list[dict]]:
    """Counts the memory at each density; see memory.measure_memory.

    Args:
        say: Told how far it is.

    Returns:
        Markdown, and every density's figures.
    """
    reports = []
    for density in densities:
        reports.append(measure_memory(config, mesh, density))
        say(f"density {density:g}: {sum(reports[-1].measured.values()) / 2**20:,.1f} MiB")
    where = describe(config, mesh.device)
    head = f"{where}; bytes per stored parameter, measured / formula\n\n"
    return head + memory_table(reports), [{"where": where, **report.to_dict()} for report in reports]


def run_control(sizes: list[int], say: Say) -> tuple[str, dict]:
    """Counts what ranks tell each other besides gradients, at each number of them; see control.measure_control.

    Returns:
        Markdown, and all figures.
    """
    limit_files()
    figures = measure_control(sizes, say)
    return control_table(sizes, figures), {"ranks": sizes, **figures}


def run_communication(config: Config, densities: list[float]) -> tuple[str, list[dict]]:
    """Counts the bytes between data ranks at each density; see communication.measure_traffic.

    Returns:
        Markdown, and every density's payloads.
    """
    reports = measure_traffic(config, densities)
    head = f"{describe(config, torch.device('cpu'))}, {config.accumulation_steps} micro-batches a step; "
    head += f"bytes that each of {config.data_degree} data ranks sends\n\n"
    figures = [
        {
            "density": report.density,
            "equals_formulas": report.is_planned,
            "ordinary": {" ".join(key): each for key, each in report.ordinary.items()},
            "with_update": {" ".join(key): each for key, each in report.with_update.items()},
        }
        for report in reports
    ]
    return head + traffic_table(reports, config.data_degree), figures


def run_saving(config: Config, mesh: Mesh, folder: Path, *, num_rounds: int, num_steps: int) -> tuple[str, dict]:
    """Times saves of both kinds; see saving.measure_saving.

    Returns:
        Markdown, and every round's figures.
    """
    report = measure_saving(config, mesh, folder, num_rounds, num_steps)
    where = describe(config, mesh.device)
    return f"{where}; {num_rounds} rounds\n\n{report.table()}", {"where": where, **report.to_dict()}


def run_loading(
    config: Config, mesh: Mesh, *, num_rounds: int, cpu_time: bool, num_workers: int = 0
) -> tuple[str, dict]:
    """Measures the loader of pictures; see loading.measure_loading, and with workers measure_workers.

    Returns:
        Markdown, and every round's figures.
    """
    report = measure_loading(config, mesh, num_rounds, cpu_time)
    where = describe(config, mesh.device)
    head = f"{where}; {num_rounds} rounds of {config.train.batch_size} pictures, one thread loads"
    head += f"{', by CPU time' if cpu_time else ''}\n\n"
    table, figures = head + report.table(), {"where": where, "rates": report.to_dict()}
    if num_workers:
        ratio = measure_workers(num_workers, num_rounds)
        table += f"\n\n{num_workers} threads read {ratio} times as many JPEGs in a second as {num_workers} processes"
        figures["threads_over_processes"] = ratio.rounds
    return table, figures


def run_trunk(config: Config, say: Say, *, num_rounds: int, num_steps: int) -> tuple[str, dict]:
    """Measures a replicated against a split trunk; see trunk.measure_trunk.

    Args:
        say: Told how far it is.

    Returns:
        Markdown, and every round's figures.
    """
    report = measure_trunk(config, num_rounds=num_rounds, num_steps=num_steps, progress=say)
    where = describe(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    head = (
        f"{where}; {report.ranks} trail ranks, {config.accumulation_steps} micro-batches a step, {num_rounds} rounds "
    )
    return f"{head}of {num_steps} steps\n\n{report.table()}", {"where": where, **report.to_dict()}


def run_inference(
    config: Config,
    densities: list[float],
    say: Say,
    *,
    num_rounds: int,
    prompt: int,
    num_steps: int,
    cpu_time: bool,
) -> tuple[str, dict]:
    """Measures reading and writing on the CPU; see inference.measure_inference.

    Args:
        say: Told how far it is.
        cpu_time: Also makes torch compute on one thread.

    Returns:
        Markdown, and every round's figures.
    """
    if cpu_time:
        torch.set_num_threads(1)
    sizes = {"num_rounds": num_rounds, "prompt": prompt, "num_steps": num_steps}
    report = measure_inference(config, densities, **sizes, cpu_time=cpu_time, progress=say)
    where = f"{_sizes(config)}, fp32, {_machine(torch.device('cpu'))}"
    head = f"{where}; {num_rounds} rounds of one sequence, {prompt} tokens read and {num_steps} written"
    head += f"{', by CPU time' if cpu_time else ''}\n\n"
    return head + report.table(), {"where": where, **report.to_dict()}


def run_decoding(
    config: Config, densities: list[float], say: Say, *, num_rounds: int, num_steps: int, cpu_time: bool
) -> tuple[str, dict]:
    """Measures products with bitmaps and writing with them; see decoding.measure_decoding.

    Args:
        say: Told how far it is.
        cpu_time: Also makes torch compute on one thread.

    Returns:
        Markdown, and every round's figures.
    """
    if cpu_time:
        torch.set_num_threads(1)
    clock = Clock(lambda: None, time.process_time if cpu_time else time.perf_counter)
    turns = {"num_rounds": num_rounds, "num_steps": num_steps}
    report = measure_decoding(config, densities, clock, **turns, progress=say)
    where = f"{_sizes(config)}, {_machine(torch.device('cpu'))}"
    head = f"{where}; {num_rounds} rounds of {num_steps} tokens, products of {SHAPE[0]} × {SHAPE[1]}"
    head += f"{', by CPU time' if cpu_time else ''}\n\n"
    return head + report.table(), {"where": where, **report.to_dict()}


def run_counts(config: Config) -> tuple[str, dict]:
    """Counts kernels and bytes of a micro-batch on one GPU; see nt_dist.model.counts.

    Returns:
        Markdown, and the figures.
    """
    counts, tokens = count_micro_batch(config), config.train.micro_batch_size * config.family.positions(config)
    lines = [
        "| operation | kernels | GB |",
        "|---|---|---|",
        f"| all | {counts.kernels:,} | {counts.bytes / 1e9:.1f} |",
    ]
    lines += [
        f"| {name} | {counts.calls[name]:,} | {moved / 1e9:.1f} |" for name, moved in counts.moved.most_common(12)
    ]
    head = f"{_sizes(config)}, {config.train.precision}; forward and backward of {tokens:,} {unit(config)}\n\n"
    figures = {"kernels": counts.kernels, "bytes": counts.bytes, "calls": counts.calls, "moved": counts.moved}
    return head + "\n".join(lines), figures


def describe(config: Config, device: torch.device) -> str:
    """The model, its training and the machine, in one line."""
    samples = config.train.micro_batch_size * config.family.positions(config)
    return (
        f"{_sizes(config)}, {config.train.precision}, ZeRO {config.zero_stage}, "
        f"{samples:,} {unit(config)} a micro-batch, {_machine(device)}"
    )


def _sizes(config: Config) -> str:
    model = config.model
    blocks = f"{config.trunk_layers} + {config.trails.count} × {model.num_layers - config.trunk_layers} blocks"
    if config.family.task == "image-classification":
        return f"width {model.width}, {blocks} ({model.block}), {model.image_size} pixels, {model.num_classes} classes"
    return f"hidden {model.hidden_size}, ffn {model.ffn_size}, {blocks}, vocabulary {model.vocab_size:,}"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return f"torch {torch.__version__} on {machine}"
