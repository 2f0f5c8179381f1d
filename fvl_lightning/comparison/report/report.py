"""A comparison written down: tables for the terminal, a report in Markdown, figures, and the numbers as JSON."""

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from datamodules.demo.levels import HELD_OUT_PAIRS, LEVELS
from fvl_lightning.comparison.report.choices import readings_words, tuning_grids
from fvl_lightning.comparison.report.figures import Curve, accuracy_figure, answer_sheet, loss_figure
from fvl_lightning.comparison.report.interval_figures import interval_figure, pareto_figure
from fvl_lightning.comparison.report.tables import (
    ABSENT,
    Grid,
    differences_grid,
    price_grid,
    statistics_grids,
    verdict_section,
)
from fvl_lightning.core.atomic import atomic_write

FILES = (
    "report.md", "comparison.json", "comparison.png", "loss_curves.png", "samples.png", "pareto.png", "intervals.png",
)  # fmt: skip
"""What write_report may leave; intervals need more seeds than one."""


def write_report(comparison: Mapping[str, Any], curves: Mapping[str, Mapping[str, Curve]], folder: Path) -> None:
    """Writes FILES, comparison.json last.

    Args:
        comparison: what was compared and what came of it: name, level, seeds, lineage, metric, encoder, machine, arms
            in the order of the tables, averaged over seeds (accuracy, image_zeroed, image_shuffled, prior, unseen,
            transfer, parameters, trainable, image_tokens, training_flops, inference_flops, tokens_per_second,
            peak_memory_bytes, seconds, mass, same_start, runs), the same of every cell, differences, statistics (see
            conclusions.py), tuning and test_readings (see report_choices.py), mlflow, and samples for the sheet of
            answers (see figures.answer_sheet; left out of comparison.json).
        curves: {arm: {stage: [(step, training loss)]}}.
        folder: created where needed; every file is replaced as a whole.
    """
    kept = {key: value for key, value in comparison.items() if key != "samples"}
    files = {
        "comparison.png": _png(accuracy_figure(comparison)),
        "loss_curves.png": _png(loss_figure(curves)),
        "samples.png": _png(answer_sheet(comparison["samples"])),
        "pareto.png": _png(pareto_figure(comparison)),
        **({"intervals.png": _png(interval_figure(comparison["statistics"]))} if _several(comparison) else {}),
        "report.md": markdown(comparison).encode(),
        "comparison.json": json.dumps(_finite(kept), indent=2, allow_nan=False, default=str).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder / name) as tmp_path:
            tmp_path.write_bytes(content)


def rich_table(comparison: Mapping[str, Any]) -> list[Table]:
    """The report's tables for a terminal; no arm is set apart, since one seed ranks nothing."""
    tables = []
    for grid in grids(comparison):
        table = Table(title=grid.title, title_justify="left", title_style="bold", caption=grid.note or None)
        for number, name in enumerate(grid.header):
            table.add_column(name, justify="right" if number else "left")
        for row in grid.rows:
            # A line between the kinds and their averages.
            if row[0] == "macro average":
                table.add_section()
            table.add_row(*row)
        tables.append(table)
    return tables


