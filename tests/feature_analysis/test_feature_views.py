"""Numbers of features against values that are known: linear CKA, effective rank, explained variance, shared PCA."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.feature_analysis import images
from fvl_lightning.feature_analysis.effective_rank import effective_rank
from fvl_lightning.feature_analysis.explained import held_out_fits
from fvl_lightning.feature_analysis.images import encode_images
from fvl_lightning.feature_analysis.places import at_common_places, share_of_place, without_place
from fvl_lightning.feature_analysis.shared_pca import by_width, shared_pca
from fvl_lightning.feature_analysis.similarity import cka_matrix, linear_cka


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=9))[0]


@pytest.mark.parametrize("rows", [30, 5], ids=["more rows than columns", "fewer"])
def test_cka_equals_its_formula(rows: int) -> None:
    x, y = random(rows, 6), random(rows, 4, seed=1)
    centre = torch.eye(rows, dtype=torch.float64) - 1 / rows
    of_x, of_y = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert linear_cka(x, y) == pytest.approx(float((of_x * of_y).sum() / (of_x.norm() * of_y.norm())), abs=1e-12)


def test_cka_of_known_fixtures() -> None:
    """Of orthogonal columns of norm 1, k of which X and Y of n have in common, it is k / n."""
    columns = torch.linalg.qr(random(40, 7) - random(40, 7).mean(0))[0]
    columns = torch.linalg.qr(columns - columns.mean(0))[0]
    assert linear_cka(columns[:, :4], columns[:, 3:]) == pytest.approx(1 / 4, abs=1e-9)
    assert linear_cka(columns[:, :3], columns[:, 3:]) == pytest.approx(0, abs=1e-9)
    assert math.isnan(linear_cka(torch.ones(5, 3), random(5, 2)))


def test_cka_ignores_rotations_scales_and_means_but_no_other_maps() -> None:
    x, y = random(50, 6), random(50, 6, seed=1)
    value = linear_cka(x, y)
    assert linear_cka(-3 * x @ rotation(6) + 7, 0.1 * y @ rotation(6)) == pytest.approx(value, abs=1e-12)
    assert linear_cka(x, x @ rotation(6)) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, x * torch.tensor([9.0, 1, 1, 1, 1, 1])) < 0.9


def test_a_matrix_of_cka_has_every_pair() -> None:
    sources = {"a": random(30, 3), "b": random(30, 5, seed=1), "constant": torch.ones(30, 2)}
    matrix = cka_matrix(sources)
    assert torch.equal(matrix.isnan(), torch.tensor([[False, False, True]] * 2 + [[True] * 3]))
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(linear_cka(sources["a"], sources["b"]), abs=1e-12)


@pytest.mark.parametrize("directions", [1, 3, 6])
def test_the_effective_rank_counts_directions_of_equal_deviation(directions: int) -> None:
    columns = torch.linalg.qr(random(50, 7) - random(50, 7).mean(0))[0]
    columns = torch.linalg.qr(columns - columns.mean(0))[0][:, :directions]
    assert effective_rank(5 * columns @ rotation(6)[:directions] + 2) == pytest.approx(directions, abs=1e-6)


def test_the_effective_rank_is_of_singular_values_and_not_of_their_squares() -> None:
    """Singular values 3 and 1: shares 3/4 and 1/4."""
    x = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    assert effective_rank(x) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert math.isnan(effective_rank(torch.ones(4, 3)))


def test_the_share_that_davit_does_not_explain_is_that_of_the_planted_noise() -> None:
    """Of a source = map of davit + place + noise, with variances 3 : any : 1, a quarter; of a copy nothing."""
    davit, noise = random(80, 9, 8), random(80, 9, 8, seed=1)
    place = 10 * random(9, 8, seed=2)
    sources = {"planted": 3**0.5 * davit @ rotation(8) + place + noise, "copy": davit - place, "noise": noise}
    shares = {name: fit.unexplained for name, fit in held_out_fits(davit, sources, range(80)).items()}
    assert shares["planted"] == pytest.approx(0.25, abs=0.03)
    assert shares["copy"] < 1e-6
    assert shares["noise"] == pytest.approx(1, abs=0.05)


def test_an_image_is_explained_by_others_only() -> None:
    """More columns than rows fit anything that they have seen."""
    davit, unrelated = random(12, 2, 60), random(12, 2, 4, seed=1)
    (fit,) = held_out_fits(davit, {"unrelated": unrelated}, range(12)).values()
    assert fit.unexplained > 0.8
    with pytest.raises(ValueError, match="2 groups"):
        held_out_fits(davit, {"unrelated": unrelated}, [0, 1] * 6)


def test_tiles_of_one_sample_are_held_out_together() -> None:
    """Each image is there five times: with a twin among the fitted images, it would be explained."""
    davit, unrelated = random(9, 1, 40).repeat(5, 1, 1), {"unrelated": random(9, 1, 3, seed=1).repeat(5, 1, 1)}
    assert held_out_fits(davit, unrelated, [*range(9)] * 5)["unrelated"].unexplained > 0.8
    assert held_out_fits(davit, unrelated, range(45))["unrelated"].unexplained < 0.1


def test_maps_are_brought_to_the_smallest_grid_and_other_tokens_are_left_out() -> None:
    sources = {"large": torch.arange(2 * 17.0).view(2, 17, 1), "small": random(2, 4, 3), "no map": random(2, 5, 3)}
    specs = {
        "large": FeatureSpec(17, 1, (4, 4)), "small": FeatureSpec(4, 3, (2, 2)), "no map": FeatureSpec(5, 3, None)
    }  # fmt: skip
    found = at_common_places(sources, specs)
    assert list(found) == ["large", "small"]
    assert found["large"][0, :, 0].tolist() == [3.5, 5.5, 11.5, 13.5]  # means of 2 x 2 behind the first token
    assert torch.equal(found["small"], sources["small"])
    fewer = at_common_places(sources, specs, rows=6)
    assert fewer["large"].shape == (2, 3, 1)
    assert set(fewer["large"][0, :, 0].tolist()) < {3.5, 5.5, 11.5, 13.5}


def test_the_share_of_place_is_what_all_images_have_in_common() -> None:
    content, place = random(400, 9, 4), random(9, 4, seed=1)
    assert share_of_place(torch.zeros_like(content) + place) == pytest.approx(1)
    assert share_of_place(content) == pytest.approx(0, abs=0.01)
    assert without_place(content + place).mean(0).abs().max() < 1e-12


def test_components_are_those_of_all_sources_together() -> None:
    """The first source varies along one direction, the second along another one: both are found, by their variance."""
    a, b = torch.zeros(2, 50, 6), torch.zeros(2, 50, 6)
    a[..., 4] = 3 * torch.linspace(-1, 1, 100).view(2, 50)
    b[..., 1] = torch.linspace(-1, 1, 100).view(2, 50)
    found = shared_pca({"a": a + 5, "b": b - 40})
    assert found.shares == pytest.approx((0.9, 0.1, 0), abs=1e-6)
    assert found.colours["a"][..., 1].std() < 1e-6
    assert found.colours["b"][..., 0].std() < 1e-6
    assert found.colours["a"][0, 0, 0] == 0
    assert found.colours["a"][1, -1, 0] == 1, "the largest entry of a component is positive"


def test_equal_features_have_equal_colours_in_every_source() -> None:
    x = random(3, 16, 8)
    found = shared_pca({"one": x, "same elsewhere": x + 100, "half": x / 2})
    assert torch.allclose(found.colours["one"], found.colours["same elsewhere"], atol=1e-5)
    assert not torch.allclose(found.colours["one"], found.colours["half"], atol=1e-2)
    assert shared_pca({"narrow": x[..., :2]}).colours["narrow"][..., 2].unique().tolist() == [0.5]
    assert by_width({"a": x, "b": x[..., :2], "c": x}) == [["a", "c"], ["b"]]


class Store:
    """Samples 0 .. 9: odd ones have no image."""

    shards = ("a.tar",)

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return 10

    def image_count(self, index: int) -> int:
        return self.images * (1 - index % 2)


class TiledData:
    """Sample n has 1 + n % 4 tiles, whose pixels are 10 n + the number of the tile."""

    def __init__(self, images: int) -> None:
        self.images = images

    def store(self, split: str) -> Store:
        return Store(self.images)

    def tile_counts(self, split: str, index: int) -> list[int]:
        return [1 + index % 4]

    def pixels(self, split: str, indices: list[int]) -> Tensor:
        return torch.stack([torch.full((3, 2, 2), 10.0 * n + tile) for n in indices for tile in range(1 + n % 4)])


class Echo(torch.nn.Linear):
    """An encoder whose one source is the first pixel."""

    specs = {"seen": FeatureSpec(1, 1, (1, 1))}  # noqa: RUF012

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        assert len(pixels) <= images.SAMPLES_AT_ONCE
        return {"seen": pixels[:, :1, :1, 0]}


def test_images_and_tiles_keep_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SAMPLES_AT_ONCE", 2)
    data: Any = TiledData(1)
    encoder: Any = Echo(1, 1)
    found = encode_images(encoder, data, samples=4)
    assert found.samples == (0, 2, 2, 2, 4, 6, 6, 6)
    assert found.sources["seen"].flatten().tolist() == [0, 20, 21, 22, 40, 60, 61, 62]
    assert found.pixels(data, 6)[0, 0, 0] == 61
    monkeypatch.setattr(images, "MAX_NUMBERS", 4)
    assert len(encode_images(encoder, data, samples=4)) <= 4
    none: Any = TiledData(0)
    with pytest.raises(DataError, match="no images"):
        encode_images(encoder, none)
