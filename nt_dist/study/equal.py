"""Gives the runs of a plan as many steps as make them equal in tokens, in operations or in time."""

from collections.abc import Callable

from nt_dist.errors import ConfigError, RunError
from nt_dist.model.flops import training_flops
from nt_dist.study.plan import Plan, PlannedModel, PlannedRun, warmup_in_proportion
from nt_dist.study.training import is_done
from nt_dist.training.metrics_log import METRICS, read_metrics, training_seconds

_BEFORE, _TIMED = 10, 50  # steps before the clock starts, which compile and fill caches, and at least so many after it
EQUAL = {"tokens": "tokens", "flops": "training FLOP, sparse-effective", "time": "time of training, by the clock"}


def equalized(plan: Plan, by: str, to: PlannedModel, train: Callable[[PlannedRun], None] | None) -> Plan:
    """Return the plan with so many steps, and a warm-up in proportion, that each run costs what ``to`` does.

    ``by`` is one of EQUAL. For "time", ``train`` trains the first steps of everything that is tried, in a folder of its
    own that is kept; None: it has been done before. ``to`` itself, the first thing tried for it, keeps its steps.
    """
    first = next(iter(to.tried.values()))[0]
    if epochs := [run.name for run in (first, *plan.runs.values()) if run.config.train.epochs]:
        raise ConfigError([f"train.epochs of {epochs[0]} must be 0: equal {EQUAL[by]} are a number of train.steps"])
    budget = _cost_a_step(first, by, train) * first.config.train.steps

    def change(runs: list[PlannedRun]) -> list[PlannedRun]:
        steps = max(1, round(budget / _cost_a_step(runs[0], by, train)))
        warmup = warmup_in_proportion(runs[0].config.train, steps)
        return [run.but({"train.steps": steps}, {"train.warmup_steps": warmup}) for run in runs]

    return plan.each(change)


def _cost_a_step(run: PlannedRun, by: str, train: Callable[[PlannedRun], None] | None) -> float:
    config = run.config
    if by == "time":
        return _seconds_a_step(run, train)
    tokens = config.train.batch_size * config.family.positions(config)
    return tokens * (training_flops(config) if by == "flops" else 1)


def _seconds_a_step(run: PlannedRun, train: Callable[[PlannedRun], None] | None) -> float:
    """Time its first steps, a topology update among them."""
    stop = min(_BEFORE + max(_TIMED, run.config.sparsity.update_every), run.config.train.steps)
    quiet = {"run.log_every": _BEFORE, "run.eval_every": 0, "run.save_every": 0}
    timed = run.but({"run.stop_after": stop}, quiet)
    if train:
        train(timed)
    elif not is_done(timed):
        raise RunError(f"{timed.name}: has not been trained, and says how long a step takes")
    records = read_metrics(timed.dir / METRICS)
    logged = [record["step"] for record in records if "tokens_per_second" in record]
    start = logged[0] if len(logged) > 1 else 0
    return (training_seconds(records, logged[-1]) - training_seconds(records, start)) / (logged[-1] - start)
