"""Boxes from location bins to pixels, and drawn so that a person can read them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fvl_lightning.inference import boxes as box_picture
from fvl_lightning.inference.boxes import BOX_COLOURS, MAX_SIDE, MIN_SIDE, Box, PixelBox, draw_boxes, in_pixels

GREY = (90, 90, 90)


def grey(width: int, height: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GREY[0], np.uint8)


@pytest.mark.parametrize(
    ("corners", "bins", "size", "frame"),
    [
        ((0, 0, 31, 31), 32, (64, 64), (1, 1, 63, 63)),
        ((0, 0, 999, 999), 1000, (2000, 500), (1, 0.25, 1999, 499.75)),
        ((31, 16, 0, 8), 32, (64, 32), (1, 8.5, 63, 16.5)),
        ((5, 5, 5, 5), 10, (100, 10), (55, 5.5, 55, 5.5)),
    ],
)
def test_a_corner_is_the_middle_of_its_bin(
    corners: tuple[int, int, int, int], bins: int, size: tuple[int, int], frame: tuple[float, ...]
) -> None:
    assert in_pixels(Box("a", corners), bins, *size).frame == pytest.approx(frame)


@pytest.mark.parametrize("bins", [32, 1000])
def test_a_box_comes_back_to_within_half_a_bin(bins: int) -> None:
    width, height = 640, 400
    for value in np.linspace(0, 0.999, 50):
        corner = int(value * bins)
        left, top, _, _ = in_pixels(Box("a", (corner, corner, corner, corner)), bins, width, height).frame
        assert abs(left - value * width) <= width / bins / 2 + 1e-9
        assert abs(top - value * height) <= height / bins / 2 + 1e-9


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((64, 64), (768, 768)),
        ((100, 40), (800, 320)),
        ((1000, 600), (1000, 600)),
        ((4096, 1024), (MAX_SIDE, 512)),
        ((1, 1), (MIN_SIDE, MIN_SIDE)),
        ((1, 60_000), (1, MAX_SIDE)),
    ],
)
def test_the_picture_has_a_size_to_look_at(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    box = PixelBox("thing", (0, 0, size[0], size[1]))
    picture = draw_boxes(grey(*size), [box])
    assert (picture.mode, picture.size) == ("RGB", drawn)


def test_small_pixels_stay_sharp_and_what_is_outside_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = np.asarray(draw_boxes(pixels, []))
    assert np.array_equal(picture[::12, ::12], pixels)
    assert np.array_equal(picture, pixels.repeat(12, 0).repeat(12, 1))


def test_neighbours_have_colours_of_their_own_and_every_label_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four boxes in the same place: their tags cover neither each other nor leave the picture."""
    placed = []
    tag = box_picture._tag

    def noted(pen: object, place: tuple[float, ...], text: str, font: object, colour: tuple[int, ...]) -> None:
        placed.append((place, text, colour))
        tag(pen, place, text, font, colour)  # type: ignore[arg-type]

    monkeypatch.setattr(box_picture, "_tag", noted)
    boxes = [PixelBox(f"thing {k}", (10, 10, 50, 50)) for k in range(4)]
    picture = draw_boxes(grey(64, 64), boxes)
    assert [text for _, text, _ in placed] == [box.label for box in boxes]
    assert len({colour for _, _, colour in placed}) == 4
    for number, (place, _, colour) in enumerate(placed):
        left, top, right, bottom = place
        assert 0 <= left < right <= picture.width
        assert 0 <= top < bottom <= picture.height
        assert picture.getpixel((int(left) + 2, int(top) + 2)) == colour
        for other, _, _ in placed[:number]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize("frame", [(0, 0, 64, 64), (63, 63, 63, 63), (0, 60, 3, 64), (60, 0, 64, 3)])
def test_a_tag_at_the_edge_stays_in_the_picture(frame: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    monkeypatch.setattr(box_picture, "_tag", lambda pen, place, *rest: places.append(place))
    draw_boxes(grey(64, 64), [PixelBox("a rather long label of a thing at the very edge " * 9, frame)])  # type: ignore[arg-type]
    (left, top, right, bottom) = places[0]
    assert 0 <= left < right <= 768
    assert 0 <= top < bottom <= 768


def test_labels_that_would_steer_a_terminal_or_break_lines_are_drawn_as_symbols() -> None:
    strange = PixelBox("\x1b[31m\n\u202e" + "x" * 500, (5, 5, 30, 30))
    assert isinstance(draw_boxes(grey(64, 64), [strange, PixelBox("", (1, 1, 9, 9))]), Image.Image)


def test_more_boxes_than_colours() -> None:
    boxes = [PixelBox("x", (2 * k, 2 * k, 2 * k + 3, 2 * k + 3)) for k in range(2 * len(BOX_COLOURS) + 1)]
    colours = {colour for _, colour in draw_boxes(grey(64, 64), boxes).getcolors(1 << 20) or []}
    assert set(BOX_COLOURS) <= colours
