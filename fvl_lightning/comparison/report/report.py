"""Writes the report of a comparison: Markdown, figures, the numbers as JSON, and tables for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from fvl_lightning.comparison.report.answer_sheet import SampleAnswers, answer_sheet
from fvl_lightning.comparison.report.choices import access_text, tuning_grids
from fvl_lightning.comparison.report.figures import Curve, Losses, accuracy_figure, loss_figure, source_weight_figure
from fvl_lightning.comparison.report.interval_figures import interval_figure, pareto_figure
from fvl_lightning.comparison.report.sections import intervals_text, plugin_grids, questions_text, samples_text
from fvl_lightning.comparison.report.tables import (
    cost_grid,
    differences_grid,
    reference_grids,
    statistics_grids,
    verdict_section,
)
from fvl_lightning.comparison.report.task_figure import task_figure
from fvl_lightning.comparison.report.task_sections import task_grids, tasks_text
from fvl_lightning.comparison.result_files.cell import DEFAULT_PRECISION, Measurements
from fvl_lightning.comparison.result_files.comparison import Comparison, EncoderEntry, MlflowEntry
from fvl_lightning.comparison.scoring.names import score_of_split
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.evaluation.metrics.lookup import metric_of
from fvl_lightning.reporting.files import json_bytes, png, write_files
from fvl_lightning.reporting.html_page import html_page
from fvl_lightning.reporting.tables import Grid, format_score, markdown_table, rich_table

FILES = (
    "report.md", "report.html", "comparison.json", "comparison.png", "loss_curves.png", "samples.png", "pareto.png",
    "intervals.png", "source_mass.png", "tasks.png",
)  # fmt: skip
"""Files of a report; there are no intervals for a single seed, and no source weights where no fusion reports them."""


def write_report(
    comparison: Comparison,
    samples: Sequence[SampleAnswers],
    curves: Mapping[str, Mapping[str, Losses]],
    folder: Path,
    limits: str = "",
    weights: Mapping[str, Mapping[str, Sequence[Curve]]] | None = None,
) -> None:
    """Writes FILES, comparison.json last.

    Args:
        comparison: the results.
        samples: questions for the sheet of answers.
        curves: {arm: {stage: its losses}}.
        folder: created if missing; every file is replaced as a whole.
        limits: what a score on this data cannot show; see BatchData.limits.
        weights: {arm: {source: the curve of its weight with each seed}}, of the arms whose fusion reports weights.
    """
    higher = comparison.component.higher_is_better
    text = markdown(comparison, limits, bool(weights))
    pictures = {
        **({"comparison.png": png(accuracy_figure(comparison))} if comparison.tested else {}),
        "loss_curves.png": png(loss_figure(curves)),
        **({"samples.png": png(answer_sheet(samples, comparison.split_metric))} if comparison.tested else {}),
        "pareto.png": png(pareto_figure(comparison)),
        **({"intervals.png": png(interval_figure(comparison.statistics, higher))} if _several(comparison) else {}),
        **({"source_mass.png": png(source_weight_figure(weights))} if weights else {}),
        **({"tasks.png": png(task_figure(comparison))} if comparison.evaluation else {}),
    }
    files = {
        **pictures,
        "report.md": text.encode(),
        "report.html": html_page(text, pictures, comparison.name).encode(),
        "comparison.json": json_bytes(comparison.plain()),
    }
    write_files(folder, files, FILES)


def rich_tables(comparison: Comparison) -> list[Table]:
    """Returns the report's tables for a terminal; no arm is highlighted, since one seed shows no ranking."""
    return [rich_table(grid, "macro average") for grid in grids(comparison)]


