"""What takes more than one setting to say: what is wrong with them together, and what was given and changes nothing."""

import math
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product

from nt_dist.config.keys import hint, keys_of, nearest, nearest_numbers, plain, reads
from nt_dist.config.settings import GROUPS, Config
from nt_dist.errors import ConfigError


@reads("trails.layers", "trails.fork", "model.num_layers")
def _trails_fit(config: Config) -> Iterator[str]:
    if config.trails.fork == "blocks" and config.trails.layers > config.model.num_layers:
        yield (
            f"trails.layers = {config.trails.layers} must be at most model.num_layers = {config.model.num_layers}: "
            "a trail is the last blocks of the model"
        )


@reads("sparsity.exempt", "model.num_layers")
def _exempt_weights_exist(config: Config) -> Iterator[str]:
    names = config.family.weight_names(config) if config.sparsity.exempt else []
    for pattern in config.sparsity.exempt:
        if not any(fnmatchcase(name, pattern) for name in names):
            yield f"sparsity.exempt: no weight is named {pattern!r}{hint(nearest(pattern, names))}"


@reads("train.optimizer", "sparsity.grow", "sparsity.new_moments", "sparsity.update_every")
def _new_moments_can_be_had(config: Config) -> Iterator[str]:
    new = config.sparsity.new_moments if config.sparsity.update_every else "zero"
    if new == "gradient" and config.sparsity.grow == "random":
        yield (
            "sparsity.new_moments = 'gradient' needs sparsity.grow = 'gradient', not 'random', which looks at no "
            "dense gradient; set new_moments to 'zero' or 'mean'"
        )
    if new != "zero" and config.train.optimizer == "sgd":
        yield (
            f"sparsity.new_moments = {new!r} is a second moment, which train.optimizer = 'sgd' does not have; "
            "set new_moments to 'zero'"
        )


@reads("sparsity.structure", "sparsity.drop")
def _groups_have_norms(config: Config) -> Iterator[str]:
    structure = config.sparsity.structure
    if structure != "entries" and config.sparsity.drop == "set":
        yield (
            f"sparsity.drop = 'set' goes by the sign of entries, and sparsity.structure = {structure!r} by the norms "
            f"of {structure}, which have none; set drop to 'soft_magnitude' or 'magnitude'"
        )


