"""Images brought to the encoder's square, against Pillow's own operations."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.images.limits import MAX_PIXELS
from datamodules.images.transforms import Fit, to_pixels
from fvl_lightning.core.types import ImageSpec

SPEC = ImageSpec(24, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 4)
FILL = (123, 116, 103)
FITS: tuple[Fit, ...] = ("stretch", "pad", "crop")


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalised(image: Image.Image) -> Tensor:
    assert image.size == (SPEC.size, SPEC.size)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)


def resized(image: Image.Image) -> Tensor:
    return normalised(image.resize((SPEC.size, SPEC.size), Image.Resampling.BICUBIC))


SIZES = [(24, 24), (10, 10), (40, 100), (100, 40), (37, 38), (1, 1), (1, 300), (300, 1), (24, 25)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_stretch_is_a_bicubic_resize(height: int, width: int) -> None:
    pixels = noise(height, width)
    torch.testing.assert_close(to_pixels([pixels], SPEC)[0], resized(Image.fromarray(pixels)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pad_adds_the_mean_colour_before_the_resize(height: int, width: int) -> None:
    pixels = noise(height, width)
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    border = (left, top, side - width - left, side - height - top)
    square = ImageOps.expand(Image.fromarray(pixels), border, FILL)
    torch.testing.assert_close(to_pixels([pixels], SPEC, "pad")[0], resized(square), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_crop_keeps_the_square_in_the_middle(height: int, width: int) -> None:
    pixels = noise(height, width)
    expected = ImageOps.fit(Image.fromarray(pixels), (24, 24), Image.Resampling.BICUBIC, centering=(0.5, 0.5))
    torch.testing.assert_close(to_pixels([pixels], SPEC, "crop")[0], normalised(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(48, 96), (96, 48), (72, 24 * 5)])
def test_crop_is_the_shortest_side_resized_then_the_middle_cut_out(height: int, width: int) -> None:
    pixels = noise(height, width)
    scale = 24 / min(height, width)
    whole = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - 24) // 2, (whole.height - 24) // 2
    expected = normalised(whole.crop((left, top, left + 24, top + 24)))
    step = 1 / 255 / min(SPEC.std)
    torch.testing.assert_close(
        to_pixels([pixels], SPEC, "crop")[0], expected, rtol=0, atol=2.01 * step
    )  # two roundings


def test_padding_is_near_zero_once_normalised() -> None:
    padded = to_pixels([np.full((24, 96, 3), 255, np.uint8)], SPEC, "pad")[0]
    assert padded[:, :4].abs().max() <= 1 / 255 / min(SPEC.std)
    assert (padded[:, 11:13] > 2).all()


@pytest.mark.parametrize("fit", FITS)
def test_a_batch_is_its_images(fit: Fit) -> None:
    images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
    batch = to_pixels(images, SPEC, fit)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    assert batch.shape == (len(SIZES), 3, 24, 24)
    assert torch.equal(batch, torch.cat([to_pixels([image], SPEC, fit) for image in images]))
    assert to_pixels([], SPEC, fit).shape == (0, 3, 24, 24)


def test_images_are_left_as_they_were_and_may_be_read_only() -> None:
    image = noise(24, 24)
    image.flags.writeable = False
    before = image.copy()
    to_pixels([image], SPEC).zero_()
    assert np.array_equal(image, before)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200), fit=st.sampled_from(FITS))
@example(height=1, width=4000, fit="pad")
@example(height=4000, width=1, fit="crop")
@example(height=1, width=70_000, fit="stretch")
@example(height=70_000, width=2, fit="crop")
def test_any_size_gives_finite_values_within_the_range_of_colours(height: int, width: int, fit: Fit) -> None:
    pixels = to_pixels([noise(height, width)], SPEC, fit)
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    assert pixels.shape == (1, 3, 24, 24)
    assert pixels.isfinite().all()
    assert (pixels >= -mean / std - 1e-5).all()
    assert (pixels <= (1 - mean) / std + 1e-5).all()


@pytest.mark.parametrize(("height", "width"), [(3, 40_000), (40_000, 3), (9000, 100)])
def test_padding_allocates_a_bounded_square(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    canvases: list[tuple[int, int]] = []
    new = Image.new

    def recording(mode: str, size: tuple[int, int], *color: tuple[int, ...]) -> Image.Image:
        canvases.append(size)
        return new(mode, size, *color)

    monkeypatch.setattr(Image, "new", recording)
    pixels = to_pixels([np.full((height, width, 3), 255, np.uint8)], SPEC, "pad")[0]
    assert any(across == down for across, down in canvases)  # the square was among what was recorded
    assert max(across * down for across, down in canvases) <= MAX_PIXELS
    middle = pixels[:, 11:13, :] if width > height else pixels[:, :, 11:13]
    assert middle.std(dim=(1, 2)).max() < 1  # the image reaches from one end to the other
