"""The part of a comparison's report that says what was chosen before it, and how often the test split was read."""

from collections.abc import Mapping
from typing import Any

from fvl_lightning.comparison.report.tables import ABSENT, Grid, metric_words


def readings_words(readings: Mapping[str, Any]) -> str:
    """When and how often the cells read the test split.

    Args:
        readings: `first` and `last` (ISO, UTC; None where no reading was noted), `readings`, `again`
            {cell: {readings, configurations}}, `others`, the folders of what is no cell any more, and `earlier`
            [{time, changed}], the reports of other cells.
    """
    if not readings["readings"]:
        return ""
    first, last = _shown(readings["first"]), _shown(readings["last"])
    when = f"at {first}" if first == last else f"between {first} and {last}"
    count = readings["readings"]
    times = f"{count} time{'s' if count > 1 else ''} {when} (UTC)"
    parts = [
        f"The test split was read {times}, by each cell after its training, and nothing that is trained was chosen by "
        "it."
    ]
    if readings["again"]:
        again = ", ".join(_again(cell, found) for cell, found in readings["again"].items())
        parts.append(f"Read more than once by {again}.")
    if readings["others"]:
        parts.append(f"Read before by what is no longer compared: {', '.join(readings['others'])}.")
    for report in readings["earlier"]:
        parts.append(f"A report was made at {_shown(report['time'])}; changed since: {', '.join(report['changed'])}.")
    reconfigured = any(found["configurations"] > 1 for found in readings["again"].values())
    if readings["others"] or readings["earlier"] or reconfigured:
        parts.append(
            "**The comparison was changed after its test scores could be seen.** Where they led to the change, the "
            "verdicts claim too much; new seeds and other test images would tell."
        )
    return " ".join(parts)


def tuning_grids(comparison: Mapping[str, Any]) -> list[Grid]:
    """Every arm's score with every learning rate, and which was taken; none where the rates were given.

    `comparison["tuning"]` has `seeds`, `factors`, `metric` and `arms` {arm: scores {factor: score or None}, failed
    {factor: words}, chosen, edge, learning_rates {stage: rate}}, or is None.
    """
    tuning = comparison["tuning"]
    if tuning is None:
        return []
    arms = tuning["arms"]
    rows = [
        [
            arm,
            *(ABSENT if score is None else f"{score:.3f}" for score in found["scores"].values()),
            f"x {found['chosen']:g}",
            ", ".join(f"{stage} {rate:g}" for stage, rate in found["learning_rates"].items()),
        ]
        for arm, found in arms.items()
    ]
    seeds = tuning["seeds"]
    note = (
        f"{metric_words(tuning['metric'])}, on the validation split, with seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}, which no verdict uses. Every arm tried its stages' own learning rates times "
        "each of these, and was then trained with the best; of equal ones with the smallest."
    )
    if edge := [arm for arm, found in arms.items() if found["edge"]]:
        note += f" At the edge of the grid, so that a better one may lie beyond it: {', '.join(edge)}."
    for arm, found in arms.items():
        note += "".join(f" {arm} failed with x {factor}: {words}." for factor, words in found["failed"].items())
    header = ["arm", *(f"x {factor:g}" for factor in tuning["factors"]), "taken", "learning rates"]
    return [Grid("Learning rates", header, rows, note)]


def _shown(moment: str) -> str:
    return moment.replace("T", " ").removesuffix("+00:00")


def _again(cell: str, found: Mapping[str, int]) -> str:
    configurations = found["configurations"]
    of = f", of {configurations} configurations" if configurations > 1 else ""
    return f"{cell} ({found['readings']} times{of})"
