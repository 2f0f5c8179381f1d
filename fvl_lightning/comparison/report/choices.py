"""Sections of a report about what was chosen before the comparison, and how often the test split was used."""

from fvl_lightning.comparison.report.tables import metric_title
from fvl_lightning.comparison.result_files.comparison import RepeatedAccess, SplitAccess, Tuning
from fvl_lightning.reporting.tables import ABSENT, Grid


def access_text(access: SplitAccess, with_tasks: bool = False) -> str:
    """Returns when and how often the cells were scored on the test split; empty where that was not logged.

    Args:
        access: the log.
        with_tasks: whether the cells were scored on tasks too.
    """
    if access.first is None or access.last is None:
        return ""
    first, last = _time(access.first), _time(access.last)
    when = f"at {first}" if first == last else f"between {first} and {last}"
    times = f"{access.readings} time{'s' if access.readings > 1 else ''} {when} (UTC)"
    what = "test data" if with_tasks else "test split"
    parts = [
        f"The {what} was read {times}, by each cell after its training; no trained weight or setting was chosen by it."
    ]
    if access.again:
        again = ", ".join(_again(cell, repeated) for cell, repeated in access.again.items())
        parts.append(f"It was read more than once by {again}.")
    if access.others:
        parts.append(f"It was also read by runs that are no longer compared: {', '.join(access.others)}.")
    for report in access.earlier:
        parts.append(f"A report was made at {_time(report.time)}; changed since: {', '.join(report.changed)}.")
    reconfigured = any(repeated.configurations > 1 for repeated in access.again.values())
    if access.others or access.earlier or reconfigured:
        parts.append(
            "**The comparison was changed after its test scores could be seen.** If they led to the change, the "
            "verdicts claim too much; new seeds and other test images would give a fair test."
        )
    return " ".join(parts)


def tuning_grids(tuning: Tuning | None) -> list[Grid]:
    """Returns a table of every arm's scores with every learning rate; none where the rates were given."""
    if tuning is None:
        return []
    rows = [
        [
            arm,
            *(ABSENT if score is None else f"{score:.3f}" for score in tried.scores.values()),
            f"x {tried.chosen:g}",
            ", ".join(f"{stage} {rate:g}" for stage, rate in tried.learning_rates.items()),
        ]
        for arm, tried in tuning.arms.items()
    ]
    seeds = tuning.seeds
    note = (
        f"{metric_title(tuning.metric)}, on the validation split, with seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}, which no verdict uses. Every arm tried its stages' own learning rates times "
        "each of these factors, and was then trained with the best one; of equal ones with the smallest."
    )
    if edge := [arm for arm, tried in tuning.arms.items() if tried.edge]:
        note += f" At the edge of the grid, so that a better one may lie beyond it: {', '.join(edge)}."
    for arm, tried in tuning.arms.items():
        note += "".join(f" {arm} failed with x {factor}: {reason}." for factor, reason in tried.failed.items())
    header = ["arm", *(f"x {factor:g}" for factor in tuning.factors), "taken", "learning rates"]
    return [Grid("Learning rates", header, rows, note)]


def _time(moment: str) -> str:
    return moment.replace("T", " ").removesuffix("+00:00")


def _again(cell: str, repeated: RepeatedAccess) -> str:
    configurations = repeated.configurations
    several = f", of {configurations} configurations" if configurations > 1 else ""
    return f"{cell} ({repeated.readings} times{several})"
