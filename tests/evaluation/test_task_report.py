"""The report of an evaluation over made-up answers: it says what the numbers are, and has its pictures inside."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.accuracy import AccuracyMetric
from fvl_lightning.evaluation.metrics.base import KindScores, Reference
from fvl_lightning.evaluation.metrics.vqa_accuracy import VqaAccuracyMetric
from fvl_lightning.evaluation.report.assessment import TaskAssessment, assess
from fvl_lightning.evaluation.report.figures import score_figure
from fvl_lightning.evaluation.report.report import markdown, terminal_grids, write_report
from fvl_lightning.evaluation.report.tables import differences_grid
from fvl_lightning.evaluation.robustness.corruptions import STRENGTHS
from fvl_lightning.evaluation.statistics import resampling
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.evaluation.tasks.question import ONE_KIND
from fvl_lightning.evaluation.tasks.result import TaskResult, TaskSample

CLUSTERS, PER_CLUSTER = 90, 3
SKILL = {"runs/concat": 0.7, "runs/gated": 0.8}
LIGHTS = ("bright", "dark", "dim")
_, OVERALL = AccuracyMetric.averages


def answered(skill: float, variation: str, generator: np.random.Generator, task: str) -> TaskResult:
    """Answers to yes-or-no questions; those in the dark are worse, and wrong answers are mostly yes."""
    made = []
    for number in range(CLUSTERS * PER_CLUSTER):
        light = LIGHTS[number % CLUSTERS % 3]
        truth = ("yes", "no")[number // CLUSTERS % 2]
        right = generator.random() < skill - 0.35 * (light == "dark")
        text = truth if right else "yes" if generator.random() < 0.9 else "no"
        made.append(
            TaskSample(
                str(number), text, text, float(text == truth), Reference((truth,)), ("is", "has")[number % 2],
                f"image {number % CLUSTERS}", {"light": light},
            )
        )  # fmt: skip
    by_kind = {kind: float(np.mean([s.score for s in made if s.kind == kind])) for kind in ("has", "is")}
    scores = KindScores(float(np.mean(list(by_kind.values()))), float(np.mean([s.score for s in made])), by_kind)
    return TaskResult(task, f"{task.title()} | <b>", "accuracy", OVERALL, scores, made, variation=variation)


def assessed(task: str, varied: bool) -> TaskAssessment:
    generator = np.random.default_rng(ord(task[0]))
    results = {model: [answered(skill, "", generator, task)] for model, skill in SKILL.items()}
    if varied:
        for model, skill in SKILL.items():
            results[model] += [answered(0.5, name, generator, task) for name in ("blind", "shuffled")]
            results[model] += [answered(skill - 0.02, "paraphrase-1", generator, task)]
            for name, loss in (("blur", 0.05), ("noise", 0.03), ("jpeg", 0.01), ("occlusion", 0.06)):
                results[model] += [answered(skill - loss * s, f"{name}-{s}", generator, task) for s in STRENGTHS]
    metric = AccuracyMetric(AccuracyMetric.Config(), ["is", "has"])
    return assess(results, metric, published={"paper": 0.85} if varied else None)


@pytest.fixture(scope="module")
def tasks() -> list[TaskAssessment]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "RESAMPLES", 300)
        patch.setattr(resampling, "FEWEST_RESAMPLES", 300)
        return [assessed("lamps", varied=True), assessed("doors", varied=False)]


def test_the_numbers_are_those_of_the_results(tasks: list[TaskAssessment]) -> None:
    lamps = tasks[0]
    assert list(lamps.statistics.scores) == list(SKILL)
    (pair,) = lamps.statistics.differences
    scores = lamps.statistics.scores
    assert pair.difference.value == pytest.approx(scores["runs/gated"].value - scores["runs/concat"].value)
    assert lamps.prior.value == pytest.approx(0.5, abs=0.2)
    assert lamps.above_prior["runs/gated"].value == pytest.approx(scores["runs/gated"].value - lamps.prior.value)
    varied = {(row.model, row.variation): row for row in lamps.varied}
    assert len(varied) == 2 * (3 + 4 * len(STRENGTHS))
    blurred = varied["runs/concat", "blur-5"]
    assert blurred.corruption == ("blur", 5)
    assert blurred.change.value == pytest.approx(blurred.score.value - scores["runs/concat"].value)
    assert varied["runs/concat", "paraphrase-1"].corruption is None
    assert {found.worst for found in lamps.slices} == {"dark"}
    assert tasks[1].varied == ()


def test_the_report_says_them(tasks: list[TaskAssessment], tmp_path: Path) -> None:
    (tmp_path / "slices.9.png").write_bytes(b"of an earlier report")
    written = write_report(tasks, tmp_path, {"precision": "32-true"})
    assert sorted(path.name for path in written) == sorted(path.name for path in tmp_path.iterdir())
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "scores.png", "corruptions.1.png", "slices.1.png", "slices.2.png",
    }  # fmt: skip
    text = (tmp_path / "report.md").read_text()
    assert "these trained models, new questions" in text
    assert "precision: 32-true." in text
    for task in tasks:
        for found in task.statistics.scores.values():
            assert f"{found.value:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f})" in text
    assert "answers 'yes' to" in text
    assert "light: worse than all questions" in text
    assert "0.850" in text
    page = (tmp_path / "report.html").read_text()
    assert set(re.findall(r'src="([^"]{15})', page)) == {"data:image/png;"}
    assert "<b>" not in page
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(numbers["tasks"]) == ["lamps", "doors"]
    score = numbers["tasks"]["lamps"]["statistics"]["scores"]["runs/gated"]
    assert score["value"] == tasks[0].statistics.scores["runs/gated"].value


def test_one_model_has_no_differences(tasks: list[TaskAssessment]) -> None:
    titles = [grid.title for grid in terminal_grids(tasks)]
    corrupted = [f"Lamps | <b>: {model} on corrupted images" for model in SKILL]
    assert titles == ["Scores", "Differences", "Lamps | <b>: controls", *corrupted]
    generator = np.random.default_rng(0)
    alone = assess(
        {"m": [answered(0.7, "", generator, "lamps")]}, AccuracyMetric(AccuracyMetric.Config(), ["is", "has"])
    )
    assert "## Differences" not in markdown([alone])


def test_no_prior_is_sent_to_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AccuracyMetric, "asks_server", True)
    monkeypatch.setattr(AccuracyMetric, "score_answer", lambda *_: pytest.fail("an answer was judged"))
    generator = np.random.default_rng(0)
    found = assess({"m": [answered(0.7, "", generator, "lamps"), answered(0.6, "blind", generator, "lamps")]},
                   AccuracyMetric(AccuracyMetric.Config(), ["is", "has"]))  # fmt: skip
    assert np.isnan(found.prior.value)
    assert "| answer prior | - |" in markdown([found])
    assert score_figure([found])


def test_a_model_without_a_plain_result_is_refused() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(DataError, match="m has 0 results on the task as it is"):
        assess({"m": [answered(0.7, "blind", generator, "lamps")]}, AccuracyMetric(AccuracyMetric.Config(), ["is"]))


def test_what_a_difference_shows_is_named(tasks: list[TaskAssessment]) -> None:
    zero = replace(tasks[0].statistics.differences[0], difference=Estimate(0.1, (-0.1, 0.3)))
    above, below = (replace(zero, difference=Estimate(sign * 0.2, tuple(sorted((sign * 0.1, sign * 0.3)))))
                    for sign in (1, -1))  # fmt: skip
    task = replace(tasks[0], statistics=replace(tasks[0].statistics, differences=(zero, above, below)))
    shown = [row[-1] for row in differences_grid([task, replace(task, higher_is_better=False)])[0].rows]
    assert shown == ["not separated", "better", "worse", "not separated", "worse", "better"]


def test_empty_answers_and_references_that_disagree_are_remarked() -> None:
    people = {"a": ("stop", "stop"), "b": ("stop", "halt"), "c": ("stop",) * 9 + ("halt",)}
    made = [TaskSample(key, "", "", 0.0, Reference(answers)) for key, answers in people.items()]
    result = TaskResult("signs", "Signs <b>", "vqa_accuracy", OVERALL, KindScores(0.0, 0.0), made)
    found = assess({"m": [result]}, VqaAccuracyMetric(VqaAccuracyMetric.Config(), [ONE_KIND]))
    assert found.attainable == pytest.approx((1 + 0.5 + 1) / 3)
    assert found.described == "VQA accuracy over all questions"
    (grid,) = terminal_grids([found])
    assert "On Signs <b>, at most 0.833 is attainable, since references disagree." in grid.note
    assert "Warning: on Signs <b>, m gives an empty answer to 3 of 3 questions." in grid.note
    assert "Warning: on Signs &lt;b>, m gives" in markdown([found])
    agreed = replace(result, primary="macro", samples=[replace(s, prediction="x", reference=Reference(("x",) * 4))
                                                       for s in made])  # fmt: skip
    found = assess({"m": [agreed]}, VqaAccuracyMetric(VqaAccuracyMetric.Config(), [ONE_KIND]))
    assert terminal_grids([found])[0].note == ""
    assert found.described == "VQA accuracy over all questions", "of one kind, no average over kinds"
