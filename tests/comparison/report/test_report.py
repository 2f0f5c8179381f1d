"""The report of a made-up comparison: what it says is what the numbers are."""

import base64
import io
import json
import re
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from datamodules.demo.data import DemoData
from fvl_lightning.comparison.report.answer_sheet import answer_sheet
from fvl_lightning.comparison.report.description import MAX_LENGTH, description
from fvl_lightning.comparison.report.figures import Losses, accuracy_figure, loss_figure, source_weight_figure
from fvl_lightning.comparison.report.interval_figures import pareto_figure
from fvl_lightning.comparison.report.report import markdown, rich_tables, write_report
from fvl_lightning.comparison.result_files.cell import AnswerRow, Measurements
from fvl_lightning.comparison.result_files.comparison import Comparison, read_comparison
from fvl_lightning.comparison.result_files.statistics import ArmSummary, Contrast
from fvl_lightning.comparison.statistics.summary import summarize
from fvl_lightning.core import registry
from fvl_lightning.evaluation.metrics.base import AnswerMetric
from fvl_lightning.reporting.html_page import html_page
from fvl_lightning.reporting.tables import ABSENT

KINDS = ("bars", "colour", "count", "handwritten digits", "word colour")
ARMS = ("gated", "concat", "attention")
CURVES = {
    arm: {
        stage: Losses([[(step, 5.0 / step) for step in range(10, 60, 10)]], [[(30, 0.2)]])
        for stage in ("pretrain", "finetune")
    }
    for arm in ARMS
}


def scores(random: np.random.Generator) -> dict[str, Any]:
    by_kind = {kind: float(random.uniform(0, 1)) for kind in KINDS}
    return {"macro": sum(by_kind.values()) / len(by_kind), "overall": float(random.uniform(0, 1)), "by_kind": by_kind}


@pytest.fixture
def comparison() -> dict[str, Any]:
    random = np.random.default_rng(0)
    prior = scores(random)
    arms = {
        arm: {
            "accuracy": scores(random),
            "image_zeroed": scores(random),
            "image_shuffled": scores(random),
            "prior": prior,
            "unseen": {"test_unseen_words": scores(random), "test_unseen_pairs": scores(random)},
            "transfer": {"medium": scores(random)},
            "image_tokens": 16,
            "training_flops": 2_000_000 + number,
            "inference_flops": 700_000,
            "same_start": 1.0,
            "parameters": 1_234_567 + number,
            "trainable": 765_432 + number,
            "tokens_per_second": 5123.4,
            "peak_memory_bytes": 800 * 2**20,
            "seconds": 123.4,
            "mass": {} if arm == "concat" else {"davit": 0.75, "caption": 0.25},
            "runs": {"pretrain": f"runs/demo/{arm}/pretrain", "finetune": f"runs/demo/{arm}/finetune"},
        }
        for number, arm in enumerate(ARMS)
    }
    results = {3: {arm: Measurements.read(values) for arm, values in arms.items()}}
    answers = {arm: {3: [AnswerRow(index=0, kind="bars", question="?", truth="a", answer="a")]} for arm in ARMS}
    return {
        "name": "demo",
        "level": "easy",
        "seed": 3,
        "seeds": [3],
        "metric": "accuracy/macro",
        "mlflow": {
            "run_id": "0123abcd", "experiment": "fvl-demo", "folder": "runs/demo", "search": "tags.parent = '0123abcd'",
        },
        "cells": [{"arm": arm, "seed": 3, **arms[arm]} for arm in ARMS],
        "differences": {arm: {} if arm == "gated" else {"fusion.name": ["gated", arm]} for arm in ARMS},
        "statistics": summarize("accuracy/macro", "gated", 0.02, results, answers).plain(),
        "lineage": "frozen_encoder",
        "encoder": {
            "run": "runs/demo/encoder_pretrain",
            "hash": "ab12cd34ef56",
            "scores": {"caption_tokens": 0.94, "words": 0.99, "boxes": 0.97},
            "seconds": 181.2,
        },
        "machine": {"processor": "x86_64", "cores": 2},
        "arms": arms,
        "tuning": None,
        "test_readings": {"first": None, "last": None, "readings": 0, "again": {}, "others": [], "earlier": []},
    }


LIMITS = DemoData(DemoData.Config()).limits()


def text_of(comparison: dict[str, Any]) -> str:
    """The report of what comparison.json has."""
    return markdown(Comparison.read(comparison), LIMITS)


@pytest.fixture
def samples(tmp_path: Path) -> list[dict[str, Any]]:
    """One picture as an array, one as a file."""
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "picture.png")
    answers = {"gated": "Red.", "concat": "blue", "attention": ""}
    question = {"question": "what colour is the star?", "truth": "red", "answers": answers}
    array = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return [{"image": array, **question}, {"image": tmp_path / "picture.png", **question}]