def markdown(comparison: Mapping[str, Any]) -> str:
    """The report as Markdown; its pictures are those that write_report puts beside it."""
    over_seeds = statistics_grids(comparison)
    accuracy, *others = grids(comparison)[len(over_seeds) :]
    parts = [
        f"# {comparison['name']}: {', '.join(comparison['arms'])}",
        _introduction(comparison),
        verdict_section(comparison),
        readings_words(comparison["test_readings"]),
        "![differences to the baseline with their intervals](intervals.png)" if _several(comparison) else "",
        *(_markdown_table(grid) for grid in over_seeds),
        _markdown_table(accuracy),
        "![accuracy of every arm by kind of question, with controls](comparison.png)",
        *(_markdown_table(grid) for grid in others),
        "![score against operations and parameters](pareto.png)\n\nA line joins the arms that no other beats in "
        "score and price at once, where there are several; it knows nothing of chance.",
        *(_markdown_table(grid) for grid in tuning_grids(comparison)),
        _markdown_table(differences_grid(comparison)),
        _encoder_section(comparison["encoder"], len(comparison["seeds"])),
        "## Losses\n\n![training loss of every arm and stage](loss_curves.png)",
        "## Sample answers\n\n![images with question, truth and every arm's answer](samples.png)",
        _closed_section(comparison),
        _again_section(comparison),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def grids(comparison: Mapping[str, Any]) -> list[Grid]:
    """The tables of a comparison: seeds, accuracy by kind, the same on other levels, controls, mass, price."""
    arms = comparison["arms"]
    first = next(iter(arms.values()))
    level = f", level {comparison['level']}" if comparison["level"] else ""
    scores = {arm: entry["accuracy"] for arm, entry in arms.items()}
    # The prior knows neither image nor arm, so that any arm's is everyone's.
    tables = statistics_grids(comparison)
    tables += [_accuracy_grid(f"Accuracy on the test split{level}", scores | {"prior": first["prior"]})]
    for other in first.get("transfer", {}):
        transferred = {arm: entry["transfer"][other] for arm, entry in arms.items()}
        tables.append(_accuracy_grid(f"Accuracy on level {other}, never trained on", transferred))
    tables += [_controls_grid(arms)]
    sources = list(dict.fromkeys(source for entry in arms.values() for source in entry["mass"]))
    if sources:
        rows = [[source, *(_number(entry["mass"].get(source)) for entry in arms.values())] for source in sources]
        tables.append(Grid("Share of each source in the fused features", ["source", *arms], rows))
    return [*tables, price_grid(arms)]


def _accuracy_grid(title: str, scores: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Kinds down, `scores` {column: {"macro", "overall", "by_kind"}} across."""
    kinds = dict.fromkeys(kind for score in scores.values() for kind in score["by_kind"])
    rows = [[kind, *(_number(score["by_kind"].get(kind)) for score in scores.values())] for kind in kinds]
    rows.append(["macro average", *(_number(score["macro"]) for score in scores.values())])
    rows.append(["all questions", *(_number(score["overall"]) for score in scores.values())])
    return Grid(title, ["kind", *scores], rows)


def _controls_grid(arms: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Macro averages on the real images, without them, and on what training held back."""
    fields = {"real images": "accuracy", "another sample's image": "image_shuffled", "image zeroed": "image_zeroed"}
    rows = [[label, *(_number(entry[field]["macro"]) for entry in arms.values())] for label, field in fields.items()]
    for split in next(iter(arms.values())).get("unseen", {}):
        scores = [_number(entry["unseen"][split]["macro"]) for entry in arms.values()]
        rows.append([split.removeprefix("test_").replace("_", " "), *scores])
    return Grid("Controls, macro average", ["shown", *arms], rows)


def _introduction(comparison: Mapping[str, Any]) -> str:
    described = ", ".join(f"{key} {value}" for key, value in comparison["machine"].items())
    seeds = comparison["seeds"]
    trained = f"seeds {', '.join(map(str, seeds))}" if _several(comparison) else f"seed {seeds[0]}"
    averages = " Accuracies, times and shares are averages over seeds." if _several(comparison) else ""
    return (
        f"{len(comparison['arms'])} arms, {trained}, on one machine ({described}). Lineage `{comparison['lineage']}`: "
        f"{_lineage(comparison)} Answers are generated greedily for questions on images of the test split, which "
        "training never saw, and count as right when they equal the truth. The prior answers every question with the "
        f"most frequent answer of its kind in training, without looking.{averages}"
    )


def _lineage(comparison: Mapping[str, Any]) -> str:
    encoder = comparison["encoder"]
    if comparison["lineage"] == "end_to_end":
        return "every arm trained an encoder of its own, and nothing is shared."
    if encoder is None:
        return "all arms stand on one frozen encoder that was trained elsewhere (equal hashes, checked)."
    if _several(comparison):
        return (
            "for every seed the encoder was trained once, without any arm's fusion, and is the same in all arms of "
            "that seed (equal hashes, checked)."
        )
    return (
        "the encoder was trained once, without any arm's fusion, and is the same in all of them (hash "
        f"`{encoder['hash']}`, checked)."
    )


def _several(comparison: Mapping[str, Any]) -> bool:
    return len(comparison["seeds"]) > 1


def _encoder_section(encoder: Mapping[str, Any] | None, seeds: int) -> str:
    if encoder is None:
        return ""
    scores = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in encoder["scores"].items())
    return (
        f"## The encoder\n\nTrained on its own prompts in {encoder['seconds']:,.0f} s (`{encoder['run']}`"
        f"{f'; numbers are means over {seeds} seeds' if seeds > 1 else ''}). "
        f"Its own test scores: {scores}. Caption tokens are predicted with the true ones before them, words and boxes "
        "are written greedily."
    )


def _closed_section(comparison: Mapping[str, Any]) -> str:
    """What the demo set cannot show, from the level's own definition; nothing for other data."""
    if comparison["level"] not in LEVELS:
        return ""
    level = LEVELS[comparison["level"]]
    pairs = ", ".join(f"{colour} {shape}" for colour, shape in HELD_OUT_PAIRS)
    digits = f"{level.digit_count} digit{'s' if level.digit_count > 1 else ''}"
    return (
        "## What is closed about this set\n\n"
        f"The images are drawn: {len(level.words)} words, {len(level.colours)} colours x {len(level.shapes)} shapes, "
        f"up to {level.bar_count[1]} bars, and handwritten numbers of {digits} composed from real scans, other scans "
        "for testing than for training. Questions come from templates and answers from a short list. No description of "
        "a test scene occurs in training, but its words and objects do, so a good score here is not reading or "
        f"counting in general. Training never shows {len(level.unseen_words)} further words "
        f"({', '.join(level.unseen_words)}) and {len(HELD_OUT_PAIRS)} of the colour-shape pairs ({pairs}): rows named "
        "*unseen*, where they were asked for, step outside the set."
    )


def _again_section(comparison: Mapping[str, Any]) -> str:
    runs = [
        f"- {cell['arm']}, seed {cell['seed']}: " + ", ".join(f"`{run}`" for run in cell["runs"].values())
        for cell in comparison["cells"]
    ]
    run = list(comparison["cells"][0]["runs"].values())[-1]
    return (
        "## Look closer, do it again\n\n"
        "```\n"
        "fvl ui                    # curves, configurations and answers of all runs side by side in MLflow\n"
        f"fvl evaluate {run}\n"
        f'fvl generate {run} --image IMAGE --prompt "what colour is the circle?"\n'
        "fvl demo                  # or: fvl compare COMPARISON.yaml, for arms of your own\n"
        "```\n\n"
        f"{_mlflow_words(comparison['mlflow'])}"
        "Each run's folder holds its resolved configuration, its metrics and its weights:\n\n" + "\n".join(runs)
    )


def _mlflow_words(parent: Mapping[str, Any]) -> str:
    if parent["run_id"] is None:
        return ""
    return (
        f"To see just this comparison in MLflow, open what `fvl ui {parent['folder']}` prints, or the experiment "
        f"`{parent['experiment']}`, and search there for\n\n"
        f"```\n{parent['search']}\n```\n\n"
        "This is one run for each arm and seed; the first half alone shows their earlier stages and the encoders too. "
        "Group them by the parameter `arm`; the values of the axes are parameters `axis.<key>`. The parent run holds "
        "this report.\n\n"
    )


def _markdown_table(grid: Grid) -> str:
    header = "| " + " | ".join(grid.header) + " |"
    rule = "|" + "|".join([":---", *["---:"] * (len(grid.header) - 1)]) + "|"
    rows = ["| " + " | ".join(row) + " |" for row in grid.rows]
    return "\n".join([f"## {grid.title}", "", *([grid.note, ""] if grid.note else []), header, rule, *rows])


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _finite(value: Any) -> Any:
    """The same containers with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
