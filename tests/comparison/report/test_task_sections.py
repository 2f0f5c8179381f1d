"""The report of a comparison that is judged on tasks: what it says is what the numbers are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.comparison.report.description import description
from fvl_lightning.comparison.report.report import write_report
from fvl_lightning.comparison.report.task_figure import task_figure
from fvl_lightning.comparison.report.task_sections import task_grids, tasks_text
from fvl_lightning.comparison.result_files.comparison import Comparison, MlflowEntry, SeedResult, read_comparison
from fvl_lightning.comparison.results import mean_result
from fvl_lightning.comparison.tracking import arm_metrics, task_contrasts
from fvl_lightning.reporting.files import json_bytes
from tests.comparison.statistics.test_families import judged, statistics


def compared(metric: str, made: Any = None, **settings: Any) -> Comparison:
    """Three arms of five seeds, of which gated is better at words alone."""
    results, answers, tasks = made or judged({("gated", "words"): 0.25}, **settings)
    return Comparison(
        name="made up", level=None, seed=0, seeds=list(results), lineage="end_to_end", metric=metric, encoder=None,
        mlflow=MlflowEntry(None, "", "", ""), machine={}, differences={arm: {} for arm in answers},
        arms={arm: mean_result([by_arm[arm] for by_arm in results.values()]) for arm in answers},
        cells=[SeedResult(arm, seed, by_arm[arm]) for arm in answers for seed, by_arm in results.items()],
        statistics=statistics(metric, results, answers, tasks), evaluation=tasks.evaluation,
    )  # fmt: skip


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    found = compared("tasks/shapes/overall", pairs="all", macro={"documents": ["words", "charts"]})
    assert found.evaluation is not None
    found.evaluation.test_split = False
    return found


def test_a_comparison_on_tasks_alone_speaks_of_tasks(comparison: Comparison, tmp_path: Path) -> None:
    for cell in comparison.cells:
        cell.result.runs = {"finetune": "runs/x"}
    write_report(comparison, [], {}, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"tasks.png", "intervals.png", "pareto.png", "report.md", "comparison.json"}
    assert not names & {"comparison.png", "samples.png"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for words in (
        "Every cell answered the same questions of these tasks: Shapes (60 questions in 30 clusters, Accuracy over all",
        "Shapes, Accuracy over all questions is the primary score, and tested by itself.",
        "The other 3 scores are tested as one family, adjusted by Holm",
        "## Other pairs, Shapes, Accuracy over all questions",
        "## Differences on tasks",
        "9 tests, adjusted by Holm: the probability of any false claim in this table is at most 5 %",
        "These trained models, new questions",
        "![scores of every arm on every task](tasks.png)",
    ):
        assert words in text, words
    for words in ("test split", "prior", "Controls", "Sample answers"):
        assert words not in text, words
    assert json_bytes(read_comparison(tmp_path).plain()) == json_bytes(comparison.plain())


def test_tables_figure_json_and_mlflow_have_the_same_numbers(comparison: Comparison) -> None:
    assert comparison.statistics.tasks is not None
    family, metrics = comparison.statistics.tasks.family, arm_metrics(comparison)
    scores, _, table, questions = task_grids(comparison)
    assert scores.rows[0][0] == "Shapes, Accuracy over all questions, primary"
    assert [len(row) for row in scores.rows] == [4] * 4
    assert metrics["score/gated"] == comparison.arms["gated"].score("tasks/shapes/overall")
    assert metrics["tasks/words/gated"] == comparison.arms["gated"].tasks["words"].scores.overall
    assert metrics["macro/documents/mean"] == comparison.arms["mean"].macro["documents"]
    named = task_contrasts(comparison)
    assert list(named)[:3] == ["tasks/words/gated", "tasks/words/mean", "tasks/words/mean - gated"]
    for row, (name, contrast) in zip(table.rows, named.items(), strict=True):
        assert row[2] == f"{metrics[f'difference/{name}']:+.3f}"
        assert row[4] == f"{metrics[f'p_adjusted/{name}']:.2g}"
        assert row[5] == contrast.verdict
    assert [row[5] for row in table.rows[:2]] == ["better", "not separated"]
    assert len(family.contrasts) == len(table.rows) == 3 * 3
    assert [row[0] for row in questions.rows[:2]] == ["Shapes, Accuracy over all questions"] * 2
    panels = [axes.get_title(loc="left") for axes in task_figure(comparison).axes if axes.get_visible()]
    assert panels == ["Shapes, primary", "Words", "Charts", "documents"]


def test_the_description_names_what_the_family_has_found(comparison: Comparison) -> None:
    text = description(comparison, {})
    assert "Shapes, Accuracy over all questions. On 3 other scores (Holm): Words: gated better (+" in text
    assert "on the test split" not in text


def test_a_score_of_the_test_split_may_be_primary() -> None:
    found = compared("tasks/words/overall", correction="benjamini_hochberg")
    assert "The other 2 scores are tested as one family, adjusted by Benjamini-Hochberg." in tasks_text(found)
    _, family, _ = task_grids(found)
    assert "at most 5 % of the claims in this table are expected to be false" in family.note
    found.metric = "accuracy/macro"
    assert "Their 3 scores are tested as one family" in tasks_text(found)


def test_a_task_with_slices_has_a_table_of_them() -> None:
    """In the dark gated answers nothing right; the other arms are right as often as elsewhere."""
    results, answers, tasks = judged()
    for arm, by_seed in tasks.samples["words"].items():
        for samples in by_seed.values():  # type: ignore[attr-defined]
            for place, sample in enumerate(samples):
                dark = place // 2 % 3 == 0
                score = 0.0 if dark and arm == "gated" else sample.score
                samples[place] = replace(sample, score=score, slices={"light": "dark" if dark else "bright"})
    comparison = compared("tasks/shapes/overall", (results, answers, tasks))
    assert comparison.statistics.tasks is not None
    (found,) = comparison.statistics.tasks.slices
    assert (found.task, found.by, [group.value for group in found.groups]) == ("words", "light", ["bright", "dark"])
    assert found.groups[1].scores["gated"] == 0
    assert found.worst["gated"].group == "dark"
    assert found.worst["gated"].interval[0] > 0.1
    assert found.worst["concat"].interval[0] == 0
    by_hand = [sample.score for samples in tasks.samples["words"]["mean"].values() for sample in samples
               if sample.slices["light"] == "bright"]  # fmt: skip
    assert found.groups[0].scores["mean"] == pytest.approx(sum(by_hand) / len(by_hand))
    grid = task_grids(comparison)[-1]
    assert grid.title == "Words: by light"
    assert [row[:3] for row in grid.rows[:2]] == [["bright", "40", "20"], ["dark", "20", "10"]]
    assert grid.rows[2][0] == "all minus worst"
    assert grid.rows[2][3 + list(comparison.arms).index("gated")].endswith("), dark")
    assert "Warning, light: fewer than 30 clusters" in grid.note
    assert json_bytes(Comparison.read(comparison.plain()).plain()) == json_bytes(comparison.plain())
