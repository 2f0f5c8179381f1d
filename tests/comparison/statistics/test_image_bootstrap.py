"""Intervals over new images: what is drawn, which score is computed, and how often the truth is inside."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fvl_lightning.comparison.statistics.image_bootstrap import image_intervals
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.statistics import resampling as module

Bools = NDArray[np.bool_]


def answered(images: int, per_image: int, generator: np.random.Generator, gain: float = 0.1) -> tuple[Bools, Bools]:
    """Answers `[images * per_image]` of two arms; how hard an image is weighs on all of its questions in both."""
    hard, harder = generator.uniform(0, 0.9, images), generator.uniform(0, 0.9, images)
    shape = (images, per_image)
    first = generator.random(shape) < hard[:, None]
    second = generator.random(shape) < (harder + gain)[:, None]
    return first.ravel(), second.ravel()


def test_the_interval_is_that_of_the_mean_over_images() -> None:
    first, second = answered(400, 1, np.random.default_rng(0))
    found = image_intervals({"a": first, "b": second}, range(400), "a")
    assert list(found) == ["b"]
    difference = second.astype(float) - first
    assert found["b"].estimate == pytest.approx(difference.mean())
    half = 1.96 * difference.std() / np.sqrt(400)
    expected = (difference.mean() - half, difference.mean() + half)
    assert found["b"].interval == pytest.approx(expected, abs=0.1 * half)


def test_more_questions_on_the_same_images_are_not_more_images() -> None:
    first, second = answered(100, 1, np.random.default_rng(1))
    once = image_intervals({"a": first, "b": second}, range(100), "a")
    often = image_intervals(
        {"a": np.repeat(first, 9), "b": np.repeat(second, 9)}, np.repeat(range(100), 9).tolist(), "a"
    )
    assert often == once


def test_arms_are_scored_on_the_same_images() -> None:
    first, _ = answered(50, 4, np.random.default_rng(2))
    images = np.repeat(range(50), 4).tolist()
    found = image_intervals({"a": first, "b": first, "c": ~first}, images, "a")
    assert found["b"].interval == (0, 0)
    low, high = found["c"].interval
    assert low < found["c"].estimate < high


def test_seeds_are_averaged() -> None:
    generator = np.random.default_rng(4)
    seeds = generator.random((3, 60)) < 0.5
    images = np.repeat(range(20), 3).tolist()
    one = image_intervals({"a": seeds[:1], "b": seeds}, images, "a")
    other = image_intervals({"a": seeds[0].astype(float), "b": seeds.mean(0)}, images, "a")
    assert one == other
    assert one["b"].estimate == pytest.approx(seeds.mean() - seeds[0].mean())


def test_kinds_weigh_alike() -> None:
    kinds = ["colour"] * 90 + ["count"] * 10
    first, second = np.zeros(100), np.r_[np.zeros(90), np.ones(10)]
    images = list(range(100))
    assert image_intervals({"a": first, "b": second}, images, "a")["b"].estimate == pytest.approx(0.1)
    assert image_intervals({"a": first, "b": second}, images, "a", kinds)["b"].estimate == pytest.approx(0.5)


def test_a_kind_of_one_question_is_left_out_of_draws_without_it() -> None:
    kinds = ["colour"] * 20 + ["count"]
    found = image_intervals({"a": np.zeros(21), "b": np.ones(21)}, list(range(21)), "a", kinds)
    assert found["b"].interval == (1, 1)


def test_the_size_of_a_chunk_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {arm: np.random.default_rng(5).random((2, 30)) ** power for arm, power in {"a": 1, "b": 2}.items()}
    at_once = image_intervals(scores, range(30), "a", seed=3)
    monkeypatch.setattr(module, "MAX_WEIGHTS", 7000)
    in_chunks = image_intervals(scores, range(30), "a", seed=3)["b"].interval
    assert in_chunks == pytest.approx(at_once["b"].interval, rel=1e-12)
    assert image_intervals(scores, range(30), "a", seed=4)["b"].interval != pytest.approx(in_chunks, rel=1e-6)


def test_arms_with_other_questions_are_refused() -> None:
    with pytest.raises(DataError, match="arm b has answers to 3 questions, expected 4"):
        image_intervals({"a": np.ones(4), "b": np.ones(3)}, [0, 0, 1, 1], "a")
    with pytest.raises(DataError, match="arm b"):
        image_intervals({"a": np.ones((2, 4)), "b": np.ones((0, 4))}, [0, 0, 1, 1], "a")


@pytest.mark.slow
def test_images_are_covered_and_drawing_questions_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RESAMPLES", 1000)
    monkeypatch.setattr(module, "FEWEST_RESAMPLES", 1000)
    generator = np.random.default_rng(6)
    tables = [answered(100, 8, generator) for _ in range(400)]

    def coverage(images: list[int]) -> float:
        found = (image_intervals({"a": a, "b": b}, images, "a")["b"].interval for a, b in tables)
        return float(np.mean([low <= 0.1 <= high for low, high in found]))

    assert 0.925 <= coverage(np.repeat(range(100), 8).tolist()) <= 0.975
    assert coverage(list(range(800))) < 0.85


def test_a_single_image_has_no_interval() -> None:
    found = image_intervals({"concat": [[1, 0]], "gated": [[1, 1]]}, [4, 4], "concat")["gated"]
    assert found.estimate == 0.5
    assert np.isnan(found.interval).all()
