"""Sections of a report about the scores on tasks: which were asked, their family of tests, and their intervals."""

from math import isfinite

from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import Contrast, TaskContrast, TaskFamily, TaskSlices
from fvl_lightning.comparison.result_files.tasks import TaskEvaluation
from fvl_lightning.comparison.scoring.names import is_average, is_task_score, task_score
from fvl_lightning.core.terminal import plural
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score, interval, signed

CORRECTIONS = {"holm": "Holm", "benjamini_hochberg": "Benjamini-Hochberg"}
"""{correction: name in reports}."""
MEANINGS = {
    "holm": "the probability of any false claim in this table is at most 5 %",
    "benjamini_hochberg": "at most 5 % of the claims in this table are expected to be false",
}
"""{correction: what it promises}."""


def tasks_text(comparison: Comparison) -> str:
    """Returns which tasks every cell was scored on, and which of their scores are tested how; empty without tasks."""
    evaluation = comparison.evaluation
    if evaluation is None:
        return ""
    asked = "; ".join(
        f"{task.title} ({plural(task.questions, 'question')} in {plural(task.clusters, 'cluster')}, "
        f"{task.component.describe(task.primary, task.kinds)})"
        for task in evaluation.tasks.values()
    )
    others = [score for score in evaluation.scores() if score != comparison.metric]
    primary = (
        f" {evaluation.title(comparison.metric)} is the primary score, and tested by itself."
        if is_task_score(comparison.metric)
        else ""
    )
    family = (
        f" {'The other' if primary else 'Their'} {plural(len(others), 'score')} "
        f"{'are' if len(others) > 1 else 'is'} tested as one family, adjusted by {CORRECTIONS[evaluation.correction]}."
        if others
        else ""
    )
    return f"Every cell answered the same questions of these tasks: {asked}.{primary}{family}"


def task_grids(comparison: Comparison) -> list[Grid]:
    """Returns the tables of tasks: scores, family of tests, other pairs of arms, intervals over questions."""
    evaluation, statistics = comparison.evaluation, comparison.statistics
    if evaluation is None:
        return []
    grids = [_scores_grid(comparison, evaluation)]
    if len(comparison.seeds) > 1 and statistics.tasks is not None:
        if statistics.pairs:
            grids.append(_pairs_grid(comparison))
        if statistics.tasks.family.contrasts:
            grids.append(_family_grid(evaluation, statistics.tasks.family, statistics.baseline))
    if statistics.tasks is not None and statistics.tasks.questions.scores:
        rows = [
            [_shown(evaluation, score), arm, signed(one.estimate), interval(one.interval)]
            for score, arms in statistics.tasks.questions.scores.items()
            for arm, one in arms.items()
        ]
        label = statistics.tasks.questions.label
        note = (
            f"{label[0].upper()}{label[1:]}: the variation over other questions, drawn in their clusters, not over "
            "training again with other seeds. Each interval stands by itself."
        )
        header = ["score", "arm", "difference", "95 % interval"]
        grids.append(Grid(f"Difference to {statistics.baseline} over questions", header, rows, note))
    return [*grids, *(_slices_grid(evaluation, one) for one in (statistics.tasks.slices if statistics.tasks else ()))]


def _slices_grid(evaluation: TaskEvaluation, slices: TaskSlices) -> Grid:
    """Returns a row for each group of a task's questions, and the gap of the worst one."""
    rows = [
        [group.value, f"{group.questions:,}", f"{group.clusters:,}", *map(format_score, group.scores.values())]
        for group in slices.groups
    ]
    gaps = [
        f"{format_score(gap.gap)} ({interval(gap.interval)}), {gap.group}" if gap.group else ABSENT
        for gap in slices.worst.values()
    ]
    note = (
        f"{_shown(evaluation, task_score(slices.task, evaluation.tasks[slices.task].primary))}. The last row is the "
        "score of all questions minus that of the worst group, with a 95 % interval over new questions that accounts "
        "for choosing the worst one."
    )
    note += "".join(f" Warning, {text}." for text in slices.warnings)
    header = [slices.by, "questions", "clusters", *slices.worst]
    title = f"{evaluation.tasks[slices.task].title}: by {slices.by}"
    return Grid(title, header, [*rows, ["all minus worst", "", "", *gaps]], note)


