"""Samples to look at: the contact sheet's pixels, and texts with what is supervised."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.inspection.preview import COLUMNS, Preview, contact_sheet, preview_sample, supervised_runs
from datamodules.storage.sample import spread
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.terminal import visible

RED = (250, 10, 20)


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> ConversationEncoder:
    return ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 1)


def flat(width: int, height: int, colour: tuple[int, int, int] = RED) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def where(sheet: Any, colour: tuple[int, int, int] = RED) -> np.ndarray:
    """[n, 2] rows and columns of the pixels of exactly that colour."""
    return np.argwhere((np.asarray(sheet) == colour).all(axis=-1))


@pytest.mark.parametrize(("count", "number", "expected"), [(10, 4, [0, 2, 5, 7]), (3, 12, [0, 1, 2]), (1, 1, [0])])
def test_samples_are_spread_over_the_set(count: int, number: int, expected: list[int]) -> None:
    assert spread(count, number) == expected


@given(count=st.integers(1, 10**7), number=st.integers(1, 200))
def test_spread_samples_are_different_and_there(count: int, number: int) -> None:
    chosen = spread(count, number)
    assert len(chosen) == min(count, number)
    assert sorted(set(chosen)) == chosen
    assert chosen[0] == 0
    assert chosen[-1] < count


def test_a_sample_says_what_it_holds(tmp_path: Path, write_split: Callable[..., Path], image_bytes: Any) -> None:
    samples = {
        0: ({"caption": "a wall"}, [image_bytes(7, (9, 5))]),
        2: ({"messages": [{"role": "user", "content": "no image?"}, {"role": "assistant", "content": "no"}]}, []),
        3: ({"ocr": "x"}, [image_bytes()]),
        4: ({"messages": "none"}, [image_bytes()]),
        5: ({"caption": "a wall"}, [b"no image"]),
    }
    store = SampleStore.open(str(write_split(tmp_path, "train", 6, samples)), "train")
    caption, talk, text, nothing, bad, broken = (preview_sample(store, i) for i in range(6))
    assert (caption.key, caption.texts, caption.images[0].shape) == ("s0", (("caption", "a wall"),), (5, 9, 3))
    assert talk.texts == (("user", "<image> how dark is 1?"), ("assistant", "1"))
    assert (text.images, text.problem) == ((), "")
    assert nothing.problem == "no text: neither messages nor caption"
    assert bad.problem.startswith("no messages")
    assert broken.problem.startswith("broken image: png: not a readable")


def test_what_is_supervised_is_the_answers_with_their_end(encoder: ConversationEncoder) -> None:
    messages = (
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    )
    runs = supervised_runs(Preview("s", messages=messages), encoder)
    ids, labels = encoder.encode(messages)
    end = encoder.tokenizer.eos_token
    assert [text for text, _, supervised in runs if supervised] == [f"three{end}", f"yes{end}"]
    assert "how many?" in runs[0][0]
    assert "".join(text for text, _, _ in runs) == encoder.tokenizer.decode(ids)
    assert sum(tokens for _, tokens, _ in runs) == len(ids)
    assert sum(tokens for _, tokens, supervised in runs if supervised) == sum(label >= 0 for label in labels)


def test_of_a_caption_all_but_the_images_is_supervised(encoder: ConversationEncoder) -> None:
    preview = Preview("s", images=(flat(8, 8), flat(8, 8)), texts=(("caption", "a red wall"),))
    *_, last = runs = supervised_runs(preview, encoder)
    assert last[0] == f"a red wall{encoder.tokenizer.eos_token}"
    assert last[2]
    assert runs[0][0].count("<image>") == 2


def test_a_sheet_shows_every_image_whole_and_in_its_proportions() -> None:
    wide, high = flat(600, 100), flat(100, 600)
    for image, ratio in ((wide, 6.0), (high, 1 / 6)):
        places = where(contact_sheet([Preview("s", (image,))]))
        height, width = np.ptp(places, axis=0) + 1
        assert len(places) == height * width, "one filled rectangle"
        assert width / height == pytest.approx(ratio, rel=0.03)


def test_small_images_are_enlarged_by_whole_numbers() -> None:
    sheet = contact_sheet([Preview("s", (flat(20, 10),))])
    assert len(where(sheet)) == 20 * 10 * 4 * 4


def test_tiles_stand_in_rows_and_do_not_touch() -> None:
    previews = [Preview(str(i), (flat(300, 225, (200, i, 0)),)) for i in range(COLUMNS + 2)]
    sheet = contact_sheet(previews)
    corners = [tuple(where(sheet, (200, i, 0)).min(axis=0)) for i in range(len(previews))]
    assert len({row for row, _ in corners}) == 2
    assert [column for _, column in corners[:2]] == [column for _, column in corners[COLUMNS:]]
    assert sorted(corners) == corners
    assert all(len(where(sheet, (200, i, 0))) == 300 * 225 for i in range(len(previews)))
    single = contact_sheet(previews[:1])
    assert single.width < sheet.width


def test_of_several_images_four_are_shown_side_by_side() -> None:
    images = tuple(flat(50, 40, (200, i, 0)) for i in range(5))
    sheet = contact_sheet([Preview("s", images)])
    counts = [len(where(sheet, (200, i, 0))) for i in range(5)]
    assert len(set(counts[:4])) == 1
    assert counts[0] > 50 * 40
    assert counts[4] == 0


@pytest.mark.parametrize(
    "preview",
    [
        Preview("k" * 300, texts=(("user", "word " * 500), ("assistant", "x" * 5000))),
        Preview("", texts=(("caption", ""),)),
        Preview("s", problem="broken image: " + "why " * 200),
        Preview("s", (flat(1, 1), flat(60_000, 1)), tuple(("user", str(i)) for i in range(40))),
        Preview("\ud800\x1b[2J", texts=(("caption", "\ud800 \x00 \u202e"),)),
    ],
    ids=["long", "empty", "problem", "extreme", "unwritable"],
)
def test_nothing_is_drawn_outside_of_its_tile(preview: Preview) -> None:
    sheet = np.asarray(contact_sheet([preview, Preview("s", (flat(8, 8),))]))
    empty = np.asarray(contact_sheet([Preview("", texts=(("caption", ""),)), Preview("s", (flat(8, 8),))]))
    assert sheet.shape == empty.shape
    card = slice(16, sheet.shape[0] - 16), slice(16, (sheet.shape[1] - 16) // 2)
    inner_edge = np.zeros(sheet.shape[:2], dtype=bool)
    inner_edge[card] = True
    assert (sheet[~inner_edge] == empty[~inner_edge]).all()


def test_a_problem_is_framed_in_red() -> None:
    assert len(where(contact_sheet([Preview("s", problem="bad JSON")]), (190, 30, 30))) > 1000


@given(st.text())
def test_what_is_shown_can_be_written_and_steers_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert len(shown) == len(text)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t" for letter in shown)
    assert all(new == old for old, new in zip(text, shown, strict=True) if old.isprintable())


def test_control_characters_have_their_pictures() -> None:
    assert visible("a\x1b[31mb\x7f\x9b\u202e\n\t\xa0é") == "a␛[31mb\ufffd\ufffd\ufffd\n\t\xa0é"
