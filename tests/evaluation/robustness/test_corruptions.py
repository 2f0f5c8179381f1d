"""Corrupted images: the same everywhere, of the same size, and the more unlike the original the stronger they are."""

import json

import numpy as np
import pytest

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.evaluation.robustness.corruptions import CORRUPTIONS, STRENGTHS, Pixels, content_seed, corrupt
from tests.conftest import ROOT


def natural_like(height: int, width: int, seed: int = 0) -> Pixels:
    """A picture whose spectrum falls as 1 / frequency, as that of photographs does, with a few edges."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    noise = np.fft.fft2(generator.standard_normal((3, height, width)))
    picture = np.moveaxis(np.fft.ifft2(noise * amplitude).real, 0, -1)
    picture = 128 + 45 * (picture - picture.mean()) / picture.std()
    picture[height // 3 : height // 2, width // 4 : width // 2] += 60
    return np.clip(picture, 0, 255).astype(np.uint8)


SIZES = [(64, 64), (90, 231)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_stronger_corruption_changes_more(name: str, size: tuple[int, int]) -> None:
    clean = natural_like(*size)
    kept = clean.copy()
    errors = []
    for strength in STRENGTHS:
        spoiled = corrupt(clean, name, strength)
        assert spoiled.shape == clean.shape
        assert spoiled.dtype == np.uint8
        errors.append(float(np.square(spoiled.astype(float) - clean).mean()))
    assert errors[0] > 0
    assert errors == sorted(set(errors))
    assert (clean == kept).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_result_depends_on_the_image_alone(name: str) -> None:
    clean, other = natural_like(48, 40), natural_like(48, 40, seed=1)
    first = corrupt(clean, name, 3)
    corrupt(other, name, 5)
    frozen = np.asfortranarray(clean)
    frozen.setflags(write=False)
    assert (corrupt(frozen, name, 3) == first).all()


def test_noise_and_occlusion_differ_between_images() -> None:
    clean, other = natural_like(48, 40), natural_like(48, 40, seed=1)
    assert content_seed(clean) != content_seed(other)
    assert content_seed(clean) != content_seed(clean.reshape(40, 48, 3))
    grey = np.full((50, 50, 3), 100, np.uint8)
    assert (corrupt(grey, "noise", 1, seed=0) != corrupt(grey, "noise", 1, seed=1)).any()
    assert (corrupt(grey, "occlusion", 1, seed=0) != corrupt(grey, "occlusion", 1, seed=1)).any()


def test_lengths_grow_with_images_above_224_pixels() -> None:
    small = natural_like(224, 224)
    large = small.repeat(2, 0).repeat(2, 1)
    for name in ("blur", "occlusion"):
        spoiled = corrupt(large, name, 5, seed=0)[1::2, 1::2].astype(float)
        assert np.abs(spoiled - corrupt(small, name, 5, seed=0)).mean() < 2
    noisy = corrupt(np.full((448, 448, 3), 128, np.uint8), "noise", 1)
    assert (noisy[::2, ::2] == noisy[1::2, 1::2]).all()  # a grain of two pixels


def test_a_small_image_is_blurred_as_much_as_a_part_of_a_larger_one() -> None:
    large = natural_like(224, 224)
    part = corrupt(large[:64, :64], "blur", 1)
    assert (part[:40, :40] == corrupt(large, "blur", 1)[:40, :40]).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_smallest_image_is_no_exception(name: str) -> None:
    for strength in STRENGTHS:
        assert corrupt(np.zeros((1, 2, 3), np.uint8), name, strength).shape == (1, 2, 3)


def test_mistakes_are_named() -> None:
    clean = natural_like(8, 8)
    with pytest.raises(ConfigError, match=r"unknown corruption 'blurr'.*did you mean 'blur'"):
        corrupt(clean, "blurr", 1)
    with pytest.raises(ConfigError, match="strength 6 is not one of 1, 2, 3, 4, 5"):
        corrupt(clean, "blur", 6)
    with pytest.raises(DataError, match="at most 65500 pixels a side, the image has 70000"):
        corrupt(np.zeros((1, 70_000, 3), np.uint8), "jpeg", 1)


# What a trained model scores: the numbers that benchmarks/controls.py saved.

SAVED = json.loads((ROOT / "benchmarks" / "results" / "controls.json").read_text(encoding="utf-8"))
SCORES = {name: found["score"]["value"] for name, found in SAVED["varied"].items()}
PAGE = " ".join((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_trained_model_scores_less_on_corrupted_images_and_less_with_each_strength(name: str) -> None:
    assert SAVED["parameters"][name] == list(CORRUPTIONS[name].parameters), "run benchmarks/controls.py again"
    scores = [SAVED["as it is"]["value"], *(SCORES[f"{name}-{strength}"] for strength in STRENGTHS)]
    assert scores == sorted(set(scores), reverse=True)
    changes = [SAVED["varied"][f"{name}-{strength}"]["change"]["interval"] for strength in STRENGTHS]
    assert all(interval[1] < 0 for interval in changes)


def test_a_trained_model_does_not_answer_without_its_image() -> None:
    assert SCORES["blind"] == pytest.approx(SAVED["prior of training"], abs=0.10)
    assert SCORES["shuffled"] == pytest.approx(SAVED["prior of training"], abs=0.10)


def test_the_page_has_these_numbers() -> None:
    corrupted = {name: score for name, score in SCORES.items() if "-" in name}
    most, least = max(corrupted, key=corrupted.__getitem__), min(corrupted, key=corrupted.__getitem__)
    for words in (
        f"concat ({SAVED['as it is']['value']:.3f} on {SAVED['questions']:,} questions)",
        f"{corrupted[most]:.3f} with `{most}` is the most, {corrupted[least]:.3f} with `{least}` the least",
        f"Without its image it scores {SCORES['blind']:.3f}, with another's {SCORES['shuffled']:.3f}.",
    ):
        assert words in PAGE
