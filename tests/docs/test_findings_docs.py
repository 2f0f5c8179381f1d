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
SECTIONS = {
    section.partition("\n")[0]: section
    for section in (ROOT / "docs" / "findings.md").read_text(encoding="utf-8").split("\n## ")[1:]
}
"""{title: text} of the page, a section for each comparison."""


class Finding:
    """A saved comparison, its section of the page, and the report that the kit makes of it."""

    def __init__(self, name: str, file: str, title: str) -> None:
        self.saved = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        self.report = markdown(Comparison.read(self.saved))
        self.section = SECTIONS[title]
        self.config = load_config(ComparisonConfig, ROOT / "experiments" / file)


FINDINGS = {
    "fusions": Finding("fusions", "demo/fusions.yaml", "Seven fusions, five seeds"),
    "easy_vqa": Finding("easy_vqa", "easy_vqa/fusions.yaml", "easy-VQA: three fusions and davit alone"),
    "breadth": Finding("table5_breadth", "paper/table5_breadth.yaml", "Breadth: which prompt can be left out"),
    "equal_tokens": Finding(
        "fusions_at_equal_tokens", "studies/fusions_at_equal_tokens.yaml", "Eight fusions at equal image tokens"
    ),
}
findings = pytest.mark.parametrize("finding", FINDINGS.values(), ids=FINDINGS)
SAVED, REPORT, PAGE = (getattr(FINDINGS["fusions"], name) for name in ("saved", "report", "section"))
EASY_VQA, EASY = FINDINGS["easy_vqa"].saved, FINDINGS["easy_vqa"].section
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of all tables, headers left out."""
    tables = re.findall(r"^\|.*\|\n\|[-:| ]+\|\n((?:\|.*\|\n)+)", text, flags=re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for table in tables for row in table.splitlines()]


def on_task(arm: dict[str, Any]) -> dict[str, Any]:
    """The scores of an arm or a cell on easy-VQA."""
    scores: dict[str, Any] = arm["tasks"]["easy_vqa"]["scores"]
    return scores


def test_every_section_is_of_a_saved_comparison() -> None:
    assert list(SECTIONS.values()) == [finding.section for finding in FINDINGS.values()]


@findings
def test_every_row_is_one_of_the_report(finding: Finding) -> None:
    there = rows(finding.report)
    assert len(rows(finding.section)) > 12
    assert not [row for row in rows(finding.section) if row not in there]


def test_all_arms_answer_yes_or_no_without_looking() -> None:
    for arm in EASY_VQA["arms"].values():
        by_kind = on_task(arm)["by_kind"]
        assert by_kind["presence"] == pytest.approx(0.813, abs=0.01)
        assert by_kind["absence"] == pytest.approx(0.828, abs=0.01)
        assert min(by_kind["colour"], by_kind["shape"]) > 0.4
    assert "right for 0.813 and 0.828 of the questions" in " ".join(EASY.split())


@findings
def test_what_was_run_is_the_file_that_is_here(finding: Finding) -> None:
    saved, config = finding.saved, finding.config
    assert list(saved["arms"]) == list(config.arms)
    assert saved["seeds"] == config.seeds
    assert (saved["metric"], saved["lineage"]) == (config.metric, config.lineage)
    assert saved["statistics"]["baseline"] == config.baseline
    assert saved["statistics"]["smallest_effect"] == config.smallest_effect
    if config.evaluate is not None:
        assert {task["questions"] for task in saved["evaluation"]["tasks"].values()} == {config.evaluate.limit}


@findings
def test_the_verdicts_are_those_of_the_scores(finding: Finding) -> None:
    saved = finding.saved
    scores: dict[str, dict[int, float]] = {arm: {} for arm in saved["arms"]}
    for cell in saved["cells"]:
        scores[cell["arm"]][cell["seed"]] = (on_task(cell) if saved is EASY_VQA else cell["accuracy"])["macro"]
    statistics = saved["statistics"]
    assert 0.5 < mean(scores[statistics["baseline"]].values()) < 0.9, "or arms could hardly differ"
    found = compare_arms(scores, baseline=statistics["baseline"], smallest_effect=statistics["smallest_effect"])
    sentences = [contrast.sentence for contrast in found.contrasts]
    assert sentences == [contrast["sentence"] for contrast in statistics["contrasts"]]
    words = " ".join(finding.section.split())
    assert not [sentence for sentence in sentences if sentence not in words]


def test_what_is_said_of_breadth() -> None:
    saved, words = FINDINGS["breadth"].saved, " ".join(FINDINGS["breadth"].section.split())
    statistics = saved["statistics"]
    verdicts = {contrast["arm"]: contrast["verdict"] for contrast in statistics["contrasts"]}
    assert set(verdicts.values()) == {"not separated"}
    (caption,) = [contrast for contrast in statistics["contrasts"] if contrast["arm"] == "no_caption"]
    assert caption["interval"][1] < 0 < caption["simultaneous"][1]
    by_kind = {arm: found["accuracy"]["by_kind"] for arm, found in saved["arms"].items()}
    assert f"({by_kind['no_ocr']['word']:.3f} beside {by_kind['all']['word']:.3f})" in words
    lost = {kind: by_kind["all"][kind] - by_kind["no_grounding"][kind] for kind in by_kind["all"]}
    assert sorted(lost, key=lost.__getitem__)[-2:] == ["shortest", "tallest"]
    assert f"q at least {min(hint['q'] for hint in statistics['exploratory']['contrasts']):.2g}" in words


def test_what_is_said_of_equal_tokens() -> None:
    saved, words = FINDINGS["equal_tokens"].saved, " ".join(FINDINGS["equal_tokens"].section.split())
    statistics, arms = saved["statistics"], saved["arms"]
    contrasts = {contrast["arm"]: contrast for contrast in statistics["contrasts"]}
    (tokens,) = {arm["image_tokens"] for arm in arms.values()}
    assert tokens == 16
    assert {arm: found["verdict"] for arm, found in contrasts.items() if found["verdict"] != "not separated"} == {
        "token_concat": "worse"
    }
    assert f"alone, adjusted too, gives p = {contrasts['token_concat']['p_paired']:.2g}" in words
    breadth = FINDINGS["breadth"].saved["arms"]["all"]["accuracy"]["macro"]
    assert f"({arms['concat']['accuracy']['macro']:.3f} beside {breadth:.3f})" in words
    by_kind = {arm: found["accuracy"]["by_kind"] for arm, found in arms.items()}
    lost = {kind: by_kind["concat"][kind] - by_kind["token_concat"][kind] for kind in by_kind["concat"]}
    assert set(sorted(lost, key=lost.__getitem__)[-3:]) == {"digits", "shortest", "word"}
    flops = {arm: found["inference_flops"] for arm, found in arms.items()}
    assert 1 - flops["moe"] / flops["concat"] == pytest.approx(1 / 8, abs=0.005)


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
