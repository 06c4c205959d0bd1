"""Rules over several settings of a config: each says which keys it reads and what is wrong with them.

Rules on one value stand with the setting in ``settings.py``, those of the mesh in ``layouts.py``, those of the
DeepSpeed JSON in ``deepspeed_json.py``.
"""

from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatchcase

from nt_dist.config import layouts
from nt_dist.config.names import hint, nearest, nearest_numbers
from nt_dist.config.settings import Config

Check = Callable[[Config], Iterator[str]]
_RULES: list[tuple[tuple[str, ...], Check]] = []


def check(config: Config, wrong: Collection[str]) -> list[str]:
    """Check the rules over several settings.

    Args:
        config: Settings which are right each for itself, DeepSpeed JSON resolved.
        wrong: Keys that are not and have their defaults here; rules that read them are left out.

    Returns:
        One message for each thing that is wrong.
    """
    mesh = ((*layouts.KEYS, *config.family.divided_by_tensor(config)), layouts.check)
    return [
        message
        for keys, rule in (*_RULES, mesh, *config.family.rules)
        if not set(wrong) & set(keys)
        for message in rule(config)
    ]


def _reads(*keys: str) -> Callable[[Check], Check]:
    """Register a rule that reads these keys."""

    def register(rule: Check) -> Check:
        _RULES.append((keys, rule))
        return rule

    return register


@_reads("trails.layers", "trails.fork", "model.num_layers")
def _trails_fit(config: Config) -> Iterator[str]:
    if config.trails.fork == "blocks" and config.trails.layers > config.model.num_layers:
        yield (
            f"trails.layers = {config.trails.layers} must be at most model.num_layers = {config.model.num_layers}: "
            "a trail is the last blocks of the model"
        )


@_reads("sparsity.exempt", "model.num_layers")
def _exempt_weights_exist(config: Config) -> Iterator[str]:
    if not config.sparsity.exempt:
        return
    names = config.family.weight_names(config)
    for pattern in config.sparsity.exempt:
        if not any(fnmatchcase(name, pattern) for name in names):
            yield f"sparsity.exempt: no weight is named {pattern!r}{hint(nearest(pattern, names))}"


@_reads("sparsity.grow", "sparsity.new_moments")
def _moments_have_their_gradient(config: Config) -> Iterator[str]:
    if config.sparsity.grow == "random" and config.sparsity.new_moments == "gradient" and config.sparsity.update_every:
        yield (
            "sparsity.new_moments = 'gradient' needs sparsity.grow = 'gradient', not 'random', which looks at no "
            "dense gradient; set new_moments to 'zero' or 'mean'"
        )


@_reads("train.optimizer", "sparsity.new_moments", "sparsity.update_every")
def _a_second_moment_is_there(config: Config) -> Iterator[str]:
    if config.train.optimizer == "sgd" and config.sparsity.new_moments != "zero" and config.sparsity.update_every:
        yield (
            f"sparsity.new_moments = {config.sparsity.new_moments!r} is a second moment, which train.optimizer = 'sgd' "
            "does not have; set new_moments to 'zero'"
        )


@_reads("train.optimizer", "train.momentum", "train.nesterov")
def _nesterov_has_momentum(config: Config) -> Iterator[str]:
    if config.train.optimizer == "sgd" and config.train.nesterov and config.train.momentum == 0:
        yield "train.nesterov = true needs train.momentum above 0"


@_reads("train.batch_size", "train.micro_batch_size", "parallel.tensor", "parallel.pipe", "parallel.trail")
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


@_reads("train.steps", "train.warmup_steps")
def _warmup_fits(config: Config) -> Iterator[str]:
    if config.train.warmup_steps > config.train.steps:
        yield f"train.warmup_steps = {config.train.warmup_steps} must be at most train.steps = {config.train.steps}"
