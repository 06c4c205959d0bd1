"""Settings that were given and change nothing: each is worth a warning, as it may have been meant otherwise."""

from collections.abc import Iterator

from nt_dist.config.settings import Config

_CHOICE = ("sparsity.drop", "sparsity.temperature", "sparsity.grow", "sparsity.regrow_from", "sparsity.new_moments")
_UPDATE = (*_CHOICE, "sparsity.drop_fraction", "sparsity.drop_schedule", "sparsity.stop_fraction")
_SPARSE = ("sparsity.distribution", "sparsity.storage", "sparsity.exempt", "sparsity.update_every")


def warnings(config: Config) -> Iterator[str]:
    """Name the settings that differ from their defaults and will be ignored, and what makes them so."""
    sparsity, trails, run, steps = config.sparsity, config.trails, config.run, config.train.steps
    if sparsity.density == 1:
        yield from ignored(config, "sparsity.density = 1.0", *_SPARSE, *_UPDATE)
    elif sparsity.update_every == 0:
        yield from ignored(config, "sparsity.update_every = 0", *_UPDATE)
    elif sparsity.update_every > int(sparsity.stop_fraction * steps) or sparsity.update_every >= steps:
        yield (
            f"sparsity.update_every = {sparsity.update_every}: the topology is never updated in train.steps = {steps} "
            f"with sparsity.stop_fraction = {sparsity.stop_fraction}"
        )
    if sparsity.drop != "soft_magnitude":
        yield from ignored(config, f"sparsity.drop = {sparsity.drop!r}", "sparsity.temperature")
    if sparsity.grow == "random":
        yield from ignored(config, "sparsity.grow = 'random'", "sparsity.regrow_from")
    if trails.fork == "embedding" and trails.layers != config.model.num_layers:
        yield from ignored(config, "trails.fork = 'embedding'", "trails.layers")
    adamw, sgd = ("train.betas", "train.adam_eps"), ("train.momentum", "train.nesterov")
    other = adamw if config.train.optimizer == "sgd" else sgd
    yield from ignored(config, f"train.optimizer = {config.train.optimizer!r}", *other)
    if config.parallel.trail == 1:
        yield from ignored(config, "parallel.trail = 1", "parallel.trunk")
    elif trails.fork == "embedding":
        yield from ignored(config, "trails.fork = 'embedding' leaves no trunk", "parallel.trunk")
    yield from config.family.ignored(config)
    if run.stop_after >= steps:
        yield from ignored(config, f"train.steps = {steps}", "run.stop_after")
    if run.keep_every and (not run.save_every or run.keep_every % run.save_every):
        yield (
            f"run.keep_every = {run.keep_every} is no multiple of run.save_every = {run.save_every}: "
            "it keeps only checkpoints whose steps are multiples of both"
        )


def ignored(config: Config, because: str, *keys: str) -> Iterator[str]:
    """Name those of the ``keys`` that differ from their defaults, and why they change nothing."""
    for key in keys:
        name, entry = key.split(".")
        section = getattr(config, name)
        if getattr(section, entry) != getattr(type(section), entry):
            yield f"{key} = {getattr(section, entry)!r} is ignored: {because}"
