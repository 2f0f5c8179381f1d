"""Writes the report of an evaluation: report.md, report.html with its pictures inside, figures, and evaluation.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.report.assessment import TaskAssessment
from fvl_lightning.evaluation.report.figures import corruption_figure, score_figure, slice_figure
from fvl_lightning.evaluation.report.tables import (
    controls_grid,
    corruption_grids,
    differences_grid,
    scores_grid,
    slice_grids,
)
from fvl_lightning.evaluation.statistics.resampling import LABEL
from fvl_lightning.reporting.files import json_bytes, png, write_files
from fvl_lightning.reporting.html_page import html_page
from fvl_lightning.reporting.tables import Grid, markdown_table, markdown_text

SCORES_FIGURE = "scores.png"
CORRUPTIONS_FIGURE, SLICES_FIGURE = "corruptions.{}.png", "slices.{}.png"
"""Figures of one task; {} is its place among the tasks."""
FILES = ("report.md", "report.html", "evaluation.json", SCORES_FIGURE)
"""Files of every report."""


def write_report(tasks: Sequence[TaskAssessment], folder: Path, about: Mapping[str, str] | None = None) -> list[Path]:
    """Writes a report, evaluation.json last, and returns its files. Figures of an earlier report are deleted.

    Args:
        tasks: the assessments, at least one.
        folder: created if missing; every file is replaced as a whole.
        about: {name: text} of further facts, such as versions and the precision.
    """
    pictures = figures(tasks)
    title = f"Evaluation of {', '.join(_models(tasks))}"
    text = markdown(tasks, about)
    files = {
        **pictures,
        "report.md": text.encode(),
        "report.html": html_page(text, pictures, title).encode(),
        "evaluation.json": json_bytes(as_json(tasks, about)),
    }
    earlier = [
        path.name for pattern in (CORRUPTIONS_FIGURE, SLICES_FIGURE) for path in folder.glob(pattern.format("*"))
    ]
    write_files(folder, files, [*FILES, *earlier])
    return [folder / name for name in files]


def as_json(tasks: Sequence[TaskAssessment], about: Mapping[str, str] | None = None) -> dict[str, object]:
    """Returns all numbers of a report; an estimate is {value, interval}."""
    return {"label": LABEL, "about": dict(about or {}), "tasks": {task.task: asdict(task) for task in tasks}}


def figures(tasks: Sequence[TaskAssessment]) -> dict[str, bytes]:
    """Returns {name: content of a PNG file}."""
    found = {SCORES_FIGURE: png(score_figure(tasks))}
    for place, task in enumerate(tasks, start=1):
        for name, draw in ((CORRUPTIONS_FIGURE, corruption_figure), (SLICES_FIGURE, slice_figure)):
            if (figure := draw(task)) is not None:
                found[name.format(place)] = png(figure)
    return found


def markdown(tasks: Sequence[TaskAssessment], about: Mapping[str, str] | None = None) -> str:
    """Returns the report as Markdown; its pictures are those of `figures`, in the same folder."""
    parts = [
        f"# Evaluation of {markdown_text(', '.join(_models(tasks)))}",
        _introduction(tasks, about or {}),
        markdown_table(scores_grid(tasks)),
        f"![scores of all models with intervals]({SCORES_FIGURE})",
        *map(markdown_table, differences_grid(tasks)),
        *(section for place, task in enumerate(tasks, start=1) for section in _task_sections(place, task)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _models(tasks: Sequence[TaskAssessment]) -> list[str]:
    return list(dict.fromkeys(model for task in tasks for model in task.statistics.scores))


def _introduction(tasks: Sequence[TaskAssessment], about: Mapping[str, str]) -> str:
    text = (
        f"{plural(len(_models(tasks)), 'model')} on {plural(len(tasks), 'task')}. Intervals are 95 % intervals for "
        f"{LABEL}: the questions of a cluster, such as an image, are drawn together (bootstrap). They do not cover "
        "training again with other seeds, and each holds for its number alone unless its table has another note. The "
        "answer prior gives to every question the most frequent reference answer of its kind, counted in the half of "
        "the clusters that the question is not in."
    )
    return " ".join([text, *(f"{markdown_text(f'{name}: {value}')}." for name, value in about.items())])


def _task_sections(place: int, task: TaskAssessment) -> list[str]:
    corrupted = corruption_grids(task)
    sections = [*map(markdown_table, controls_grid(task))]
    if corrupted:
        title = markdown_text(task.title)
        sections += [
            f'## {title}: corrupted images\n\nThe bands are 95 % intervals, and strength "none" is the task as it is. '
            "Parameters are those of ImageNet-C, lengths scaled to the image's size; those of occlusion are the kit's.",
            f"![score of {title} against the strength of corruptions]({CORRUPTIONS_FIGURE.format(place)})",
            *map(markdown_table, corrupted),
        ]
    sections += _bias_section(task)
    grids = slice_grids(task)
    if grids:
        sections += [f"![scores of {markdown_text(task.title)} by slices]({SLICES_FIGURE.format(place)})"]
        sections += [*map(markdown_table, grids), _slice_sentences(task)]
    return sections


def _bias_section(task: TaskAssessment) -> list[str]:
    if not task.biases:
        return []
    found = [check for check in task.biases if check.biased]
    others = len(task.biases) - len(found)
    lines = [f"- {markdown_text(check.sentence)}" for check in found] or ["- No bias is shown."]
    if found and others:
        lines.append(f"- {plural(others, 'other check')} found no bias; evaluation.json has them.")
    head = (
        f"## {markdown_text(task.title)}: biases\n\nHow often an answer is given against how often it is true, on "
        "the same questions. The intervals of one check hold for all of its answers together.\n\n"
    )
    return [head + "\n".join(lines)]


def _slice_sentences(task: TaskAssessment) -> str:
    several = len(task.statistics.scores) > 1
    lines = [f"- {f'{found.model}, ' if several else ''}{found.sentence}" for found in task.slices]
    lines += [f"- Warning, {text}." for text in dict.fromkeys(text for found in task.slices for text in found.warnings)]
    return "\n".join(markdown_text(line) for line in lines)


def terminal_grids(tasks: Sequence[TaskAssessment]) -> list[Grid]:
    """Returns the tables for a terminal: scores, differences, controls and corruptions."""
    varied = (grid for task in tasks for grid in (*controls_grid(task), *corruption_grids(task)))
    return [scores_grid(tasks), *differences_grid(tasks), *varied]
