"""What the cells of a made-up comparison show, and what it costs."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from fvl_lightning.comparison.report.figures import accuracy_figure
from fvl_lightning.comparison.report.interval_figures import (
    holm_intervals,
    interval_figure,
    pareto_figure,
    pareto_front,
)
from fvl_lightning.comparison.report.sections import plugin_grids, questions_text, samples_text
from fvl_lightning.comparison.report.tables import differences_grid, statistics_grids, verdict_section, verdict_text
from fvl_lightning.comparison.result_files.cell import AnswerRow, ArmResult
from fvl_lightning.comparison.result_files.comparison import Comparison, MlflowEntry, SeedResult
from fvl_lightning.comparison.results import mean_result, sample_seeds
from fvl_lightning.comparison.statistics.image_bootstrap import LABEL
from fvl_lightning.comparison.statistics.summary import averaged, summarize
from fvl_lightning.comparison.statistics.verdicts import EXPLORATORY
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.profiling.flops import count_flops

KINDS = ("colour", "count")
MEANS = {"concat": 0.6, "gated": 0.8, "mean": 0.61}
QUESTIONS = 80


def cells(seeds: int, means: dict[str, float] | None = None) -> tuple[dict[int, Any], dict[str, Any]]:
    """Results and answers of three arms whose chance of a right answer is known; two questions per image."""
    random = np.random.default_rng(0)
    results: dict[int, Any] = {seed: {} for seed in range(seeds)}
    answers: dict[str, Any] = {}
    for arm, chance in (means or MEANS).items():
        answers[arm] = {}
        for seed in range(seeds):
            right = random.uniform(size=QUESTIONS) < chance
            rows = [
                AnswerRow(n // 2, KINDS[n % 2], "?", "red", "Red." if right[n] else "blue")
                for n in range(QUESTIONS)
            ]
            by_kind = {kind: float(right[k::2].mean()) for k, kind in enumerate(KINDS)}
            accuracy = KindScores(float(right.mean()), float(right.mean()), by_kind)
            results[seed][arm] = ArmResult(
                scores={"accuracy": accuracy}, image_zeroed=accuracy, image_shuffled=accuracy, prior=accuracy,
                unseen={"test_unseen_words": accuracy}, image_tokens=16, tokens_per_second=1, peak_memory_bytes=1,
                parameters=10**6, training_flops=10**7, inference_flops=10**6, trainable=1, seconds=1, same_start=1.0,
            )  # fmt: skip
            answers[arm][seed] = rows
    return results, answers


def shown(results: dict[int, Any], answers: dict[str, Any]) -> Comparison:
    """Their comparison."""
    return Comparison(
        name="made up",
        level=None,
        seed=0,
        lineage="end_to_end",
        mlflow=MlflowEntry(None, "", "", ""),
        encoder=None,
        machine={},
        cells=[],
        metric="accuracy/macro",
        seeds=list(results),
        arms={arm: mean_result([by_arm[arm] for by_arm in results.values()]) for arm in answers},
        differences={arm: {} if arm == "concat" else {"fusion.name": ["concat", arm]} for arm in answers},
        statistics=summarize("accuracy/macro", "concat", 0.02, results, answers),
    )


def test_seeds_give_verdicts_images_an_interval_and_kinds_a_hint() -> None:
    results, answers = cells(seeds=5)
    found = summarize("accuracy/macro", "concat", 0.02, results, answers)
    gated = found.contrasts[0]
    difference = np.mean([results[s]["gated"].score("accuracy/macro") - results[s]["concat"].score("accuracy/macro")
                          for s in range(5)])  # fmt: skip
    assert gated.verdict == "better"
    assert gated.estimate == pytest.approx(difference)
    assert found.images.label == LABEL
    image = found.images.arms["gated"]
    assert image.estimate == pytest.approx(difference)
    assert image.interval[0] < difference < image.interval[1]
    assert found.exploratory.label == EXPLORATORY
    assert {(hint.group, hint.arm) for hint in found.exploratory.contrasts} == {
        (group, arm) for group in (*KINDS, "test_unseen_words") for arm in ("gated", "mean")
    }


def test_a_missing_cell_leaves_its_seed_out_and_is_named() -> None:
    results, answers = cells(seeds=5)
    del results[3]["mean"], answers["mean"][3]
    found = summarize("accuracy/macro", "concat", 0.02, results, answers)
    assert found.notes == ("seed 3 is left out: no score from mean",)
    assert found.tested_seeds == (0, 1, 2, 4)
    assert list(found.images.arms) == ["gated", "mean"]


def test_other_questions_are_found() -> None:
    results, answers = cells(seeds=3)
    answers["gated"][1] = answers["gated"][1][::-1]
    with pytest.raises(DataError, match="arm gated with seed 1 was asked other questions than concat"):
        summarize("accuracy/macro", "concat", 0.02, results, answers)


def test_the_report_speaks_of_seeds_and_never_of_a_winner_with_one() -> None:
    several = shown(*cells(seeds=5))
    words = verdict_section(several)
    assert "gated is better than concat by" in words
    assert "What 5 seeds show" in words
    assert "it takes" in words
    titles = [grid.title for grid in statistics_grids(several)]
    assert titles == [
        "Accuracy, macro average over kinds, over seeds",
        "Difference to concat",
        "Difference to concat over images",
        "Difference to concat by kind",
    ]
    arms, contrasts, images, hints = statistics_grids(several)
    scores = several.statistics.arms[0]
    assert arms.rows[0] == ["concat", f"{scores.mean:.3f}", f"{scores.sd:.3f}", "5"]
    assert contrasts.rows[0][-1] == "better"
    assert images.note.startswith("These trained models, new images")
    assert hints.note.startswith("Exploratory, adjusted by Benjamini-Hochberg")
    assert differences_grid(several).rows[0] == ["fusion.name", "concat", "gated", "mean"]
    one = shown(*cells(seeds=1))
    assert statistics_grids(one) == []
    assert "no winner is named" in verdict_section(one)
    assert {contrast.verdict for contrast in one.statistics.contrasts} == {"not testable"}


def test_figures_show_every_arm() -> None:
    several = shown(*cells(seeds=5))
    [axes] = interval_figure(several.statistics).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mean", "gated"]
    panels = pareto_figure(several).axes
    assert len(panels) == 3
    assert panels[0].get_legend_handles_labels()[1] == list(MEANS)
    several.arms["gated"].image_tokens = 4
    tokens = pareto_figure(several).axes[3]
    assert tokens.get_xlabel() == "image tokens in the language model"
    assert [bar.lines[0].get_xdata()[0] for bar in tokens.containers] == [16, 4, 16]  # type: ignore[attr-defined]


@pytest.mark.parametrize("means", [{"concat": 0.6, "gated": 0.8, "mean": 0.61}, {"concat": 0.6, "a": 0.62, "b": 0.55}])
def test_table_json_and_figure_have_one_verdict(means: dict[str, float]) -> None:
    """The label in the figure is the table's; the thin interval excludes zero exactly where there is a difference."""
    for seeds in (3, 5, 8):
        several = shown(*cells(seeds, means))
        statistics = several.statistics
        figure = interval_figure(statistics)
        labels = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]
        table = {row[0]: row[-1] for row in statistics_grids(several)[1].rows}
        intervals = holm_intervals(statistics)
        for contrast in statistics.contrasts:
            assert table[contrast.arm] == verdict_text(contrast, statistics.alpha)
            assert table[contrast.arm].startswith(contrast.verdict), "comparison.json"
            assert table[contrast.arm] in labels
            low, high = intervals[contrast.arm]
            assert (low > 0 or high < 0) == (contrast.p_holm <= statistics.alpha)
            weak = contrast.verdict in ("better", "worse") and contrast.p_paired > 0.05
            assert ("rests on pooling" in table[contrast.arm]) == weak
        assert {"← worse than concat  ", "  better than concat →"} <= set(labels)
        effect = statistics.smallest_effect
        low, high = figure.axes[0].get_xlim()
        assert low < -effect
        assert high > effect