@reads("sparsity.structure", "sparsity.group_size", "sparsity.density", "sparsity.topology_shards", "sparsity.exempt")
def _groups_fit(config: Config) -> Iterator[str]:
    sparsity, size = config.sparsity, config.sparsity.group_size
    if sparsity.structure == "entries" or sparsity.density == 1:
        return
    whole = replace(config, sparsity=replace(sparsity, topology_shards=1))  # of sizes that shards may not divide
    outputs = {
        spec.name: -(-spec.shape[0] // (sparsity.topology_shards if spec.cut_axis == 0 else 1))
        for spec in config.family.weights(whole)
        if spec.role in ("linear", "convolution")
    }
    kept = {name for name in outputs for pattern in sparsity.exempt if fnmatchcase(name, pattern)}
    widest = max(outputs.keys() - kept, key=lambda name: (outputs[name], name), default=None)
    if widest and size > outputs[widest]:
        yield (
            f"sparsity.group_size = {size} must be at most {outputs[widest]}, the outputs of a shard of {widest}, "
            f"which has the most; nearest: {outputs[widest]}"
        )


@reads("sparsity.density", "sparsity.start_density")
def _density_falls(config: Config) -> Iterator[str]:
    start, density = config.sparsity.start_density, config.sparsity.density
    if 0 < start < density:
        yield f"sparsity.start_density = {start} must be at least sparsity.density = {density}, or 0"


@reads("train.optimizer", "train.momentum", "train.nesterov")
def _nesterov_has_momentum(config: Config) -> Iterator[str]:
    if config.train.optimizer == "sgd" and config.train.nesterov and config.train.momentum == 0:
        yield "train.nesterov = true needs train.momentum above 0"


@reads("train.optimizer", "train.mup_base_hidden")
def _mup_is_for_adamw(config: Config) -> Iterator[str]:
    base = config.train.mup_base_hidden
    if base and config.train.optimizer == "sgd":
        yield f"train.mup_base_hidden = {base} needs train.optimizer = 'adamw', whose rates it scales"


@reads("train.epochs", "train.tokens")
def _length_is_said_once(config: Config) -> Iterator[str]:
    if config.train.epochs and config.train.tokens:
        yield f"train.tokens = {config.train.tokens} and train.epochs = {config.train.epochs}: only one says the length"


@reads("train.steps", "train.warmup_steps")
def _warmup_fits(config: Config) -> Iterator[str]:
    if config.train.warmup_steps > config.train.steps and not config.train.epochs:
        yield f"train.warmup_steps = {config.train.warmup_steps} must be at most train.steps = {config.train.steps}"


_AXES = ("tensor", "pipe", "trail")
_DEGREES = tuple(f"parallel.{axis}" for axis in _AXES)
BATCH_KEYS = ("train.batch_size", "train.micro_batch_size", *_DEGREES)
"""What the number of micro-batches in a step follows from."""


@reads(*BATCH_KEYS)
def _batch_divides(config: Config) -> Iterator[str]:
    if config.world_size % config.model_degree:
        return  # there is no data degree; the layout's own rule says so
    batch, micro, data = config.train.batch_size, config.train.micro_batch_size, config.data_degree
    if batch % (micro * data) == 0:
        return
    message = (
        f"train.batch_size = {batch} must be a multiple of train.micro_batch_size × data degree = {micro} × {data}; "
        f"nearest: {nearest_numbers(batch, lambda size: size % (micro * data) == 0)}"
    )
    if batch % data == 0:
        near = nearest_numbers(micro, lambda size: size <= batch // data and batch // data % size == 0)
        message += f"; or train.micro_batch_size = {near}"
    if batch % micro == 0:
        degrees = [str(degree) for degree in range(1, data) if batch // micro % degree == 0]
        message += f"; or a data degree of {' or '.join(degrees[-4:])}"
    yield message


_DEALT_OUT = ("model.num_layers", "sparsity.topology_shards", "trails.count", "trails.fork", "train.micro_batch_size")


@reads(*_DEGREES, *_DEALT_OUT, "parallel.trunk", "train.precision")
def _mesh_fits(config: Config) -> Iterator[str]:
    """Say what is wrong with the layout and, where there is one, the nearest that works."""
    broken = list(_broken_by_mesh(config))
    yield from broken
    if broken and (near := _nearest_layout(config)):
        degrees = ", ".join(f"parallel.{axis} = {getattr(near.parallel, axis)}" for axis in _AXES)
        yield (
            f"the nearest layout that works on {config.world_size} ranks: {degrees} (data degree {near.data_degree})"
        )


def _nearest_layout(config: Config) -> Config | None:
    """The config with degrees that keep all rules and are changed by the smallest factors, if there are any."""
    wanted, ranks = config.parallel, config.world_size

    def distance(near: Config) -> float:
        return sum(abs(math.log(getattr(near.parallel, name) / getattr(wanted, name))) for name in _AXES)

    divisors = [number for number in range(1, ranks + 1) if ranks % number == 0]
    layouts = (
        replace(config, parallel=replace(wanted, **dict(zip(_AXES, degrees, strict=True))))
        for degrees in product(divisors, repeat=len(_AXES))
        if ranks % math.prod(degrees) == 0
    )
    return min(filter(is_possible, layouts), key=distance, default=None)


def is_possible(config: Config) -> bool:
    """Say whether the model, the batch and the ZeRO stage can be dealt out to the ranks as the degrees say."""
    batch, unit = config.train.batch_size, config.train.micro_batch_size * config.data_degree
    of_family = (rule for keys, rule in config.family.rules if any(each.startswith("parallel.") for each in keys))
    return batch % unit == 0 and not any(any(rule(config)) for rule in (_broken_by_mesh, *of_family))


def _broken_by_mesh(config: Config) -> Iterator[str]:
    degrees, num_layers = config.parallel, config.model.num_layers
    if config.world_size % config.model_degree:
        yield (
            f"parallel.tensor × pipe × trail = {degrees.tensor} × {degrees.pipe} × {degrees.trail} must divide "
            f"the number of ranks, {config.world_size}"
        )
    shards = {"sparsity.topology_shards": config.sparsity.topology_shards}
    for name, size in (config.family.divided_by_tensor(config) | shards).items():
        if size % degrees.tensor:
            yield f"parallel.tensor = {degrees.tensor} must divide {name} = {size}"
    if config.cuts_sequence and (length := config.family.positions(config)) % degrees.tensor:
        yield (
            f"parallel.sequence_parallel = true deals positions out to the tensor ranks: parallel.tensor = "
            f"{degrees.tensor} must divide the {length} of a text"
        )
    if config.trails.count % degrees.trail:
        yield f"parallel.trail = {degrees.trail} must divide trails.count = {config.trails.count}"
    if config.splits_trunk and config.train.micro_batch_size % degrees.trail:
        size = config.train.micro_batch_size
        near = nearest_numbers(size, lambda size: size % degrees.trail == 0)
        yield (
            f"parallel.trunk = 'split' deals a micro-batch out to the trail ranks: parallel.trail = {degrees.trail} "
            f"must divide train.micro_batch_size = {size}; nearest: {near}"
        )
    if degrees.pipe > num_layers:
        yield f"parallel.pipe = {degrees.pipe} must be at most model.num_layers = {num_layers}"
    if degrees.pipe > 1 and config.zero_stage > 1:
        yield (
            f"parallel.pipe = {degrees.pipe} allows ZeRO stages 0 and 1 (a limit of DeepSpeed), not "
            f"zero_optimization.stage = {config.zero_stage} of the DeepSpeed JSON"
        )


@reads("train.compile", *_DEGREES, "sparsity.structure", "sparsity.density")
def _one_graph_can_be(config: Config) -> Iterator[str]:
    """What a rank computes between two collectives could be one; ZeRO 3 and a cut model have some in every layer."""
    if not config.train.compile:
        return
    for axis in _AXES:
        if getattr(config.parallel, axis) > 1:
            yield f"train.compile = true needs parallel.{axis} = 1, not {getattr(config.parallel, axis)}"
    if config.zero_stage == 3:
        yield (
            "train.compile = true allows ZeRO stages 0, 1 and 2, not zero_optimization.stage = 3 of the DeepSpeed JSON"
        )
    structure = config.sparsity.structure
    if structure != "entries" and config.sparsity.density < 1:
        yield f"train.compile = true needs sparsity.structure = 'entries', not {structure!r} with its own products"
    if not config.family.compiles:
        yield f"train.compile = true is not for model.family = {config.family.name!r}, whose batch norms count batches"


@reads("train.keep_dense")
def _dense_copies_may_stay(config: Config) -> Iterator[str]:
    if config.train.keep_dense and config.zero_stage == 3:
        yield (
            "train.keep_dense = true allows ZeRO stages 0, 1 and 2, not zero_optimization.stage = 3 of the DeepSpeed "
            "JSON, which keeps no weight whole"
        )


_RULES = (
    _trails_fit,
    _exempt_weights_exist,
    _new_moments_can_be_had,
    _groups_have_norms,
    _density_falls,
    _nesterov_has_momentum,
    _mup_is_for_adamw,
    _length_is_said_once,
    _warmup_fits,
    _batch_divides,
    _one_graph_can_be,
    _dense_copies_may_stay,
)


def check(config: Config, wrong: set[str]) -> list[str]:
    """What is wrong with several settings together, a message each; rules that read a key of ``wrong`` are left out."""
    keys, mesh_fits = _mesh_fits
    mesh = ((*keys, *config.family.divided_by_tensor(config)), mesh_fits)
    sizes, groups_fit = _groups_fit
    of_groups = ((*sizes, *(f"model.{entry}" for entry in keys_of(config.model))), groups_fit)
    rules = (*_RULES, of_groups, mesh, *config.family.rules)
    return [message for keys, rule in rules if not wrong.intersection(keys) for message in rule(config)]


def _thin_blocks(config: Config) -> Iterator[str]:
    """Name the weight whose blocks are one input wide, as groups are, for want of a divisor, and a size with one."""
    sparsity, least = config.sparsity, {}
    if sparsity.structure != "blocks" or sparsity.density == 1:
        return
    for spec in config.family.weights(config):
        if spec.role in ("linear", "convolution") and not any(fnmatchcase(spec.name, each) for each in sparsity.exempt):
            inputs = {spec.real_columns(shard) for shard in range(spec.shards)} - {0, 1}
            least[spec.name] = max((next(n for n in range(2, i + 1) if i % n == 0) for i in inputs), default=0)
    name = max(least, key=least.get, default=None)
    if name and least[name] > sparsity.group_size:
        yield (
            f"sparsity.group_size = {sparsity.group_size}: blocks of {name} are one input wide, as groups are, for no "
            f"number from 2 to it divides the inputs of a shard; nearest: {least[name]}"
        )


_CHOICE = ("sparsity.drop", "sparsity.temperature", "sparsity.grow", "sparsity.regrow_from", "sparsity.new_moments")
_UPDATE = (*_CHOICE, "sparsity.drop_fraction", "sparsity.drop_schedule", "sparsity.stop_fraction")
_SPARSE = (
    "sparsity.distribution",
    "sparsity.structure",
    "sparsity.storage",
    "sparsity.exempt",
    "sparsity.update_every",
)


def warnings(config: Config) -> Iterator[str]:
    """Name the settings that differ from their defaults and will be ignored, and what makes them so."""
    sparsity, trails, train, run = config.sparsity, config.trails, config.train, config.run
    is_static, full = sparsity.update_every == 0, trails.fork == "embedding"
    betas, decays = ([f"train.{key}_{each}" for each in GROUPS] for key in ("betas", "weight_decay"))
    adamw, sgd = ("train.betas", *betas, "train.adam_eps"), ("train.momentum", "train.nesterov")
    of_trunk = ("train.lr_trunk", "train.betas_trunk", "train.weight_decay_trunk")
    of_falling = ("sparsity.density_stages", "sparsity.density_until")
    to_lowest = ("train.min_lr_ratio",)
    courses = {"steps": ("train.milestones", "train.lr_decay"), "cosine": to_lowest}
    courses["wsd"] = (*to_lowest, "train.decay_share")
    of_other_courses = {key for keys in courses.values() for key in keys} - {*courses[train.lr_schedule]}
    table = (
        (sparsity.density == 1, "sparsity.density = 1.0", (*_SPARSE, *_UPDATE)),
        (sparsity.density != 1 and is_static, "sparsity.update_every = 0", _UPDATE),
        (sparsity.start_density == 0, "sparsity.start_density = 0.0", of_falling),
        (sparsity.structure == "entries", "sparsity.structure = 'entries'", ("sparsity.group_size",)),
        (sparsity.drop != "soft_magnitude", f"sparsity.drop = {sparsity.drop!r}", ("sparsity.temperature",)),
        (sparsity.grow == "random", "sparsity.grow = 'random'", ("sparsity.regrow_from",)),
        (full and trails.layers != config.model.num_layers, "trails.fork = 'embedding'", ("trails.layers",)),
        (trails.count == 1, "trails.count = 1", ("trails.joint", "trails.joint_start")),
        (not trails.trained_mean, "trails.joint = 0.0", ("trails.joint_mean", "trails.joint_schedule")),
        (trails.joint_schedule == "constant", "trails.joint_schedule = 'constant'", ("trails.joint_start",)),
        (config.trunk_layers == 0, "the trails begin before the first block", of_trunk),
        (True, f"train.optimizer = {train.optimizer!r}", adamw if train.optimizer == "sgd" else sgd),
        (True, f"train.lr_schedule = {train.lr_schedule!r}", sorted(of_other_courses)),
        (train.weight_decay == 0, "train.weight_decay = 0.0", (*decays, "train.decay_vectors")),
        (train.average_decay == 0, "train.average_decay = 0.0", ("train.average_from",)),
        (train.precision == "bf16", "train.precision = 'bf16'", ("train.tf32",)),
        (train.compile, "train.compile = true", ("train.keep_dense",)),
        (config.parallel.tensor == 1, "parallel.tensor = 1", ("parallel.sequence_parallel",)),
        (config.parallel.trail == 1, "parallel.trail = 1", ("parallel.trunk",)),
        (config.parallel.trail > 1 and full, "trails.fork = 'embedding' leaves no trunk", ("parallel.trunk",)),
        (train.epochs > 0, f"train.epochs = {train.epochs}", ("train.steps",)),
        (run.stop_after >= train.steps and not train.epochs, f"train.steps = {train.steps}", ("run.stop_after",)),
    )
    for holds, because, keys in table:
        if holds:
            yield from ignored(config, because, *keys)
    yield from config.family.ignored(config)
    yield from _thin_blocks(config)
    never = sparsity.update_every > int(sparsity.stop_fraction * train.steps) or sparsity.update_every >= train.steps
    if sparsity.density != 1 and never and not train.epochs:
        yield (
            f"sparsity.update_every = {sparsity.update_every}: the topology is never updated in "
            f"train.steps = {train.steps} with sparsity.stop_fraction = {sparsity.stop_fraction}"
        )
    if run.keep_every and (not run.save_every or run.keep_every % run.save_every):
        yield (
            f"run.keep_every = {run.keep_every} is no multiple of run.save_every = {run.save_every}: "
            "it keeps only checkpoints whose steps are multiples of both"
        )


def with_tokens(config: Config) -> Config:
    """The config with the steps that ``train.tokens`` take, if it has them."""
    train = config.train
    if not train.tokens:
        return config
    of_step = train.batch_size * config.family.positions(config)
    return replace(config, train=replace(train, steps=-(-train.tokens // of_step)))


def with_epochs(config: Config, num_samples: int) -> Config:
    """The config with the steps that ``train.epochs`` passes over so many samples take; ConfigError if rules refuse."""
    train = config.train
    steps = max(1, round(train.epochs * num_samples / train.batch_size))
    resolved = replace(config, train=replace(train, steps=steps, epochs=0.0))
    problems = [f"{problem} (of train.epochs = {train.epochs})" for problem in check(resolved, set())]
    if problems:
        raise ConfigError(problems)
    return replace(resolved, train=replace(resolved.train, epochs=train.epochs))


def ignored(config: Config, because: str, *keys: str) -> Iterator[str]:
    """Name those of the ``keys`` that differ from their defaults and the recipe's, and why they change nothing."""
    recipe = config.family.recipes.get(config.train.recipe, {})
    for key in keys:
        name, entry = key.split(".")
        section = getattr(config, name)
        value = getattr(section, entry)
        if value != getattr(type(section), entry) and plain(value) != recipe.get(key):
            yield f"{key} = {value!r} is ignored: {because}"
