"""The figures of a full evaluation (see full.py) as tables for the terminal, to stand below those of report.py."""

from collections.abc import Iterable, Mapping

_COLUMNS = ("nll", "accuracy", "ECE", "adaptive ECE", "Brier")


def full_tables(figures: Mapping) -> str:
    """Lays out calibration, diversity, topology and shift.

    Args:
        figures: See full.py; topology and shift may be missing or None.

    Returns:
        Lines without a newline at the end.
    """
    blocks = [_calibration(figures), *_temperature(figures["calibration"].get("temperature"))]
    if len(figures["ppl_trails"]) > 1:
        blocks.append(_diversity(figures["diversity"]))
    blocks += [part(figures[key]) for key, part in (("topology", _topology), ("shift", _shift)) if figures.get(key)]
    return "\n\n".join(blocks)


def _calibration(figures: Mapping) -> str:
    scores = figures["calibration"]
    parts = [figures["nll"], figures["accuracy"], scores["ece"], scores["adaptive_ece"], scores["brier"]]
    return _table("calibration", _COLUMNS, _by_name(*parts))


def _temperature(scaling: Mapping | None) -> list[str]:
    if scaling is None:
        return []
    columns = ["temperature"]
    parts = [scaling["value"]]
    for label, figure in (("nll", "nll"), ("ECE", "ece"), ("Brier", "brier")):
        for when in ("before", "after"):
            columns.append(f"{label} {when}")
            parts.append(scaling[when][figure])
    title = f"temperature scaling, fitted on {scaling['fit_tokens']:,.0f} tokens, measured on {scaling['tokens']:,.0f}"
    return [title + "\n" + _table("", columns, _by_name(*parts))]


def _diversity(diversity: Mapping) -> str:
    lines = {
        "KL divergence": f"{diversity['kl_mean']:.4f} nats, mean over pairs of trails, both ways",
        "JS divergence": f"{diversity['js_mean']:.4f} nats, mean over pairs of trails",
        "entropy": f"{diversity['entropy_mean']:.4f} nats of the mean of probabilities",
        "  of the trails": f"{diversity['entropy_members']:.4f} nats, their mean (aleatoric)",
        "  mutual information": f"{diversity['mutual_information']:.4f} nats, the difference (epistemic)",
    }
    return _notes("diversity", lines)


def _topology(topology: Mapping) -> str:
    steps = topology["checkpoints"]
    lines = {
        "density": f"{topology['density']:.1%} of the sparse weights' entries are active",
        "ever active": f"{topology['ever_active']:.1%} in at least one of {len(steps)} checkpoints",
    }
    if topology["overlap"] is not None:
        chance = topology["overlap_chance"]
        lines["overlap"] = f"{topology['overlap']:.3f} of two trails' topologies (Jaccard; {chance:.3f} by chance)"
    for churn in topology["churn"]:
        lines[f"churn {churn['from']} to {churn['to']}"] = f"{churn['share']:.1%} of the slots moved"
    return _notes(f"topology, checkpoints of steps {', '.join(map(str, steps))}", lines)


def _shift(shift: Mapping) -> str:
    ppl = shift["eval"]["ppl_ensemble_prob"]
    sequences = shift["sequences"]
    rows = [
        [score.replace("_", " "), *(f"{shift[measure][score]:.4f}" for measure in ("auroc", "aupr", "fpr95"))]
        for score in shift["auroc"]
    ]
    title = (
        f"shift: {shift['against']}\n"
        f"{sequences['unshifted']:,} sequences and {sequences['shifted']:,} shifted ones, on which the ensemble's "
        f"perplexity is {ppl:,.2f}, its ECE {shift['eval']['calibration']['ece']['prob']:.4f}"
    )
    return title + "\n" + _table("told by", ("AUROC", "AUPR", "FPR95"), rows)


def _by_name(*parts: Mapping) -> list[list[str]]:
    """Rows of a name and a figure of each part, for the trails and, where there are several, the ensembles."""
    trails = zip(*(part["trails"] for part in parts), strict=True)
    rows = {f"trail {number}": list(values) for number, values in enumerate(trails, 1)}
    if len(rows) > 1:
        rows["mean of logits"] = [part["logit"] for part in parts]
        rows["mean of probabilities"] = [part["prob"] for part in parts]
    return [[name, *(f"{each:.4f}" for each in values)] for name, values in rows.items()]


def _table(corner: str, columns: Iterable[str], rows: list[list[str]]) -> str:
    lines = [[corner, *columns], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        f"{name:<{widths[0]}}  " + "  ".join(f"{each:>{width}}" for each, width in zip(rest, widths[1:], strict=True))
        for name, *rest in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def _notes(title: str, lines: Mapping[str, str]) -> str:
    width = max(len(name) for name in lines) + 1
    return "\n".join([title, "-" * len(title), *(f"{name + ':':<{width}} {text}" for name, text in lines.items())])