def test_a_metric_of_errors_is_better_on_the_left() -> None:
    labels = [text.get_text() for text in interval_figure(shown(*cells(3)).statistics, False).axes[0].texts]
    assert {"← better than concat  ", "  worse than concat →"} <= set(labels)


@pytest.mark.parametrize("level", [0.002, 0.5, 0.995])
def test_axes_do_not_magnify_one_per_cent(level: float) -> None:
    results, answers = cells(3)
    for by_arm in results.values():
        for number, result in enumerate(by_arm.values()):
            score = level + 0.001 * number
            of_level = KindScores(score, score, dict.fromkeys(KINDS, score))
            result.scores["accuracy"] = result.prior = result.image_zeroed = result.image_shuffled = of_level
            result.training_flops *= 1 + 0.003 * number
    comparison = shown(results, answers)
    figure = pareto_figure(comparison)
    figure.canvas.draw()
    low, high = figure.axes[0].get_ylim()
    assert 0.1 <= high - low < 0.15
    assert low < level < high
    left, right = figure.axes[0].get_xlim()
    assert right - left >= 0.2 * 10
    for axis in (axes.xaxis for axes in figure.axes):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
        assert all(one.x1 < two.x0 for one, two in pairwise(boxes)), "labels of ticks touch"
    bars = accuracy_figure(comparison).axes[0]
    assert bars.get_ylim()[0] == 0
    assert bars.get_ylim()[1] == pytest.approx(max(0.1, level + 0.002) * 1.06, rel=0.01)


