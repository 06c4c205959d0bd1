"""An evaluation as a table for the terminal."""

import math
from collections.abc import Mapping


def evaluation_table(result: Mapping, facts: Mapping[str, str] | None = None) -> str:
    """Lays out what `evaluate` returned, ending with what the ensemble gained.

    Args:
        result: See the family's `figures`.
        facts: More lines to show below, name to text (parameters, checkpoint, ...).

    Returns:
        Lines without colour and without a newline at the end.
    """
    trails = result["ppl_trails"]
    mean = sum(trails) / len(trails)
    rows = [(f"trail {number}", ppl) for number, ppl in enumerate(trails, 1)]
    if len(trails) > 1:
        rows += [
            ("mean of the trails", mean),
            ("ensemble, mean of logits", result["ppl_ensemble_logit"]),
            ("ensemble, mean of probabilities", result["ppl_ensemble_prob"]),
        ]
    lines = [("", "perplexity", "against a trail")]
    for name, ppl in rows:
        lines.append(
            (
                name,
                _number(ppl),
                _share(ppl, mean) if name.startswith("ensemble") else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    table = [f"{name:<{widths[0]}}  {ppl:>{widths[1]}}  {gain:>{widths[2]}}".rstrip() for name, ppl, gain in lines]
    rule = "-" * max(len(line) for line in table)
    table.insert(1, rule)
    if len(trails) > 1:
        table[1 + 1 + len(trails) : 1 + 1 + len(trails)] = [rule]
    notes = {"tokens": f"{result['tokens']:,}"}
    if len(trails) > 1:
        notes["ensemble gain"] = (
            f"{result['ensemble_gain']:.2f} perplexity (mean of the trails - mean of probabilities)"
        )
        notes["disagreement"] = f"{result['disagreement']:.1%} of tokens (two trails' likeliest tokens differ)"
    notes |= facts or {}
    width = max(len(name) for name in notes)
    return "\n".join(
        [
            *table,
            rule,
            *(f"{name + ':':<{width + 1}} {text}" for name, text in notes.items()),
        ]
    )


def _number(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.3g}"


def _share(value: float, reference: float) -> str:
    """Relative difference, as "-3.1 %"."""
    share = value / reference - 1
    return "-" if math.isnan(share) else f"{share:+.1%}".replace("%", " %")
