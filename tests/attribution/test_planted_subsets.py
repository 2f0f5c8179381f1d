"""Trainings on all subsets of sources of known worth: one with the answer, a copy of it, and two of noise."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fvl_lightning.attribution.retrained.shapley import all_subsets, worth_table
from fvl_lightning.attribution.retrained.worths import worths_of
from fvl_lightning.comparison.statistics.seed_means import seed_means
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.initialization import initialize
from tests.planted_trainings import planted_effects

pytestmark = pytest.mark.slow

PLAYERS = {"pattern": "pattern", "copy": "pattern", "noise_1": "noise_1", "noise_2": "noise_2"}
"""{source: the encoder's source that it is}"""
CHANCE, STRENGTH = 0.25, 1.5
SEEDS = (0, 1, 2, 3, 4)
CLOSE = 0.06
"""Largest distance of a worth from its known value: a twelfth of the scale from chance to certainty."""


@pytest.fixture(scope="module")
def planted() -> Iterator[Any]:
    """The benchmark as a module, whose arms are subsets of the sources."""
    with planted_effects() as (module, patch):

        def build(sources: frozenset[str], seed: int) -> FlorenceVLForConditionalGeneration:
            fused = [PLAYERS[player] for player in PLAYERS if player in sources]
            config = module.model_config("pattern", STRENGTH, fused_sources=fused)
            model = FlorenceVLForConditionalGeneration(config)
            initialize(model, seed)
            return model

        patch.setattr(module, "build", build)
        yield module


def gates(planted: Any, sources: frozenset[str], parameters: dict[str, torch.Tensor], number: int) -> dict[str, float]:
    """The mean weights of the sources in a trained model, on the test images."""
    model = planted.build(sources, SEEDS[number])
    own = {name.removeprefix("model."): values[number] for name, values in parameters.items()}
    model.load_state_dict(own, strict=False)
    images, _ = planted.images(planted.TEST_IMAGES, 2)
    with torch.no_grad():
        found = model.eval().embed_images(images).diagnostics
    return {name.removeprefix("mass/"): float(value) for name, value in found.items() if name.startswith("mass/")}


def test_worths_are_the_known_ones_and_gates_do_not_show_them(planted: Any) -> None:
    every = frozenset(PLAYERS)
    trained = {subset: planted.train(subset, SEEDS) for subset in all_subsets([*PLAYERS])}
    worths = worths_of(worth_table({subset: scores for subset, (_, scores) in trained.items()}, [*PLAYERS]), SEEDS)
    gain = float(worths.spread.mean)
    assert gain > 0.3
    np.testing.assert_allclose(worths.shapley.sum(1), worths.table[:, -1] - worths.table[:, 0], atol=1e-12)
    assert worths.shapley_means.mean == pytest.approx([gain / 2, gain / 2, 0, 0], abs=CLOSE), "copies share the gain"
    assert (worths.shapley_means.interval[:2, 0] > 0).all()
    copies = seed_means(worths.shapley[:, 0] - worths.shapley[:, 1])
    assert copies.interval[0] < 0 < copies.interval[1] or abs(copies.mean) < CLOSE / 2
    assert worths.interactions.mean[0, 1] == pytest.approx(-gain, abs=2 * CLOSE), "they stand in for each other"
    assert worths.left_out.mean == pytest.approx([0, 0, 0, 0], abs=CLOSE), "none is missed alone"
    assert worths.alone.mean == pytest.approx([gain, gain, 0, 0], abs=2 * CLOSE)
    alone = [gates(planted, every - {"copy"}, trained[every - {"copy"}][0], number) for number in range(len(SEEDS))]
    both = [gates(planted, every, trained[every][0], number) for number in range(len(SEEDS))]
    shared = seed_means([one["pattern"] - two["pattern"] for one, two in zip(alone, both, strict=True)])
    assert shared.interval[0] > 0, "a copy takes weight from the source, though the source is what it was"
