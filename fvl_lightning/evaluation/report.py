"""A comparison written down: tables for the terminal, a report in Markdown, figures, and the numbers as JSON."""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from datamodules.demo.levels import HELD_OUT_PAIRS, LEVELS
from fvl_lightning.evaluation.figures import Curve, accuracy_figure, answer_sheet, loss_figure

ABSENT = "-"


@dataclass(frozen=True)
class Grid:
    """A table of ready-made texts: a title, the first column's name and the others', and rows as wide as the header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_report(comparison: Mapping[str, Any], curves: Mapping[str, Mapping[str, Curve]], folder: Path) -> None:
    """Writes report.md, comparison.png, loss_curves.png, samples.png and, when these are there, comparison.json.

    Args:
        comparison: what was compared and what came of it: name, level, seed, lineage, encoder, machine, arms in the
            order of the tables (accuracy, image_zeroed, image_shuffled, prior, unseen, transfer, parameters, trainable,
            tokens_per_second, peak_memory_bytes, seconds, mass, runs), and samples for the sheet of answers (see
            figures.answer_sheet; left out of comparison.json).
        curves: {arm: {stage: [(step, training loss)]}}.
        folder: created where needed; every file is replaced as a whole.
    """
    kept = {key: value for key, value in comparison.items() if key != "samples"}
    files = {
        "comparison.png": _png(accuracy_figure(comparison)),
        "loss_curves.png": _png(loss_figure(curves)),
        "samples.png": _png(answer_sheet(comparison["samples"])),
        "report.md": markdown(comparison).encode(),
        "comparison.json": json.dumps(_finite(kept), indent=2, allow_nan=False, default=str).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        beside = folder / f".{name}.tmp"
        beside.write_bytes(content)
        os.replace(beside, folder / name)


def rich_table(comparison: Mapping[str, Any]) -> list[Table]:
    """The report's tables for a terminal; no arm is set apart, since one seed ranks nothing."""
    tables = []
    for grid in grids(comparison):
        table = Table(title=grid.title, title_justify="left", title_style="bold")
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
    accuracy, *others = grids(comparison)
    parts = [
        f"# {comparison['name']}: {', '.join(comparison['arms'])}",
        _introduction(comparison),
        "> **One seed ranks nothing.** Every arm was trained once, so a difference between two arms may be chance. The "
        "arms stand in the order in which they were configured, and no winner is named.",
        _markdown_table(accuracy),
        "![accuracy of every arm by kind of question, with controls](comparison.png)",
        *(_markdown_table(grid) for grid in others),
        _encoder_section(comparison["encoder"]),
        "## Losses\n\n![training loss of every arm and stage](loss_curves.png)",
        "## Sample answers\n\n![images with question, truth and every arm's answer](samples.png)",
        _closed_section(comparison),
        _again_section(comparison),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def grids(comparison: Mapping[str, Any]) -> list[Grid]:
    """The tables of a comparison: accuracy by kind, the same on other levels, controls, price, mass per source."""
    arms = comparison["arms"]
    first = next(iter(arms.values()))
    level = f", level {comparison['level']}" if comparison["level"] else ""
    scores = {arm: entry["accuracy"] for arm, entry in arms.items()}
    # The prior knows neither image nor arm, so that any arm's is everyone's.
    tables = [_accuracy_grid(f"Accuracy on the test split{level}", scores | {"prior": first["prior"]})]
    for other in first.get("transfer", {}):
        transferred = {arm: entry["transfer"][other] for arm, entry in arms.items()}
        tables.append(_accuracy_grid(f"Accuracy on level {other}, never trained on", transferred))
    tables += [_controls_grid(arms), _price_grid(arms)]
    sources = list(dict.fromkeys(source for entry in arms.values() for source in entry["mass"]))
    if sources:
        rows = [[source, *(_number(entry["mass"].get(source)) for entry in arms.values())] for source in sources]
        tables.append(Grid("Share of each source in the fused features", ["source", *arms], rows))
    return tables


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


def _price_grid(arms: Mapping[str, Mapping[str, Any]]) -> Grid:
    entries = arms.values()
    rows = [
        ["parameters", *(f"{entry['parameters']:,}" for entry in entries)],
        ["trainable in the last stage", *(f"{entry['trainable']:,}" for entry in entries)],
        ["tokens per second", *(f"{entry['tokens_per_second']:,.0f}" for entry in entries)],
        ["peak memory (MiB)", *(f"{entry['peak_memory_bytes'] / 2**20:,.0f}" for entry in entries)],
        ["training time, all stages (s)", *(f"{entry['seconds']:,.0f}" for entry in entries)],
    ]
    return Grid("Price", ["", *arms], rows)


def _introduction(comparison: Mapping[str, Any]) -> str:
    encoder, machine = comparison["encoder"], comparison["machine"]
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    return (
        f"{len(comparison['arms'])} arms, seed {comparison['seed']}, on one machine ({described}). "
        f"Lineage `{comparison['lineage']}`: the encoder was trained once, without any arm's fusion, and is the same "
        f"in all of them (hash `{encoder['hash']}`, checked). Answers are generated greedily for questions on images "
        "of the test split, which training never saw, and count as right when they equal the truth. The prior answers "
        "every question with the most frequent answer of its kind in training, without looking."
    )


def _encoder_section(encoder: Mapping[str, Any]) -> str:
    scores = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in encoder["scores"].items())
    return (
        f"## The encoder\n\nTrained on its own prompts in {encoder['seconds']:,.0f} s (`{encoder['run']}`). "
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
        f"- {arm}: " + ", ".join(f"`{run}`" for run in entry["runs"].values())
        for arm, entry in comparison["arms"].items()
    ]
    last = next(iter(comparison["arms"].values()))["runs"]
    run = list(last.values())[-1] if last else "RUN"
    return (
        "## Look closer, do it again\n\n"
        "```\n"
        "fvl ui                    # curves, configurations and answers of all runs side by side in MLflow\n"
        f"fvl evaluate {run}\n"
        f'fvl generate {run} --image IMAGE --prompt "what colour is the circle?"\n'
        "fvl demo                  # or: fvl compare COMPARISON.yaml, for arms of your own\n"
        "```\n\n"
        "Each run's folder holds its resolved configuration, its metrics and its weights:\n\n" + "\n".join(runs)
    )


def _markdown_table(grid: Grid) -> str:
    header = "| " + " | ".join(grid.header) + " |"
    rule = "|" + "|".join([":---", *["---:"] * (len(grid.header) - 1)]) + "|"
    rows = ["| " + " | ".join(row) + " |" for row in grid.rows]
    return "\n".join([f"## {grid.title}", "", header, rule, *rows])


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
