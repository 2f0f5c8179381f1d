"""What is checked about a row before it becomes a sample."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from datamodules.building.config import BuildConfig
from datamodules.building.row_to_sample import MAX_IMAGES, BuiltSample, prepare_chunk
from datamodules.building.splits import few_images, place_of, split_at
from datamodules.sources.base import Refusal, Row, Source
from fvl_lightning.core.config.loading import check_config

Bytes = Callable[..., bytes]
SPLITS = {"train": 0.5, "validation": 0.5}


class OneRow(Source):
    """The row it is given."""

    def chunks(self) -> Any:
        yield None

    def rows(self, chunk: Any) -> Any:
        yield self.config


def prepared(record: dict[str, Any], *images: bytes) -> BuiltSample | Refusal:
    return next(prepare_chunk(OneRow(Row(record, images)), 12, None, SPLITS))


def talk(*content: Any, role: str = "user", answer: Any = "yes") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(content)}, {"role": "assistant", "content": answer}]}


IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "what?"}


@pytest.mark.parametrize(
    ("record", "images", "reason", "detail"),
    [
        ({}, 1, "no text", ""),
        ({"caption": " \n"}, 1, "no text", ""),
        ({"caption": 7}, 1, "bad text", "caption is a int"),
        ({"caption": "a\0b"}, 1, "bad text", "a NUL character"),
        ({"caption": "ok", "ocr": ["\0"]}, 1, "bad text", "a NUL character"),
        ({"caption": "a\ud83d"}, 1, "bad text", r"half a character ('\ud83d')"),
        ({"caption": "ok", "score": float("nan")}, 1, "bad record", "Out of range float values are not JSON compliant"),
        ({"caption": "ok", "raw": b"x"}, 1, "bad record", "Object of type bytes is not JSON serializable"),
        ({"messages": []}, 0, "bad messages", "no messages"),
        (talk(IMAGE, TEXT, role="human"), 1, "bad messages", "message 0 has no role of system, user, assistant"),
        ({"messages": talk(TEXT)["messages"][:1]}, 0, "bad messages", "no message of the assistant"),
        (talk(TEXT, answer=[IMAGE]), 1, "bad messages", "an answer holds an image"),
        ({"caption": "a <video> of it"}, 1, "placeholder", "'<video>' is left in a text"),
        (talk(IMAGE, {"type": "text", "text": "<image_2>?"}), 1, "placeholder", "'<image_2>' is left in a text"),
        (talk(TEXT, answer="<image>"), 0, "placeholder", "'<image>' is left in a text"),
        ({"caption": "caf\udce9"}, 1, "bad text", "the byte 0xe9, which is no UTF-8"),
        ({"caption": "x" * 2**24}, 1, "row too large", f"{2**24 + 14} bytes of JSON, at most {2**24} are read"),
        (talk(IMAGE, TEXT), 0, "image count", "0 images, the messages speak of 1"),
        (talk(TEXT), 2, "image count", "2 images, the messages speak of 0"),
        ({"caption": "ok"}, MAX_IMAGES + 1, "too many images", f"{MAX_IMAGES + 1}, at most {MAX_IMAGES} are taken"),
    ],
)
def test_refused(image_bytes: Bytes, record: dict[str, Any], images: int, reason: str, detail: str) -> None:
    found = prepared(record, *[image_bytes()] * images)
    assert isinstance(found, Refusal)
    assert (found.reason, found.detail.partition(":")[0]) == (reason, detail.partition(":")[0])


def test_a_broken_image_is_named_by_its_place_and_the_rows_id(image_bytes: Bytes) -> None:
    found = prepared({"caption": "ok", "id": "a7"}, image_bytes(), image_bytes()[:45])
    assert isinstance(found, Refusal)
    assert found.reason == "broken image"
    assert found.detail.startswith("image 1: ")
    assert found.id == "a7"
    found = prepared({"caption": "ok", "id": "x" * 9000}, b"")
    assert isinstance(found, Refusal)
    assert len(str(found.id)) == 500


def test_a_backslash_before_u0000_is_no_nul() -> None:
    for text in ("\\u0000", "\\\\u0000", "\\ \\u0000"):
        assert isinstance(prepared({"caption": text}), BuiltSample)
        assert prepared({"caption": f"{text}\0"}) == Refusal("bad text", "a NUL character")


@pytest.mark.parametrize(
    ("record", "images"),
    [
        ({"caption": "a caption", "id": "../../etc/passwd", "any": {"thing": [1]}}, 1),
        (talk(IMAGE, TEXT, IMAGE), 2),
        (talk(TEXT), 0),
        ({"caption": "text alone"}, 0),
        ({"caption": "as many as there may be"}, MAX_IMAGES),
    ],
)
def test_taken(image_bytes: Bytes, record: dict[str, Any], images: int) -> None:
    found = prepared(record, *[image_bytes()] * images)
    assert isinstance(found, BuiltSample)
    assert found.images == images
    assert found.members.startswith(b"00000012-000000.")


@given(
    shares=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    images=st.lists(st.binary(min_size=1, max_size=3), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_the_split_depends_on_the_content_alone(shares: list[int], images: list[bytes], order: Any) -> None:
    splits = {f"s{i}": share / sum(shares) for i, share in enumerate(shares)}
    record = {"caption": "text", "id": 1}
    found = split_at(place_of(record, images), splits)
    assert found in splits
    shuffled, names = order.sample(images, len(images)), order.sample(sorted(splits), len(splits))
    assert split_at(place_of({**record, "id": 2}, shuffled), {name: splits[name] for name in names}) == found
    if images:
        assert split_at(place_of({"caption": "another"}, images * 2), splits) == found


def test_splits_have_their_shares() -> None:
    splits = {"train": 0.9, "validation": 0.06, "test": 0.04}
    found = [split_at(place_of({"caption": str(i)}, ()), splits) for i in range(5000)]
    for name, share in splits.items():
        assert abs(found.count(name) / 5000 - share) < 0.015


@given(
    places=st.sets(st.integers(0, 2**20 - 1).map(lambda number: number / 2**20), min_size=1, max_size=30),
    shares=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
@example(places={0.0, 0.25, 0.375, 0.5}, shares=[1, 1, 1, 1])  # 0.2 + 0.1 + 0.2 is above 0.5
def test_the_advice_for_few_images_gives_every_split_one(places: set[float], shares: list[int]) -> None:
    splits = {f"s{i}": share / sum(shares) for i, share in enumerate(shares)}
    said = few_images(sorted(places), splits)
    filled = {split_at(place, splits) for place in places} == splits.keys()
    assert filled == (said == "")
    if advice := re.search(r'"splits=\{(.+)\}"', said):
        pairs = (pair.split(": ") for pair in advice[1].split(", "))
        better = check_config(BuildConfig, {"splits": {name: float(fraction) for name, fraction in pairs}}).splits
        assert {split_at(place, better) for place in places} == splits.keys()
    elif said:
        assert len(places) < len(splits)


def test_the_advice_for_few_images_is_short() -> None:
    places = [0.03, 0.11, 0.2, 0.31, 0.44, 0.52, 0.6, 0.63, 0.7, 0.71, 0.74, 0.78]
    assert few_images(places, {"train": 0.8, "validation": 0.2}) == (
        "validation got no row: the rows have 12 different images (or texts without one), and rows with the same image "
        'stay together; "splits={train: 0.73, validation: 0.27}" would give 10 to train, 2 to validation'
    )
    assert few_images(places[:1], {"train": 0.8, "validation": 0.2}).endswith("add images, or name fewer splits")
