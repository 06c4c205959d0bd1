"""An evaluation as tables for the terminal: without colour and without a newline at the end."""

import math
from collections.abc import Iterable, Mapping

from nt_dist.config.family import Family


def evaluation_table(family: Family, figures: Mapping, facts: Mapping[str, str] | None = None) -> str:
    """Lays out what `evaluate` returned, ending with what the ensemble gained.

    Args:
        family: Whose model it is.
        figures: See the family's `figures`.
        facts: More lines to show below, name to text (parameters, checkpoint, ...).
    """
    headline = family.headline(figures)
    several = len(headline.trails) > 1
    rows = [[f"trail {number}", headline.text(value), ""] for number, value in enumerate(headline.trails, 1)]
    notes = {headline.samples: f"{figures[headline.samples]:,}"}
    if several:
        rows.append(["mean of the trails", headline.text(headline.mean), ""])
        for name, value in (("logits", headline.logit), ("probabilities", headline.prob)):
            share = value / headline.mean - 1
            gain = "-" if math.isnan(share) else f"{share:+.1%}".replace("%", " %")
            rows.append([f"ensemble, mean of {name}", headline.text(value), gain])
        parts = ["mean of the trails", "mean of probabilities"]
        difference = " - ".join(parts if headline.lower_is_better else parts[::-1])
        notes["ensemble gain"] = f"{headline.gain:.2f} {headline.name} ({difference})"
        notes["disagreement"] = (
            f"{figures['disagreement']:.1%} of {headline.samples} (two trails' likeliest {headline.samples} differ)"
        )
    lines = _table("", (headline.name, "against a trail"), rows)
    rule = lines[1]
    if several:
        lines.insert(2 + len(headline.trails), rule)
    return "\n".join([*lines, rule, *_aligned({**notes, **(facts or {})})])


def full_tables(family: Family, figures: Mapping) -> str:
    """Lays out calibration, diversity, topology and shift, to stand below those of :func:`evaluation_table`.

    Args:
        family: Whose model it is.
        figures: See full.py; topology and shift may be missing or None.
    """
    scores = figures["calibration"]
    parts = {"nll": figures["nll"], "accuracy": figures["accuracy"]}
    parts |= {"ECE": scores["ece"], "adaptive ECE": scores["adaptive_ece"], "Brier": scores["brier"]}
    blocks = [_table("calibration", parts, _by_name(parts))]
    if scaling := scores.get("temperature"):
        blocks.append(_temperature(scaling))
    if len(figures["nll"]["trails"]) > 1:
        blocks.append(_diversity(figures["diversity"]))
    if figures.get("topology"):
        blocks.append(_topology(figures["topology"]))
    if figures.get("shift"):
        blocks.append(_shift(family, figures["shift"]))
    return "\n\n".join("\n".join(block) for block in blocks)


def _temperature(scaling: Mapping) -> list[str]:
    parts = {"temperature": scaling["value"]}
    for label, figure in (("nll", "nll"), ("ECE", "ece"), ("Brier", "brier")):
        parts |= {f"{label} {when}": scaling[when][figure] for when in ("before", "after")}
    title = f"temperature scaling, fitted on {scaling['fit_tokens']:,.0f} tokens, measured on {scaling['tokens']:,.0f}"
    return [title, *_table("", parts, _by_name(parts))]


def _diversity(diversity: Mapping) -> list[str]:
    lines = {
        "KL divergence": f"{diversity['kl_mean']:.4f} nats, mean over pairs of trails, both ways",
        "JS divergence": f"{diversity['js_mean']:.4f} nats, mean over pairs of trails",
        "entropy": f"{diversity['entropy_mean']:.4f} nats of the mean of probabilities",
        "  of the trails": f"{diversity['entropy_members']:.4f} nats, their mean (aleatoric)",
        "  mutual information": f"{diversity['mutual_information']:.4f} nats, the difference (epistemic)",
    }
    return ["diversity", "-" * len("diversity"), *_aligned(lines)]


def _topology(topology: Mapping) -> list[str]:
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
    title = f"topology, checkpoints of steps {', '.join(map(str, steps))}"
    return [title, "-" * len(title), *_aligned(lines)]


def _shift(family: Family, shift: Mapping) -> list[str]:
    headline, sequences = family.headline(shift["eval"]), shift["sequences"]
    rows = [
        [score.replace("_", " "), *(f"{shift[measure][score]:.4f}" for measure in ("auroc", "aupr", "fpr95"))]
        for score in shift["auroc"]
    ]
    return [
        f"shift: {shift['against']}",
        f"{sequences['unshifted']:,} sequences and {sequences['shifted']:,} shifted ones, on which the ensemble's "
        f"{headline.name} is {headline.text(headline.prob)}, its ECE {shift['eval']['calibration']['ece']['prob']:.4f}",
        *_table("told by", ("AUROC", "AUPR", "FPR95"), rows),
    ]


def _by_name(parts: Mapping[str, Mapping]) -> list[list[str]]:
    """Rows of a name and a figure of each part, for the trails and, where there are several, the ensembles."""
    trails = zip(*(part["trails"] for part in parts.values()), strict=True)
    rows = {f"trail {number}": list(values) for number, values in enumerate(trails, 1)}
    if len(rows) > 1:
        for name, key in (("logits", "logit"), ("probabilities", "prob")):
            rows[f"mean of {name}"] = [part[key] for part in parts.values()]
    return [[name, *(f"{each:.4f}" for each in values)] for name, values in rows.items()]


def _table(corner: str, columns: Iterable[str], rows: list[list[str]]) -> list[str]:
    """A heading, a rule and the rows."""
    lines = [[corner, *columns], *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = [
        "  ".join(
            [f"{name:<{first}}", *(f"{each:>{width}}" for each, width in zip(rest, others, strict=True))]
        ).rstrip()
        for name, *rest in lines
    ]
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def _aligned(notes: Mapping[str, str]) -> list[str]:
    width = max(map(len, notes)) + 1
    return [f"{name + ':':<{width}} {text}" for name, text in notes.items()]