def markdown(comparison: Comparison, limits: str = "", with_weights: bool = False) -> str:
    """Returns the report as Markdown; its pictures are those that write_report writes into the same folder.

    Args:
        comparison: the results.
        limits: what a score on this data cannot show; see BatchData.limits.
        with_weights: whether there is a figure of the source weights.
    """
    over_seeds = statistics_grids(comparison)
    on_tasks = task_grids(comparison)
    others = grids(comparison)[len(over_seeds) + len(on_tasks) :]
    by_kind = [others.pop(0)] if comparison.tested else []
    name = metric_of(score_of_split(comparison.metric)).title.lower()
    parts = [
        f"# {comparison.name}: {', '.join(comparison.arms)}",
        _introduction(comparison),
        verdict_section(comparison),
        access_text(comparison.test_readings, comparison.evaluation is not None),
        intervals_text(comparison.statistics) if _several(comparison) else "",
        *(markdown_table(grid) for grid in over_seeds),
        *(markdown_table(grid) for grid in on_tasks),
        "![scores of every arm on every task](tasks.png)" if comparison.evaluation else "",
        *(markdown_table(grid) for grid in by_kind),
        f"![{name} of every arm by kind of question, with controls](comparison.png)" if by_kind else "",
        "![weight of every source in the fused features](source_mass.png)" if with_weights else "",
        *(markdown_table(grid) for grid in reference_grids(comparison)),
        *(markdown_table(grid) for grid in others),
        "![score against cost](pareto.png)\n\nA line joins the arms that no other one beats in "
        "both score and cost, where there are several; it does not take chance into account.",
        *(markdown_table(grid) for grid in tuning_grids(comparison.tuning)),
        markdown_table(differences_grid(comparison)),
        _encoder_section(comparison.encoder, len(comparison.seeds)),
        "## Losses\n\n![losses of every arm and stage](loss_curves.png)",
        f"## Sample answers\n\n{samples_text(comparison)}![images with question, truth and every arm's answer]"
        "(samples.png)"
        if comparison.tested
        else "",
        *(markdown_table(grid) for grid in plugin_grids(comparison.plugins)),
        f"## What is closed about this set\n\n{limits}" if limits else "",
        _again_section(comparison),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def grids(comparison: Comparison) -> list[Grid]:
    """Returns the tables: seeds, tasks, the test split, source weights, cost."""
    arms = comparison.arms
    tables = [*statistics_grids(comparison), *task_grids(comparison)]
    tables += _test_grids(comparison) if comparison.tested else []
    sources = list(dict.fromkeys(source for result in arms.values() for source in result.mass))
    if sources:
        rows = [[source, *(format_score(result.mass.get(source)) for result in arms.values())] for source in sources]
        tables.append(Grid("Source weights in the fused features", ["source", *arms], rows))
    return [*tables, cost_grid(arms)]


def _test_grids(comparison: Comparison) -> list[Grid]:
    """Returns the tables of the test split: scores by kind, the same on other levels, controls."""
    arms = comparison.arms
    first = next(iter(arms.values()))
    metric, title = comparison.split_metric, metric_of(score_of_split(comparison.metric)).title
    level = f", level {comparison.level}" if comparison.level else ""
    scores = {arm: result.scores[metric] for arm, result in arms.items()}
    # The prior depends on neither image nor arm, so it is the same for all arms.
    tables = [_scores_grid(f"{title} on the test split{level}", scores | {"prior": first.prior})]
    for other in first.transfer:
        transferred = {arm: result.transfer[other] for arm, result in arms.items()}
        tables.append(_scores_grid(f"{title} on level {other}, never trained on", transferred))
    return [*tables, _controls_grid(metric, arms)]


def _scores_grid(title: str, scores: Mapping[str, KindScores]) -> Grid:
    """Returns a table with kinds as rows and `scores` {column: scores} as columns."""
    kinds = dict.fromkeys(kind for column in scores.values() for kind in column.by_kind)
    rows = [[kind, *(format_score(column.by_kind.get(kind)) for column in scores.values())] for kind in kinds]
    rows.append(["macro average", *(format_score(column.macro) for column in scores.values())])
    rows.append(["all questions", *(format_score(column.overall) for column in scores.values())])
    return Grid(title, ["kind", *scores], rows)


def _controls_grid(metric: str, arms: Mapping[str, Measurements]) -> Grid:
    """Returns the macro averages on the real images, without them, and on further test splits."""
    results = arms.values()
    rows = [
        ["real images", *(format_score(result.scores[metric].macro) for result in results)],
        ["another sample's image", *(format_score(result.image_shuffled.macro) for result in results)],
        ["image zeroed", *(format_score(result.image_zeroed.macro) for result in results)],
    ]
    for split in next(iter(results)).unseen:
        label = split.removeprefix("test_").replace("_", " ")
        rows.append([label, *(format_score(result.unseen[split].macro) for result in results)])
    return Grid("Controls, macro average", ["shown", *arms], rows)


def _introduction(comparison: Comparison) -> str:
    described = ", ".join(f"{key} {value}" for key, value in comparison.machine.items())
    seeds = comparison.seeds
    trained = f"seeds {', '.join(map(str, seeds))}" if _several(comparison) else f"seed {seeds[0]}"
    averages = " Scores, times and source weights are averages over seeds." if _several(comparison) else ""
    narrow = "" if comparison.precision == DEFAULT_PRECISION else f" in {comparison.precision}"
    parts = [
        f"{len(comparison.arms)} arms, {trained}, on one machine ({described}). Lineage `{comparison.lineage}`: "
        f"{_lineage(comparison)}"
    ]
    if comparison.tested:
        parts.append(
            f"Answers are generated greedily{narrow} for questions on images of the test split, which training never "
            f"saw, and {metric_of(score_of_split(comparison.metric)).explanation}. The prior answers every question "
            f"with the most frequent answer of its kind in training, without looking."
            f"{questions_text(comparison.questions)}"
        )
    return " ".join(filter(None, [*parts, tasks_text(comparison)])) + averages


def _lineage(comparison: Comparison) -> str:
    encoder = comparison.encoder
    if comparison.lineage == "end_to_end":
        return "every arm trained an encoder of its own, and nothing is shared."
    if comparison.lineage == "frozen_per_arm":
        return "every arm uses a frozen encoder of its own that was trained elsewhere."
    if encoder is None:
        return "all arms use one frozen encoder that was trained elsewhere (equal hashes, checked)."
    if _several(comparison):
        return (
            "for every seed the encoder was trained once, without any arm's fusion, and is the same in all arms of "
            "that seed (equal hashes, checked)."
        )
    return (
        "the encoder was trained once, without any arm's fusion, and is the same in all of them (hash "
        f"`{encoder.hash}`, checked)."
    )


def _several(comparison: Comparison) -> bool:
    return len(comparison.seeds) > 1


def _encoder_section(encoder: EncoderEntry | None, seeds: int) -> str:
    if encoder is None:
        return ""
    scores = ", ".join(f"{name.replace('_', ' ')} {format_score(value)}" for name, value in encoder.scores.items())
    return (
        f"## The encoder\n\nTrained on its own prompts in {encoder.seconds:,.0f} s (`{encoder.run}`"
        f"{f'; numbers are means over {seeds} seeds' if seeds > 1 else ''}). "
        f"Its own test scores: {scores}. Caption tokens are predicted with the true ones before them; words and boxes "
        "are written greedily."
    )


def _again_section(comparison: Comparison) -> str:
    runs = [
        f"- {cell.arm}, seed {cell.seed}: " + ", ".join(f"`{run}`" for run in cell.result.runs.values())
        for cell in comparison.cells
    ]
    run = list(comparison.cells[0].result.runs.values())[-1]
    return (
        "## Look closer, do it again\n\n"
        "```\n"
        "fvl ui                    # curves, configurations and answers of all runs side by side in MLflow\n"
        f"fvl evaluate {run}\n"
        f'fvl generate {run} --image IMAGE --prompt "what colour is the circle?"\n'
        "fvl demo                  # or: fvl compare COMPARISON.yaml, for arms of your own\n"
        "```\n\n"
        f"{_mlflow_text(comparison.mlflow)}"
        "Each run's folder holds its resolved configuration, its metrics and its weights:\n\n" + "\n".join(runs)
    )


def _mlflow_text(parent: MlflowEntry) -> str:
    if parent.run_id is None:
        return ""
    return (
        f"`fvl ui {parent.folder}` shows this comparison in MLflow{_page_links(parent)}. The runs are in the "
        f"experiment `{parent.experiment}`, where this search finds one for each arm and seed:\n\n"
        f"```\n{parent.search}\n```\n\n"
        "The first part alone also finds their earlier stages, the encoders, and runs of an earlier configuration. "
        "The values of the axes are parameters `axis.<key>`.\n\n"
    )


def _page_links(parent: MlflowEntry) -> str:
    links = ", ".join(f"[{name}]({address})" for name, address in parent.pages.items())
    return f": {links}" if links else ""
