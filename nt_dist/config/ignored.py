"""Settings that were given and change nothing: each is worth a warning, as it may have been meant otherwise."""

from collections.abc import Iterator

from nt_dist.config.keys import keys_of
from nt_dist.config.settings import Config, sections_of

_CHOICE = ("drop", "temperature", "grow", "regrow_from", "new_moments")
_UPDATE = (*_CHOICE, "drop_fraction", "drop_schedule", "stop_fraction")


def warnings(config: Config) -> list[str]:
    """Name the settings that will be ignored and the setting that makes them so.

    Only settings that differ from their defaults are named.
    """
    return list(dict.fromkeys(_warnings(config)))


def _warnings(config: Config) -> Iterator[str]:
    sparsity, run, steps = config.sparsity, config.run, config.train.steps
    if sparsity.density == 1:
        dense = ("distribution", "storage", "exempt", "update_every", *_UPDATE)
        yield from named(config, "sparsity", dense, "sparsity.density = 1.0")
    elif sparsity.update_every == 0:
        yield from named(config, "sparsity", _UPDATE, "sparsity.update_every = 0")
    elif sparsity.update_every > int(sparsity.stop_fraction * steps) or sparsity.update_every >= steps:
        yield (
            f"sparsity.update_every = {sparsity.update_every}: the topology is never updated in train.steps = {steps} "
            f"with sparsity.stop_fraction = {sparsity.stop_fraction}"
        )
    if sparsity.drop != "soft_magnitude":
        yield from named(config, "sparsity", ("temperature",), f"sparsity.drop = {sparsity.drop!r}")
    if sparsity.grow == "random":
        yield from named(config, "sparsity", ("regrow_from",), "sparsity.grow = 'random'")
    if config.trails.fork == "embedding" and config.trails.layers != config.model.num_layers:
        yield from named(config, "trails", ("layers",), "trails.fork = 'embedding'")
    other = ("betas", "adam_eps") if config.train.optimizer == "sgd" else ("momentum", "nesterov")
    yield from named(config, "train", other, f"train.optimizer = {config.train.optimizer!r}")
    if config.parallel.trail == 1:
        yield from named(config, "parallel", ("trunk",), "parallel.trail = 1")
    elif config.trails.fork == "embedding":
        yield from named(config, "parallel", ("trunk",), "trails.fork = 'embedding' leaves no trunk")

    yield from config.family.ignored(config)

    if run.stop_after >= steps:
        yield from named(config, "run", ("stop_after",), f"train.steps = {steps}")
    if run.keep_every and (not run.save_every or run.keep_every % run.save_every):
        yield (
            f"run.keep_every = {run.keep_every} is no multiple of run.save_every = {run.save_every}: "
            "it keeps only checkpoints whose steps are multiples of both"
        )


def named(config: Config, section: str, entries: tuple[str, ...], because: str) -> Iterator[str]:
    """Name those of the ``entries`` of a section that differ from their defaults, and why they change nothing."""
    for entry, setting in keys_of(sections_of(config.family)[section]).items():
        value = getattr(getattr(config, section), entry)
        if entry in entries and value != setting.default:
            yield f"{section}.{entry} = {value!r} is ignored: {because}"
