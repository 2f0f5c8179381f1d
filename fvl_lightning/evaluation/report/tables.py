"""Tables of an evaluation's report: scores, differences, controls, corruptions and slices."""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.metrics.averages import OVER_KINDS
from fvl_lightning.evaluation.report.assessment import OF_PRIOR, TaskAssessment, VariedScore
from fvl_lightning.evaluation.robustness.corruptions import CORRUPTIONS, STRENGTHS
from fvl_lightning.evaluation.robustness.slices import SliceScores
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score, interval, signed

AS_IT_IS = "as it is"
MANY_EMPTY = 0.1
"""Share of empty answers above which a report has a warning."""


def scored(found: Estimate) -> str:
    """Returns a score with its interval."""
    low, high = found.interval
    return f"{format_score(found.value)} ({low:.3f} to {high:.3f})" if isfinite(low) else format_score(found.value)


def changed(found: Estimate) -> str:
    """Returns a difference with its interval."""
    bounds = f" ({interval(found.interval)})" if isfinite(found.interval[0]) else ""
    return f"{signed(found.value)}{bounds}"


def scores_grid(tasks: Sequence[TaskAssessment]) -> Grid:
    """Returns a row for each task: the score of every model, the answer prior, and published scores."""
    models = list(dict.fromkeys(model for task in tasks for model in task.statistics.scores))
    published = list(dict.fromkeys(model for task in tasks for model in task.published))
    rows = []
    for task in tasks:
        own, prior, size = task.statistics.scores, task.prior, task.statistics
        rows.append(
            [
                task.title,
                task.described,
                *(scored(own[model]) if model in own else ABSENT for model in models),
                scored(prior),
                *(format_score(task.published.get(model)) for model in published),
                f"{size.questions:,}",
                f"{size.clusters:,}",
            ]
        )
    header = ["task", "number", *models, OF_PRIOR, *(f"{model} (published)" for model in published), "questions",
              "clusters"]  # fmt: skip
    return Grid("Scores", header, rows, " ".join(_remarks(tasks)))


def _remarks(tasks: Sequence[TaskAssessment]) -> Iterator[str]:
    """Yields what limits the scores, and what may be wrong with them."""
    for task in tasks:
        if isfinite(task.attainable):
            yield f"On {task.title}, at most {format_score(task.attainable)} is attainable, since references disagree."
        for model, empty in task.empty.items():
            if empty > MANY_EMPTY * task.statistics.questions:
                asked = plural(task.statistics.questions, "question")
                yield f"Warning: on {task.title}, {model} gives an empty answer to {empty:,} of {asked}."


def differences_grid(tasks: Sequence[TaskAssessment]) -> list[Grid]:
    """Returns one table with a row for each pair of models on each task; an empty list for a single model."""
    rows = [
        [
            task.title,
            pair.model,
            pair.baseline,
            signed(pair.difference.value),
            interval(pair.difference.interval),
            _found(pair.difference, task.higher_is_better),
        ]
        for task in tasks
        for pair in task.statistics.differences
    ]
    note = (
        "The score of a model minus that of the other one, on the same questions. Each interval holds for its pair and "
        "task alone: of twenty that show a difference of equal models, one is expected by chance. Two models are not "
        "separated where the interval includes 0."
    )
    header = ["task", "model", "minus", "difference", "95 % interval", "the model is"]
    return [Grid("Differences", header, rows, note)] if rows else []


def _found(difference: Estimate, higher_is_better: bool) -> str:
    """Returns what a difference shows; its absence is shown where there is no interval."""
    if not isfinite(difference.interval[0]):
        return ABSENT
    if not difference.excludes_zero:
        return "not separated"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def controls_grid(task: TaskAssessment) -> list[Grid]:
    """Returns one table of the models under each control; an empty list without controls."""
    controls = list(dict.fromkeys(row.variation for row in task.varied if row.corruption is None))
    if not controls:
        return []
    models = list(task.statistics.scores)
    found = {(row.variation, row.model): row for row in task.varied}
    rows = [[AS_IT_IS, *(scored(task.statistics.scores[model]) for model in models)]]
    for control in controls:
        rows.append([control, *_cells(found.get((control, model)) for model in models)])
    rows.append([OF_PRIOR, *[scored(task.prior)] * len(models)])
    rows.append([f"{AS_IT_IS}, minus the {OF_PRIOR}", *(changed(task.above_prior[model]) for model in models)])
    note = "Behind a control's score stands its change from the task as it is, with the interval of the change."
    return [Grid(f"{task.title}: controls", ["asked", *models], rows, note)]


def _cells(rows: Iterable[VariedScore | None]) -> list[str]:
    return [f"{format_score(row.score.value)}, {changed(row.change)}" if row else ABSENT for row in rows]


def corruption_grids(task: TaskAssessment) -> list[Grid]:
    """Returns a table for each model: a row for each corruption, a column for each strength."""
    grids = []
    for model, clean in task.statistics.scores.items():
        found = {row.corruption: row for row in task.varied if row.model == model and row.corruption}
        rows = []
        for name, corruption in CORRUPTIONS.items():
            if any((name, strength) in found for strength in STRENGTHS):
                cells = (found.get((name, strength)) for strength in STRENGTHS)
                scores = (format_score(cell.score.value) if cell else ABSENT for cell in cells)
                rows.append([corruption.title, format_score(clean.value), *scores])
        if rows:
            header = ["corruption", "none", *(f"strength {strength}" for strength in STRENGTHS)]
            grids.append(Grid(f"{task.title}: {model} on corrupted images", header, rows))
    return grids


def slice_grids(task: TaskAssessment) -> list[Grid]:
    """Returns a table for each field: its values with the score of every model, and the gaps."""
    fields = list(dict.fromkeys(found.field for found in task.slices))
    return [_slice_grid(task, [found for found in task.slices if found.field == field]) for field in fields]


def _slice_grid(task: TaskAssessment, models: Sequence[SliceScores]) -> Grid:
    first = models[0]
    rows = []
    for place, group in enumerate(first.groups):
        scores = (scored(found.groups[place].score) for found in models)
        rows.append([group.value, f"{group.questions:,}", f"{group.clusters:,}", *scores])
    rows.append(["all of these", "", "", *(scored(found.overall) for found in models)])
    rows.append(["all minus worst", "", "", *(_gap(found.worst_gap, found.worst) for found in models)])
    rows.append(["best minus worst", "", "", *(_gap(found.spread, f"{found.best}, {found.worst}") for found in models)])
    note = (
        "A group's interval holds for it alone. The intervals of the two gaps account for choosing the worst and the "
        "best group: they are derived from intervals that hold for all groups at once."
    )
    if task.number == OVER_KINDS:
        note += " Here every question has the same weight, whatever its kind."
    header = [first.field, "questions", "clusters", *(found.model for found in models)]
    return Grid(f"{task.title}: by {first.field}", header, rows, note)


def _gap(found: Estimate, groups: str) -> str:
    return f"{scored(found)}, {groups}" if isfinite(found.value) else ABSENT