def cells(text: str, title: str) -> dict[str, list[str]]:
    """{first cell: other cells} of the Markdown table under a title."""
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_files_are_whole(comparison: dict[str, Any], samples: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo"
    for _ in range(2):
        write_report(Comparison.read(comparison), samples, CURVES, folder)
    pictures = ["comparison.png", "loss_curves.png", "pareto.png", "samples.png"]
    assert {path.name for path in folder.iterdir()} == {"comparison.json", "report.html", "report.md", *pictures}
    page = (folder / "report.html").read_text(encoding="utf-8")
    inside = [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert sorted(inside) == sorted((folder / name).read_bytes() for name in pictures)
    assert page.count("<img") == len(pictures)
    assert "<table>" in page
    kept = json.loads((folder / "comparison.json").read_text())
    assert kept["arms"] == {arm: {"encoder_hash": "", **entry} for arm, entry in comparison["arms"].items()}
    assert read_comparison(folder).plain()["arms"] == kept["arms"]
    assert kept["statistics"]["contrasts"][0]["p_holm"] is None, "a single seed tests nothing"
    for link in re.findall(r"\]\(([^)]+)\)", (folder / "report.md").read_text()):
        assert (folder / link).is_file()
    for name in ("comparison.png", "loss_curves.png", "samples.png"):
        pixels = np.asarray(Image.open(folder / name).convert("RGB"))
        assert pixels.shape[0] > 200
        assert pixels.shape[1] > 700
        assert len(np.unique(pixels.astype(np.uint32) @ [65536, 256, 1])) > 50, "colours"


@pytest.mark.parametrize(
    ("verdicts", "line"),
    [
        (("better", "worse"), "**Better than gated: concat (+0.100).** Worse: attention (+0.050)."),
        (("better", "better"), "**Better than gated: concat (+0.100), attention (+0.050).**"),
        (("worse", "worse"), "**gated is better than every other arm.** Worse: concat (+0.100), attention (+0.050)."),
        (("equivalent", "worse"), "**No arm is shown to be better than gated.** Equivalent: concat (+0.100). Worse: "),
        (("not separated", "not testable"), "**No arm is shown to be better than gated.** Not separated: concat"),
    ],
)
def test_the_description_begins_with_who_won(comparison: dict[str, Any], verdicts: tuple[str, str], line: str) -> None:
    several = over_seeds(comparison, *verdicts)
    text = description(several, {"report": "#/x"})
    assert text.startswith(line)
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| ")]
    assert [row[0] for row in rows] == ["| arm", "| concat", "| attention", "| gated"], "the best one first"
    assert [row[-1] for row in rows[1:]] == [f"{verdicts[0]} |", f"{verdicts[1]} |", "baseline |"]
    assert rows[1][1:3] == ["0.600", "0.010"]
    assert text.endswith("[report](#/x)")


def test_a_description_is_short_and_says_what_is_missing(comparison: dict[str, Any]) -> None:
    assert description(Comparison.read(comparison), {}).startswith("**One seed ranks nothing:**")
    text = description(over_seeds(comparison, "better", "worse"), {}, ["1 of 9 cells failed (<b>\n|disk full)"])
    assert "**Incomplete:** 1 of 9 cells failed (&lt;b> \\|disk full)." in text
    many = Comparison.read(comparison)
    many.arms = {f"arm {number:04}": many.arms["gated"] for number in range(2000)}
    text = description(many, {"report": "#/x"})
    assert len(text) <= MAX_LENGTH
    assert "| arm 0000 |" in text
    assert text.endswith("[report](#/x)")


def over_seeds(comparison: dict[str, Any], concat: str, attention: str) -> Comparison:
    """The comparison with three seeds and these verdicts, which no test of it gave."""
    several = Comparison.read(comparison | {"seeds": [1, 2, 3]})
    means = {"gated": 0.5, "concat": 0.6, "attention": 0.55}
    contrasts = tuple(
        Contrast(arm, means[arm] - 0.5, verdict, "")  # type: ignore[arg-type]
        for arm, verdict in (("concat", concat), ("attention", attention))
    )
    arms = tuple(ArmSummary(arm, mean, 0.01, 3) for arm, mean in means.items())
    several.statistics = replace(several.statistics, arms=arms, contrasts=contrasts)
    return several


def test_text_of_users_stays_text(comparison: dict[str, Any]) -> None:
    """A kind of question is any text; none becomes a cell, HTML, a link or a picture."""
    evil = ['a | b', "<script>alert(1)</script>", "![x](http://evil/x.png)", "[x](javascript:alert(1))", "back\\|slash"]
    for arm in comparison["arms"].values():
        arm["accuracy"]["by_kind"] = dict.fromkeys(evil, 0.5)
    text = text_of(comparison)
    rows = [line for line in text.split("Accuracy on the test split")[1].splitlines() if line.startswith("| ")][1:6]
    assert [len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows] == [len(ARMS) + 3] * len(evil)
    page = html_page(f"{text}\n\n![y](http://evil/y.png) <b>z</b>", {"samples.png": b"png"}, "<i>")
    for kind in evil:
        assert f">{escape(kind)}</td>" in page
    assert re.findall(r"<(?:script|img|a|b|i)\b[^>]*>", page) == [
        '<img src="data:image/png;base64,cG5n" alt="images with question, truth and every arm\'s answer" />'
    ]
    assert "<title>&lt;i&gt;</title>" in page


def test_numbers_of_the_report_are_those_of_the_json(comparison: dict[str, Any]) -> None:
    text = text_of(comparison)
    table = cells(text, "Accuracy on the test split, level easy")
    assert table.pop("kind") == [*ARMS, "prior"]
    columns = [*(comparison["arms"][arm]["accuracy"] for arm in ARMS), comparison["arms"]["gated"]["prior"]]
    assert table.pop("macro average") == [f"{column['macro']:.3f}" for column in columns]
    assert table.pop("all questions") == [f"{column['overall']:.3f}" for column in columns]
    assert table == {kind: [f"{column['by_kind'][kind]:.3f}" for column in columns] for kind in KINDS}

    medium = cells(text, "Accuracy on level medium, never trained on")
    assert medium["colour"] == [
        f"{comparison['arms'][arm]['transfer']['medium']['by_kind']['colour']:.3f}" for arm in ARMS
    ]
    controls = cells(text, "Controls, macro average")
    assert controls["image zeroed"] == [f"{comparison['arms'][arm]['image_zeroed']['macro']:.3f}" for arm in ARMS]
    assert controls["unseen words"] == [
        f"{comparison['arms'][arm]['unseen']['test_unseen_words']['macro']:.3f}" for arm in ARMS
    ]
    cost = cells(text, "Cost")
    assert cost["parameters"] == ["1,234,567", "1,234,568", "1,234,569"]
    assert cost["peak memory (MiB)"] == ["800"] * 3
    assert cells(text, "Source weights")["davit"] == ["0.750", "-", "0.750"]


def test_the_report_says_what_it_must(comparison: dict[str, Any]) -> None:
    text = text_of(comparison)
    for words in (
        "One seed ranks nothing",
        "no winner is named",
        "`frozen_encoder`",
        "`ab12cd34ef56`",
        "16 words, 6 colours x 4 shapes",
        "caption tokens 0.940, words 0.990, boxes 0.970",
        "fvl ui",
        "fvl evaluate runs/demo/gated/finetune",
    ):
        assert words in text


def test_what_is_optional_may_be_missing(comparison: dict[str, Any]) -> None:
    comparison["level"] = None
    for entry in comparison["arms"].values():
        entry.pop("transfer")
        entry.pop("unseen")
        entry["mass"] = {}
    text = markdown(Comparison.read(comparison))
    for words in ("medium", "unseen", "closed", "Source weights", "None"):
        assert words not in text


def test_published_scores_are_a_table_of_their_own(comparison: dict[str, Any]) -> None:
    plain, tables = Comparison.read(comparison).plain(), text_of(comparison)
    assert "reference" not in plain
    published = {"gated": {"gqa": 62.7, "average": 50.8}, "concat": {"gqa": 62.0}}
    comparison["reference"] = {"source": "A paper, Table 1", "scores": published}
    again, text = Comparison.read(comparison), text_of(comparison)
    assert again.plain() == plain | {"reference": comparison["reference"]}
    assert cells(text, "As published") == {
        "score": ["gated (published)", "concat (published)"], "gqa": ["62.7", "62"], "average": ["50.8", ABSENT],
    }  # fmt: skip
    assert "A paper, Table 1. These are other models" in text
    before, _, published_on = text.partition("## As published")
    assert before + "## " + published_on.partition("\n## ")[2] == tables, "nothing else changes"


def test_numbers_that_json_does_not_have(
    comparison: dict[str, Any], samples: list[dict[str, Any]], tmp_path: Path
) -> None:
    comparison["arms"]["gated"]["mass"]["davit"] = float("nan")
    write_report(Comparison.read(comparison), samples, CURVES, tmp_path)
    kept = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert kept["arms"]["gated"]["mass"]["davit"] is None


def test_tables_fit_a_terminal_and_keep_the_order(comparison: dict[str, Any]) -> None:
    stream = io.StringIO()
    for table in rich_tables(Comparison.read(comparison)):
        Console(file=stream, width=80).print(table)
    text = stream.getvalue()
    assert "…" not in text
    assert re.search(r"kind\W+gated\W+concat\W+attention\W+prior", text)
    assert f"{comparison['arms']['concat']['accuracy']['macro']:.3f}" in text


def test_answers_are_marked(samples: list[dict[str, Any]]) -> None:
    figure = answer_sheet(samples)
    texts = {text.get_text(): text.get_color() for text in figure.findobj(Text)}
    right, wrong = texts["✓ gated: Red."], texts["✗ concat: blue"]
    assert right != wrong
    assert texts["✗ attention: (nothing)"] == wrong


def test_figures_of_many_arms(comparison: dict[str, Any]) -> None:
    first = comparison["arms"]["gated"]
    many = comparison | {"arms": {f"arm {number}": first for number in range(9)}}
    [by_kind, controls] = accuracy_figure(Comparison.read(many)).axes
    assert len(by_kind.patches) == 9 * len(KINDS)
    assert [patch.get_height() for patch in controls.patches[:3]] == [
        first[field]["macro"] for field in ("accuracy", "image_shuffled", "image_zeroed")
    ]


def test_curves() -> None:
    figure = loss_figure(CURVES)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["pretrain", "finetune"]
    [*_, training, validation] = figure.axes[0].lines
    assert list(training.get_xdata()) == [10, 20, 30, 40, 50]
    assert list(validation.get_xdata()) == [30]
    assert legend_of(figure) == [*ARMS, "training", "validation"]
    masses = {arm: {"davit": [(10, 0.7), (20, 0.6)], "caption": [(10, 0.3), (20, 0.4)]} for arm in ARMS[:2]}
    assert [axes.get_title(loc="left") for axes in source_weight_figure(masses).axes] == list(ARMS[:2])
    assert loss_figure({}).texts[0].get_text() == "nothing was logged"


def legend_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_of_several_seeds_have_a_mean_and_a_band() -> None:
    seeds = [[(1, 2.0), (2, 1.8), (3, 1.6)], [(1, 2.2), (2, 2.0)]]
    figure = loss_figure({"gated": {"finetune": Losses(seeds, seeds)}})
    [axes] = figure.axes
    assert list(axes.lines[0].get_ydata()) == pytest.approx([2.1, 1.9]), "the steps that every seed has logged"
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(2.2)
    band = "band: lowest to highest seed"
    assert legend_of(figure) == ["gated", "training, mean over 2 seeds", band, "validation, mean"]
    figure.canvas.draw()
    assert all(float(tick).is_integer() for tick in axes.get_xticks()), "steps are whole numbers"
    low, high = axes.get_ylim()
    assert high - low >= 0.2 * 2.2
    weights = source_weight_figure({"gated": {"davit": [[(1, 0.5), (2, 0.7)], [(1, 0.6), (2, 0.8)]]}})
    assert list(weights.axes[0].lines[0].get_ydata()) == pytest.approx([0.55, 0.75])
    assert legend_of(weights) == ["davit", "equal weights", "band: lowest to highest of 2 seeds"]


def test_another_metric_names_tables_and_axes(
    comparison: dict[str, Any], samples: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is drawn and written follows from the registered class: its title, criterion, bounds and direction."""
    registry.names("metric")
    monkeypatch.setitem(registry._components, "metric", dict(registry._components["metric"]))

    @registry.register("metric", "edits")
    class EditsMetric(AnswerMetric):
        """Difference of the lengths, in characters."""

        title, criterion, explanation = "Edit length", "characters", "are compared by their length"
        bounds, higher_is_better = (0.0, 50.0), False

        @dataclass
        class Config:
            """Nothing to set."""

        def score(self, text: str, truth: str) -> float:
            return float(abs(len(text) - len(truth)))

    for entry in [*comparison["arms"].values(), *comparison["cells"]]:
        entry["edits"] = entry.pop("accuracy", None) or entry["edits"]
    other = Comparison.read(comparison | {"metric": "edits/overall"})
    text = markdown(other)
    assert "## Edit length on the test split, level easy" in text
    assert "which training never saw, and are compared by their length." in text
    assert "accuracy" not in text.lower()
    axes = accuracy_figure(other).axes[0]
    assert axes.get_ylabel() == "edit length (characters)"
    assert axes.get_ylim() == pytest.approx((0, 0.1 * 50 * 1.06)), "scores below 1 of 50, on a tenth of the range"
    assert pareto_figure(other).axes[0].get_ylabel() == "edit length, overall (one seed)"
    marks = {text.get_text() for text in answer_sheet(samples, "edits").findobj(Text)}
    assert {"✗ gated: Red.", "✗ concat: blue"} <= marks, "no answer has the best score, a length of 3"