def test_the_score_of_every_seed_is_a_table_and_a_point() -> None:
    results, answers = cells(3)
    several = shown(results, answers)
    there = [(arm, seed) for arm in MEANS for seed in results if (arm, seed) != ("mean", 1)]
    several.cells = [SeedResult(arm, seed, results[seed][arm]) for arm, seed in there]
    grid = statistics_grids(several)[2]
    assert grid.title == "Accuracy, macro average over kinds, of each seed"
    score = {seed: results[seed]["mean"].score("accuracy/macro") for seed in results}
    assert grid.rows[2] == ["mean", f"{score[0]:.3f}", "-", f"{score[2]:.3f}"]
    [_, controls] = accuracy_figure(several).axes
    points = [line for line in controls.lines if line.get_marker() == "o"]
    assert list(points[6].get_ydata()) == pytest.approx([score[0], score[2]])
    assert len(controls.texts) == 0, "no number lies on a line"


def test_the_front_is_what_nothing_beats() -> None:
    costs = {"cheap": 1.0, "dear": 3.0, "worse": 3.0, "middle": 2.0, "twin": 2.0}
    scores = {"cheap": 0.5, "dear": 0.9, "worse": 0.8, "middle": 0.7, "twin": 0.7}
    assert pareto_front(costs, scores) == ["cheap", "dear", "middle", "twin"]
    losses = {arm: 1 - score for arm, score in scores.items()}
    assert pareto_front(costs, losses, higher_is_better=False) == ["cheap", "dear", "middle", "twin"]


def test_averages() -> None:
    entries = [{"n": 3, "x": {"a": 0.2, "b": None}, "name": "one"}, {"n": 3, "x": {"a": 0.4, "b": None}, "name": "two"}]
    assert averaged(entries) == {"n": 3, "x": {"a": pytest.approx(0.3), "b": None}, "name": "one"}
    assert averaged([]) is None


def test_operations_are_counted_forwards_backwards_and_in_attention() -> None:
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 8 * 4
    # The gradient of the weights alone: nothing asks for that of the input.
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * (2 * 3 * 8 * 4)
    query = torch.randn(1, 2, 5, 4)
    attention = count_flops(lambda: scaled_dot_product_attention(query, query, query, is_causal=True))
    assert attention == 2 * (2 * 2 * 5 * 5 * 4)


def test_a_score_that_is_not_finite_is_a_missing_cell_that_the_report_names() -> None:
    results, answers = cells(4)
    results[2]["gated"].scores["accuracy"].macro = float("nan")
    several = shown(results, answers)
    several.cells = [SeedResult(arm, seed, results[seed][arm]) for arm in MEANS for seed in results]
    assert "seed 2 is left out: no score from gated" in verdict_section(several)
    arms, _, seeds, *_ = statistics_grids(several)
    assert arms.rows[1][-1] == "3"
    assert seeds.rows[1][3] == "-"
    figure = pareto_figure(several)
    assert figure.axes[0].get_legend_handles_labels()[1] == ["concat", "mean"], "an arm without a mean has no point"
    assert np.isfinite(accuracy_figure(several).axes[0].get_ylim()).all()


def test_arms_that_tie_have_no_winner() -> None:
    results, answers = cells(5)
    for seed, by_arm in results.items():
        for result in by_arm.values():
            result.scores["accuracy"] = KindScores(0.5 + seed / 10, 0.5, {})
    found = summarize("accuracy/macro", "concat", 0.02, results, answers)
    assert {contrast.verdict for contrast in found.contrasts} == {"not testable"}


def test_the_samples_are_of_one_seed_where_all_arms_share_one() -> None:
    assert sample_seeds({"concat": [0, 1, 2], "gated": [1, 2]}) == {"concat": 1, "gated": 1}
    assert sample_seeds({"concat": [0], "gated": [1]}) == {"concat": 0, "gated": 1}
    several = shown(*cells(3))
    several.sample_seeds = {"concat": 1, "gated": 1, "mean": 1}
    assert samples_text(several) == "Answers of the models trained with seed 1.\n\n"
    several.sample_seeds = {"concat": 0, "gated": 1, "mean": 0}
    assert "models trained with different seeds (seed 0: concat, mean; seed 1: gated)." in samples_text(several)
    assert samples_text(shown(*cells(3))) == "", "a file of an earlier version does not say"


def test_plugins_and_few_questions_are_named() -> None:
    [grid] = plugin_grids({"film.py": "0123abcd"})
    assert grid.rows == [["`film.py`", "`0123abcd`"]]
    assert plugin_grids({}) == []
    few = "The test split has 41 questions. A score of few questions is coarse: count (1 question)."
    assert questions_text({"colour": 40, "count": 1}).strip() == few
