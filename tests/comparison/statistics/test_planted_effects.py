"""Comparisons of real trainings where the truth is known; benchmarks/planted_effects.py has what is trained."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import binom

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.training.lr_schedule import warmup_cosine
from fvl_lightning.training.optimizer import build_optimizer
from tests.planted_trainings import planted_effects

STEPS = 3


@pytest.fixture(scope="module")
def planted() -> Iterator[Any]:
    """The benchmark as a module."""
    with planted_effects() as (module, _):
        yield module


@pytest.mark.parametrize("stream", [0, 2])
def test_a_batched_training_is_a_training_of_the_kit(planted: Any, stream: int) -> None:
    arm = planted.Arm("pattern", 0.6, stream)
    batched, _ = planted.train(arm, [5, 6], STEPS)
    model = planted.build(arm, 6)
    optimizer = build_optimizer(model, planted.OPTIMIZER)
    schedule = warmup_cosine(optimizer, planted.OPTIMIZER, STEPS)
    images, classes = planted.images(planted.TRAINING_IMAGES, 1)
    for drawn in planted.order(6, STEPS):
        rows = torch.tensor([[planted.BOS, planted.IMAGE, planted.ASKED, 0]]).repeat(len(drawn), 1)
        rows[:, -1] = planted.FIRST_CLASS + classes[drawn]
        labels = rows.clone()
        labels[:, :-1] = IGNORE_INDEX
        model(rows, pixel_values=images[drawn], labels=labels).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(batched[f"model.{name}"][1], parameter, atol=1e-5, rtol=1e-4, msg=name)


def test_arms_alike_differ_in_the_initial_values_of_the_fusion_alone(planted: Any) -> None:
    one, other = (dict(planted.build(planted.Arm("pattern", 0.6, stream), 0).named_parameters()) for stream in (0, 1))
    unlike = {name for name in one if not torch.equal(one[name], other[name])}
    assert unlike == {name for name in one if name.startswith("fusion.")}


@pytest.mark.slow
def test_arms_that_are_alike_are_told_apart_no_more_often_than_stated(planted: Any) -> None:
    found = planted.alike(planted.ALIKE)
    assert found["comparisons"] == 100
    assert found["difference_sd"] > 0.02, "trainings that do not differ prove nothing"
    assert 0.35 < found["accuracy"] < 0.65, "in the middle of the scale"
    assert found["claims"] <= binom.ppf(0.999, 100, 0.05)


@pytest.mark.slow
def test_a_planted_effect_is_found_the_more_often_the_stronger_it_is(planted: Any) -> None:
    found = planted.planted(planted.PLANTED)
    better = [row["better"] for row in found.values()]
    assert planted.PLANTED == 20
    assert planted.STRENGTHS[0] == 0
    assert better[0] <= binom.ppf(0.999, 20, 0.05)
    assert all(more >= fewer - 1 for fewer, more in pairwise(better)), better
    assert better[-3:] == [20, 20, 20]
    assert [row["worse"] for row in list(found.values())[1:]] == [0] * (len(better) - 1)
    assert all(row["noise"] <= binom.ppf(0.999, 20, 0.05) for row in found.values())