def family_line(comparison: Comparison) -> str:
    """Returns what the family of tests has found, in one line; empty where nothing was tested."""
    evaluation, tasks = comparison.evaluation, comparison.statistics.tasks
    if evaluation is None or tasks is None or not tasks.family.tests:
        return ""
    found: dict[str, list[str]] = {}
    for contrast in tasks.family.contrasts:
        if contrast.verdict in ("better", "worse"):
            text = f"{_pair(contrast, comparison.statistics.baseline)} {contrast.verdict} ({signed(contrast.estimate)})"
            found.setdefault(evaluation.short_title(contrast.score), []).append(text)
    tested = f"{plural(len(tasks.family.scores), 'other score')} ({CORRECTIONS[tasks.family.correction]})"
    if not found:
        return f"No difference is shown on {tested}."
    return f"On {tested}: " + "; ".join(f"{title}: {', '.join(texts)}" for title, texts in found.items()) + "."


def _scores_grid(comparison: Comparison, evaluation: TaskEvaluation) -> Grid:
    """Returns a row for each score, with the mean of every arm, and its SD over several seeds."""
    scores = evaluation.scores()
    if is_task_score(comparison.metric) and comparison.metric not in scores:
        scores = [comparison.metric, *scores]
    tasks = comparison.statistics.tasks
    sds = {(name, one.arm): one.sd for name, arms in (tasks.arms if tasks else {}).items() for one in arms}
    rows = []
    for score in scores:
        cells = []
        for arm, result in comparison.arms.items():
            sd = sds.get((score, arm), float("nan"))
            cells.append(format_score(result.score(score)) + (f" ({sd:.3f})" if isfinite(sd) else ""))
        rows.append([_shown(evaluation, score) + (", primary" if score == comparison.metric else ""), *cells])
    note = "Mean over seeds, with the SD in brackets." if len(comparison.seeds) > 1 else ""
    return Grid("Tasks", ["score", *comparison.arms], rows, note)


def _family_grid(evaluation: TaskEvaluation, family: TaskFamily, baseline: str) -> Grid:
    correction = CORRECTIONS[family.correction]
    rows = [
        [
            _shown(evaluation, contrast.score),
            _pair(contrast, baseline),
            signed(contrast.estimate),
            interval(contrast.interval),
            f"{contrast.p_adjusted:.2g}" if isfinite(contrast.p_adjusted) else ABSENT,
            contrast.verdict + (f": {contrast.reason}" if contrast.reason else ""),
        ]
        for contrast in family.contrasts
    ]
    note = (
        f"All scores of tasks but the primary one are one family of {plural(family.tests, 'test')}, adjusted by "
        f"{correction}: {MEANINGS[family.correction]}. Intervals are not adjusted."
    )
    note += "".join(f" {text}." for text in family.notes)
    header = ["score", "arm", "difference", "95 % interval", f"p ({correction})", "verdict"]
    title = "Differences on tasks" if evaluation.pairs == "all" else f"Difference to {baseline} on tasks"
    return Grid(title, header, rows, note)


def _pairs_grid(comparison: Comparison) -> Grid:
    """Returns the contrasts of the primary score between the arms that are not the baseline."""
    rows = [
        [
            f"{pair.arm} - {pair.against}",
            signed(pair.estimate),
            interval(pair.interval),
            f"{pair.p_holm:.2g}" if isfinite(pair.p_holm) else ABSENT,
            pair.verdict,
        ]
        for pair in comparison.statistics.pairs
    ]
    note = "All pairs of arms are tested, and Holm adjusts over all of them, those with the baseline included."
    header = ["pair", "difference", "95 % interval", "p (Holm)", "verdict"]
    return Grid(f"Other pairs, {comparison.metric_title}", header, rows, note)


def _pair(contrast: TaskContrast | Contrast, baseline: str) -> str:
    """Returns the arm of a contrast, and against which one it stands where this is not the baseline."""
    return contrast.arm if contrast.against in ("", baseline) else f"{contrast.arm} - {contrast.against}"


def _shown(evaluation: TaskEvaluation, score: str) -> str:
    return evaluation.title(score) if not is_average(score) else evaluation.short_title(score)
