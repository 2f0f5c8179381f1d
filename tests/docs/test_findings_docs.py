"""docs/findings.md, and what README.md shows of it: every number is of a comparison that was saved."""

import json
import re
from statistics import mean
from typing import Any

import pytest

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.report.report import markdown
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.statistics.verdicts import compare_arms
from fvl_lightning.core.config.loading import load_config
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"
SAVED = json.loads((RESULTS / "fusions.json").read_text(encoding="utf-8"))
EASY_VQA = json.loads((RESULTS / "easy_vqa.json").read_text(encoding="utf-8"))
REPORT, EASY_REPORT = (markdown(Comparison.read(saved)) for saved in (SAVED, EASY_VQA))
PAGE, EASY = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8").split("\n## easy-VQA: ")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, headers left out."""
    tables = re.findall(r"^\|.*\|\n\|[-:| ]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for table in tables for row in table.splitlines()]


def on_task(arm: dict[str, Any]) -> dict[str, Any]:
    """The scores of an arm or a cell on easy-VQA."""
    scores: dict[str, Any] = arm["tasks"]["easy_vqa"]["scores"]
    return scores


def test_every_row_is_one_of_the_report() -> None:
    there = rows(REPORT)
    assert len(rows(PAGE)) > 20
    assert not [row for row in rows(PAGE) if row not in there]


def test_every_row_about_easy_vqa_is_one_of_its_report() -> None:
    there = rows(EASY_REPORT)
    assert len(rows(EASY)) > 12
    assert not [row for row in rows(EASY) if row not in there]


def test_all_arms_answer_yes_or_no_without_looking() -> None:
    for arm in EASY_VQA["arms"].values():
        by_kind = on_task(arm)["by_kind"]
        assert by_kind["presence"] == pytest.approx(0.813, abs=0.01)
        assert by_kind["absence"] == pytest.approx(0.828, abs=0.01)
        assert min(by_kind["colour"], by_kind["shape"]) > 0.4
    assert "right for 0.813 and 0.828 of the questions" in " ".join(EASY.split())


@pytest.mark.parametrize(("saved", "file"), [(SAVED, "demo/fusions.yaml"), (EASY_VQA, "easy_vqa/fusions.yaml")])
def test_what_was_run_is_the_file_that_is_here(saved: dict[str, Any], file: str) -> None:
    config = load_config(ComparisonConfig, ROOT / "experiments" / file)
    assert list(saved["arms"]) == list(config.arms)
    assert saved["seeds"] == config.seeds
    assert (saved["metric"], saved["lineage"]) == (config.metric, config.lineage)
    assert saved["statistics"]["baseline"] == config.baseline
    assert saved["statistics"]["smallest_effect"] == config.smallest_effect
    if config.evaluate is not None:
        assert {task["questions"] for task in saved["evaluation"]["tasks"].values()} == {config.evaluate.limit}


@pytest.mark.parametrize(("saved", "page"), [(SAVED, PAGE), (EASY_VQA, EASY)], ids=["demo", "easy_vqa"])
def test_the_verdicts_are_those_of_the_scores(saved: dict[str, Any], page: str) -> None:
    scores: dict[str, dict[int, float]] = {arm: {} for arm in saved["arms"]}
    for cell in saved["cells"]:
        scores[cell["arm"]][cell["seed"]] = (cell["accuracy"] if saved is SAVED else on_task(cell))["macro"]
    statistics = saved["statistics"]
    assert 0.5 < mean(scores[statistics["baseline"]].values()) < 0.9, "or arms could hardly differ"
    found = compare_arms(scores, baseline=statistics["baseline"], smallest_effect=statistics["smallest_effect"])
    sentences = [contrast.sentence for contrast in found.contrasts]
    assert sentences == [contrast["sentence"] for contrast in statistics["contrasts"]]
    words = " ".join(page.split())
    assert not [sentence for sentence in sentences if sentence not in words]


@pytest.mark.parametrize("arm", SAVED["arms"])
def test_the_readme_shows_the_same(arm: str) -> None:
    (shown,) = [row for row in rows(README) if row[0] == f"`{arm}`"]
    (seeds,) = [row for row in rows(REPORT) if row[0] == arm and len(row) == 4]
    differences = [row for row in rows(REPORT) if row[0] == arm and len(row) == 5]
    assert shown[1] == seeds[1]
    if differences:
        assert shown[2:5] == [differences[0][1], differences[0][2], differences[0][4]]
    else:
        assert arm == SAVED["statistics"]["baseline"]


def test_no_arm_answers_without_looking() -> None:
    """Images zeroed and another question's image: near the prior of the training answers, every cell within 0.10."""
    scores = {
        control: [arm[control]["macro"] for arm in SAVED["arms"].values()]
        for control in ("image_zeroed", "image_shuffled")
    }
    ranges = [f"{min(found):.3f} to {max(found):.3f}" for found in scores.values()]
    prior = SAVED["arms"]["concat"]["prior"]["macro"]
    for words in (f"zeroed the arms score {ranges[0]}", f"another question's image {ranges[1]}", f"scores {prior:.3f}"):
        assert words in " ".join(PAGE.split())
    for cell in SAVED["cells"]:
        assert [cell[control]["macro"] for control in scores] == pytest.approx([prior, prior], abs=0.10)
        assert cell["accuracy"]["macro"] > prior + 0.45


def test_how_sure_it_is() -> None:
    """What the page says in words of pooled and paired tests, of intervals and of kinds."""
    statistics = SAVED["statistics"]
    contrasts = {contrast["arm"]: contrast for contrast in statistics["contrasts"]}
    assert {arm for arm, found in contrasts.items() if found["p_paired"] > 0.05} == {"mean", "gated"}
    assert (f"{contrasts['mean']['p_paired']:.2f}", f"{contrasts['gated']['p_paired']:.2f}") == ("0.13", "0.15")
    assert {arm for arm, found in contrasts.items() if found["simultaneous"][1] > 0} == {"mean", "attention", "gated"}
    assert all(found["interval"][1] > -statistics["smallest_effect"] for found in contrasts.values())
    assert f"{min(hint['q'] for hint in statistics['exploratory']['contrasts']):.2g}" == "0.096"
    for words in ("mean (0.13) and gated (0.15)", "include zero for mean, attention and gated", "q at least 0.096"):
        assert words in " ".join(PAGE.split())
