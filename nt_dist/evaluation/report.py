"""An evaluation as tables for the terminal: without colour and without a newline at the end."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean as mean

from nt_dist.config.family import Family, Headline
from nt_dist.evaluation.evaluate import SOURCES


def evaluation_table(family: Family, figures: Mapping, facts: Mapping[str, str] | None = None) -> str:
    """Lays out what `evaluate` returned, ending with what the ensemble gained; below it the other figures of full.py.

    ``facts`` are more lines to show, name to text (parameters, checkpoint, ...).
    """
    headline = family.headline(figures)
    rows = [[f"trail {number}", headline.text(value), ""] for number, value in enumerate(headline.trails, 1)]
    notes = {headline.samples: f"{figures[headline.samples]:,}"}
    if several := len(rows) > 1:
        rows.append(["mean of the trails", headline.text(headline.mean), ""])
        for name, value in (("logits", headline.logit), ("probabilities", headline.prob)):
            share = value / headline.mean - 1
            gain = "-" if math.isnan(share) else f"{share:+.1%}".replace("%", " %")
            rows.append([f"ensemble, mean of {name}", headline.text(value), gain])
        notes |= gain_notes(headline, figures)
    title, rule, *lines = _table("", (headline.name, "against a trail"), rows)
    if several:
        lines.insert(len(headline.trails), rule)
    parts = ["\n".join([title, rule, *lines, rule, *_aligned(notes | dict(facts or {}))])]
    if SOURCES in figures:
        parts.append("\n".join(_sources(family, figures[SOURCES])))
    if "calibration" in figures:
        parts.append(full_tables(family, figures))
    if corruptions := figures.get("corruptions"):
        parts.append("\n".join(_corruptions(corruptions)))
    return "\n\n".join(parts)


def samples_used(family: Family, used: int, there: int) -> str:
    """On how many of how many samples an evaluation was."""
    return f"{used:,} of {there:,} {family.samples_name}{', spread over all' if used < there else ''}"


def full_tables(family: Family, figures: Mapping) -> str:
    """Lays out calibration, diversity, topology and shift; topology and shift may be missing or None."""
    headline = family.headline(figures)
    blocks = [_by_predictor("calibration", scores(figures))]
    if scaling := figures["calibration"].get("temperature"):
        blocks.append(_temperature(scaling, headline.samples))
    if len(headline.trails) > 1:
        blocks.append(_aligned(diversity_notes(figures["diversity"]), "diversity"))
    if topology := figures.get("topology"):
        title = f"topology, checkpoints of steps {', '.join(map(str, topology['checkpoints']))}"
        blocks.append(_aligned(topology_notes(topology), title))
    if shift := figures.get("shift"):
        blocks.append(_shift(shift, family))
    return "\n\n".join("\n".join(block) for block in blocks)


def scores(figures: Mapping) -> dict[str, Mapping]:
    """What a table says of each predictor beside the headline, by column."""
    calibration = figures["calibration"]
    columns = {"nll": figures["nll"], "accuracy": figures["accuracy"], "top-5": figures.get("top5")}
    columns |= {"ECE": calibration["ece"], "adaptive ECE": calibration["adaptive_ece"], "Brier": calibration["brier"]}
    return {name: each for name, each in columns.items() if each}


def by_row(columns: Sequence[Mapping]) -> dict[str, list]:
    """Figures of predictors by row: of each trail, and of both means where there are several; a value a column."""
    trails = zip(*(each["trails"] for each in columns), strict=True)
    rows = {f"trail {number}": list(values) for number, values in enumerate(trails, 1)}
    if len(rows) > 1:
        for name, key in (("logits", "logit"), ("probabilities", "prob")):
            rows[f"mean of {name}"] = [each[key] for each in columns]
    return rows


def gain_notes(headline: Headline, figures: Mapping) -> dict[str, str]:
    """What several trails gain, and how often they differ."""
    change = f"{headline.name} {headline.text(headline.mean)} of a trail, {headline.text(headline.prob)} of all"
    return {
        "ensemble gain": f"{headline.gain:.4f} nats a {headline.sample} ({change})",
        "disagreement": f"{figures['disagreement']:.1%} of {headline.samples} (two trails' answers differ)",
    }


def diversity_notes(diversity: Mapping) -> dict[str, str]:
    """How differently several trails predict."""
    return {
        "KL divergence": f"{diversity['kl_mean']:.4f} nats, mean over pairs of trails, both ways",
        "JS divergence": f"{diversity['js_mean']:.4f} nats, mean over pairs of trails",
        "entropy": f"{diversity['entropy_mean']:.4f} nats of the mean of probabilities",
        "  of the trails": f"{diversity['entropy_members']:.4f} nats, their mean (aleatoric)",
        "  mutual information": f"{diversity['mutual_information']:.4f} nats, the difference (epistemic)",
    }


def topology_notes(topology: Mapping) -> dict[str, str]:
    """How dense topologies are, what they have in common and how they moved."""
    kept = len(topology["checkpoints"])
    lines = {
        "density": f"{topology['density']:.1%} of the sparse weights' entries are active",
        "ever active": f"{topology['ever_active']:.1%} in at least one of {kept} checkpoints",
    }
    if topology["overlap"] is not None:
        chance = topology["overlap_chance"]
        lines["overlap"] = f"{topology['overlap']:.3f} of two trails' topologies (Jaccard; {chance:.3f} by chance)"
    churn = {f"churn {each['from']} to {each['to']}": each["share"] for each in topology["churn"]}
    return lines | {name: f"{share:.1%} of the slots moved" for name, share in churn.items()}


def _sources(family: Family, sources: Mapping[str, Mapping]) -> list[str]:
    """The headline on each source of a mixture."""
    found = {name: family.headline(each) for name, each in sources.items()}
    first = next(iter(found.values()))
    columns = [f"trail {number}" for number in range(1, len(first.trails) + 1)]
    columns += ["mean of logits", "mean of probabilities"] if len(first.trails) > 1 else []
    rows = []
    for name, own in found.items():
        values = [*own.trails, own.logit, own.prob][: len(columns)]
        rows.append([name, *map(own.text, values), f"{sources[name][own.samples]:,}"])
    return _table(f"{first.name} by source", [*columns, first.samples], rows)


def _temperature(scaling: Mapping, samples: str) -> list[str]:
    parts = {"temperature": scaling["value"]}
    for label in ("nll", "ECE", "Brier"):
        parts |= {f"{label} {when}": scaling[when][label.lower()] for when in ("before", "after")}
    parted = f"fitted on {scaling['fit_tokens']:,.0f} {samples}, measured on {scaling['tokens']:,.0f}"
    return [f"temperature scaling, {parted}", *_by_predictor("", parts)]


def _shift(shift: Mapping, family: Family) -> list[str]:
    counts, measures = shift["samples"], ("auroc", "aupr", "fpr95")
    rows = [
        [score.replace("_", " "), *(f"{shift[measure][score]:.4f}" for measure in measures)] for score in shift["auroc"]
    ]
    outcome = f"{counts['unshifted']:,} {family.samples_name} and {counts['shifted']:,} shifted ones"
    if shifted := shift["eval"]:
        headline, ece = family.headline(shifted), shifted["calibration"]["ece"]["prob"]
        outcome += f", on which the ensemble's {headline.name} is {headline.text(headline.prob)}, its ECE {ece:.4f}"
    else:
        outcome += " of other classes"
    return [f"shift: {shift['against']}", outcome, *_table("told by", map(str.upper, measures), rows)]


def _corruptions(found: Mapping) -> list[str]:
    """The accuracy of the mean of probabilities at each level, and means over the levels."""

    def row(name: str, levels: Sequence[Mapping]) -> list[str]:
        accuracies, errors = ([each[figure]["prob"] for each in levels] for figure in ("accuracy", "ece"))
        trails = [mean(each["accuracy"]["trails"]) for each in levels]
        by_level = [f"{each:.1%}" for each in accuracies] if len(levels) > 1 else [""] * len(found["levels"])
        return [name, *by_level, f"{mean(accuracies):.1%}", f"{mean(trails):.1%}", f"{mean(errors):.4f}"]

    rows = [row(kind.replace("_", " "), levels) for kind, levels in found["kinds"].items()]
    rows += [row("mean of all", [found["mean"]]), row("not corrupted", [found["clean"]])]
    columns = [f"{each:g}" for each in found["levels"]]
    title = f"corruptions: accuracy of the mean of probabilities at each {found['level']}, and over all of them"
    return [title, *_table(found["level"], [*columns, "mean", "of a trail", "ECE"], rows)]


def _by_predictor(corner: str, columns: Mapping[str, Mapping]) -> list[str]:
    rows = by_row([*columns.values()])
    return _table(corner, columns, [[name, *(f"{each:.4f}" for each in values)] for name, values in rows.items()])


def _table(corner: str, columns: Iterable[str], rows: list[list[str]]) -> list[str]:
    """A heading, a rule and the rows."""
    lines = [[corner, *columns], *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = [
        "  ".join([name.ljust(first), *(each.rjust(width) for each, width in zip(rest, others, strict=True))]).rstrip()
        for name, *rest in lines
    ]
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def _aligned(notes: Mapping[str, str], title: str = "") -> list[str]:
    """Names and texts in two columns, perhaps below a title."""
    width = max(map(len, notes)) + 1
    heading = [title, "-" * len(title)] if title else []
    return heading + [f"{name + ':':<{width}} {text}" for name, text in notes.items()]
