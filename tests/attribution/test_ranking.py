"""Measures of the same sources side by side: rank correlations, and the sentences where they disagree."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.ranking import measures as module
from fvl_lightning.attribution.ranking.agreement import SourceMeasure, agreement
from fvl_lightning.attribution.ranking.measures import ranking_section
from fvl_lightning.attribution.ranking.section import section_of
from fvl_lightning.attribution.retrained.shapley import all_subsets
from fvl_lightning.reporting.section import PER_SOURCE, Section, section_markdown
from fvl_lightning.runs.folder import RunFolder
from tests.attribution.test_shapley import SOURCES, made_up_results

SEEDS = range(5)


def measure(name: str, means: Sequence[float], share: bool = False) -> SourceMeasure:
    """Numbers that vary a little over seeds."""
    noise = np.random.default_rng(len(name)).normal(0, 0.01, (len(SEEDS), len(means)))
    rows = (np.array(means) + noise).tolist()
    return SourceMeasure(name, {seed: dict(zip(SOURCES, rows[seed], strict=True)) for seed in SEEDS}, share)


SHAPLEY = measure("Shapley values", [0.3, 0.2, 0.1, 0.0])


def test_the_correlation_is_that_of_scipy_in_every_seed() -> None:
    other = measure("gates", [0.2, 0.21, 0.2, 0.22])
    found = agreement(other, SHAPLEY, SOURCES)
    assert found is not None
    pairs = [([*other.by_seed[s].values()], [*SHAPLEY.by_seed[s].values()]) for s in SEEDS]
    assert found.spearman.mean == pytest.approx(np.mean([stats.spearmanr(*pair).statistic for pair in pairs]))
    assert found.kendall.mean == pytest.approx(np.mean([stats.kendalltau(*pair).statistic for pair in pairs]))
    same = agreement(SHAPLEY, SHAPLEY, SOURCES)
    assert same is not None
    assert (same.spearman.mean, same.of_means, same.contradicted, same.overrated) == (pytest.approx(1), 1, (), ())


def test_a_seed_that_one_side_lacks_is_left_out() -> None:
    few = {seed: SHAPLEY.by_seed[seed] for seed in (1, 2)}
    fewer = replace(SHAPLEY, by_seed=few | {7: dict.fromkeys(SOURCES, 0.0)})
    found = agreement(fewer, SHAPLEY, SOURCES)
    assert found is not None
    assert found.spearman.seeds == 2
    assert agreement(replace(fewer, by_seed={7: {}}), SHAPLEY, SOURCES) is None


def test_it_says_where_gates_lie() -> None:
    gates = measure("gates of gated", [0.1, 0.3, 0.15, 0.45], share=True)
    section = section_of([gates, measure("knock-out losses", [0.5, 0.3, 0.2, 0.1])], SHAPLEY, SOURCES)
    assert "Gates of gated put `grounding` above `davit`, but Shapley values put `davit` above `grounding`." in (
        section.paragraphs[1]
    )
    assert "Gates of gated give `grounding` an equal share or more, but Shapley values do not show" in (
        section.paragraphs[1]
    )
    assert "Knock-out" not in section.paragraphs[1]
    assert section.values["agreement"]["knock-out losses"]["spearman"]["mean"] == pytest.approx(1)
    assert section.values["agreement"]["gates of gated"]["spearman_of_means"] == pytest.approx(-0.8)
    assert list(section.figures) == ["ranking_measures"]
    assert "| gates of gated | 5 |" in section_markdown(section)


def test_equal_numbers_have_no_rank_correlation() -> None:
    flat = SourceMeasure("gates", {seed: dict.fromkeys(SOURCES, 0.25) for seed in SEEDS}, share=True)
    section = section_of([flat], SHAPLEY, SOURCES)
    assert section.paragraphs[0] == "Spearman's correlation with Shapley values: not known for gates."


def test_the_measures_are_those_of_the_runs_with_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs are opened once, and no other run is."""
    worth = dict(zip(SOURCES, (0.1, 0.2, 0.0, 0.3), strict=True))
    results, places = made_up_results(
        lambda subset, seed: {"all": 0.2 + sum(worth[s] * (1 + 0.01 * seed) for s in subset)}, all_subsets(SOURCES)
    )
    monkeypatch.setattr(module, "read_places", lambda results: places)
    monkeypatch.setattr(OpenedComparison, "arms", {arm: dict.fromkeys(SEEDS, RunFolder(Path(arm))) for arm in places})
    asked: list[str] = []

    def make(run: RunFolder, names: Sequence[str], progress: Any) -> Mapping[str, Section]:
        asked.append(run.path.name)
        numbers = {"gates": {}, "knock_out": worth, "gradients": dict.fromkeys(SOURCES, 0.25)}
        return {name: Section(name, name, ["."], values={PER_SOURCE: numbers[name]}) for name in names}

    section = ranking_section(OpenedComparison(Path(), results, make))
    assert asked == ["a15"] * len(SEEDS)
    assert list(section.values["measures"]) == [
        "Shapley values", "losses of leaving out", "knock-out losses of a15", "gradient shares of a15"
    ]
    assert section.values["agreement"]["knock-out losses of a15"]["spearman"]["mean"] == pytest.approx(1)
