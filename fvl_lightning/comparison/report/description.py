"""The description of a comparison's MLflow run: which arm won, in one line and a table."""

from collections.abc import Mapping, Sequence

from fvl_lightning.comparison.report.tables import statistics_grids, verdict_text
from fvl_lightning.comparison.report.task_sections import family_line
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics
from fvl_lightning.comparison.scoring.names import is_task_score
from fvl_lightning.reporting.tables import Grid, format_score, markdown_rows, markdown_text, signed

MAX_LENGTH = 7500
"""Characters of a description: MLflow keeps 8,000."""


def description(comparison: Comparison, pages: Mapping[str, str], missing: Sequence[str] = ()) -> str:
    """Returns the verdict and a table of all arms in Markdown, with links to MLflow's other pages.

    Args:
        comparison: the results.
        pages: {what is shown: address}; relative addresses serve on any host.
        missing: what is not in the results, such as failed cells; empty where the comparison is complete.
    """
    incomplete = [f"**Incomplete:** {markdown_text('; '.join(missing))}."] if missing else []
    links = " · ".join(f"[{name}]({address})" for name, address in pages.items())
    head = [headline(comparison), *incomplete]
    where = "" if is_task_score(comparison.metric) else " on the test split"
    title = f"{markdown_text(comparison.metric_title)}{where}."
    if family := family_line(comparison):
        title += f" {markdown_text(family)}"
    rows = markdown_rows(arms_grid(comparison))
    while len(text := "\n\n".join([*head, "\n".join(rows), title, links])) > MAX_LENGTH and len(rows) > 2:
        rows = [*rows[:-2], "| ... |"] if rows[-1] == "| ... |" else [*rows[:-1], "| ... |"]
    return text[:MAX_LENGTH]


def headline(comparison: Comparison) -> str:
    """Returns the verdicts in one line: the arms that are better than the baseline first, then the others."""
    statistics = comparison.statistics
    baseline = statistics.baseline
    if len(comparison.seeds) == 1:
        return "**One seed ranks nothing:** every arm was trained once, and no winner is named."
    sign = 1 if comparison.component.higher_is_better else -1
    by_verdict: dict[str, list[str]] = {}
    for contrast in sorted(statistics.contrasts, key=lambda contrast: -sign * contrast.estimate):
        pooling = verdict_text(contrast, statistics.alpha).removeprefix(contrast.verdict)
        by_verdict.setdefault(contrast.verdict, []).append(f"{contrast.arm} ({signed(contrast.estimate)}{pooling})")
    better = by_verdict.pop("better", [])
    if better:
        first = f"**Better than {baseline}: {', '.join(better)}.**"
    elif list(by_verdict) == ["worse"]:
        first = f"**{baseline} is better than every other arm.**"
    else:
        first = f"**No arm is shown to be better than {baseline}.**"
    others = [f"{verdict.capitalize()}: {', '.join(arms)}." for verdict, arms in by_verdict.items()]
    return " ".join([first, *others])


def arms_grid(comparison: Comparison) -> Grid:
    """Returns a row for each arm, the best one first; for one seed in the order of the configuration."""
    if len(comparison.seeds) == 1:
        scores = [[arm, format_score(result.score(comparison.metric))] for arm, result in comparison.arms.items()]
        return Grid("", ["arm", "score"], scores)
    statistics = comparison.statistics
    over_seeds, contrasts, *_ = statistics_grids(comparison)
    compared = {row[0]: row[1:] for row in contrasts.rows}
    width = len(contrasts.header) - 1
    absent = {statistics.baseline: [*[""] * (width - 1), "baseline"]}
    header = [*over_seeds.header, *contrasts.header[1:]]
    rows = {row[0]: [*row, *compared.get(row[0], absent.get(row[0], [""] * width))] for row in over_seeds.rows}
    return Grid("", header, [rows[arm] for arm in best_first(statistics, comparison.component.higher_is_better)])


def best_first(statistics: ComparisonStatistics, higher_is_better: bool) -> list[str]:
    """Returns the arms in the order of their means."""
    sign = 1 if higher_is_better else -1
    return [arm.arm for arm in sorted(statistics.arms, key=lambda arm: -sign * arm.mean)]
