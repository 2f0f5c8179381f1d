"""Boxes out of what Florence-2 writes, how much they overlap, and what an encoder scores."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core.types import IGNORE_INDEX, PromptedBatch
from fvl_lightning.evaluation import encoder_scores as module
from fvl_lightning.evaluation.encoder_scores import encoder_scores
from fvl_lightning.inference.boxes import Box, parse_boxes


def box(*corners: int, label: str = "thing") -> Box:
    return Box(label, corners)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("red circle<loc_1><loc_2><loc_9><loc_10>", [box(1, 2, 9, 10, label="red circle")]),
        (
            "a<loc_0><loc_0><loc_1><loc_1> b c <loc_31><loc_30><loc_31><loc_31>",
            [box(0, 0, 1, 1, label="a"), box(31, 30, 31, 31, label="b c")],
        ),
        (
            "cat<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>dog<loc_0><loc_0><loc_999><loc_999>",
            [box(1, 2, 3, 4, label="cat"), box(5, 6, 7, 8, label="cat"), box(0, 0, 999, 999, label="dog")],
        ),
        ("a<loc_1><loc_2><loc_3><loc_4><loc_5>b<loc_6>", [box(1, 2, 3, 4, label="a")]),
        ("a<loc_1><loc_2><loc_3>", []),
        ("<loc_1><loc_2><loc_3><loc_4>", []),
        ("no objects", []),
        ("", []),
        ("a<loc_1><loc_2><loc_3><loc_x>b<loc_1><loc_2><loc_3><loc_4>", [box(1, 2, 3, 4, label="b")]),
    ],
)
def test_parse_boxes(text: str, boxes: list[Box]) -> None:
    assert parse_boxes(text) == boxes


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (box(0, 0, 3, 3), box(0, 0, 3, 3), 1.0),
        (box(0, 0, 3, 3), box(2, 2, 5, 5), 4 / (16 + 16 - 4)),
        (box(0, 0, 3, 1), box(3, 0, 4, 1), 2 / (8 + 4 - 2)),
        (box(0, 0, 3, 3), box(1, 1, 2, 2), 4 / 16),
        (box(0, 0, 3, 3), box(4, 0, 7, 3), 0.0),
        (box(0, 0, 3, 3), box(0, 9, 3, 12), 0.0),
        (box(5, 5, 5, 5), box(5, 5, 5, 5), 1.0),
        (box(3, 3, 0, 0), box(0, 0, 3, 3), 0.0),
    ],
)
def test_overlap(one: Box, other: Box, overlap: float) -> None:
    """Bins are squares, corners included: a box of one bin has an area of one."""
    assert one.overlap(other) == pytest.approx(overlap, abs=1e-12)
    assert other.overlap(one) == pytest.approx(overlap, abs=1e-12)


def test_a_label_does_not_move_a_box() -> None:
    assert box(0, 0, 3, 3, label="one").overlap(box(0, 0, 3, 3, label="other")) == 1.0


# Scores, with an encoder that writes what it is told to.

PAD, BOS, EOS, VOCABULARY = 0, 1, 2, 10
TASKS = ("grounding", "caption", "ocr")
TEXTS = {4: "cat", 5: "dog", 6: "a<loc_0><loc_0><loc_9><loc_9>", 7: "a<loc_0><loc_0><loc_9><loc_4>", 8: "b"}
"""Tokens of whole texts: 7's box overlaps 6's by exactly half, which is not above 0.5."""


class Tokenizer:
    """One token per text."""

    pad_token_id, bos_token_id, eos_token_id = PAD, BOS, EOS

    def decode(self, ids: list[int]) -> str:
        return " ".join(TEXTS[id_] for id_ in ids)


class Encoder(nn.Module):
    """Predicts `predicted` [I, L] of captions under teacher forcing, and writes `written` [I, T, L]."""

    tasks = TASKS

    def __init__(self, predicted: Tensor, written: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.predicted, self.written = predicted, written

    def decode(self, images: Tensor, targets: Tensor) -> Tensor:
        hidden = torch.zeros(*targets.shape, VOCABULARY)
        which = images[:, 0, 0, 0].long()
        hidden[:, 1] = nn.functional.one_hot(self.predicted[which], VOCABULARY).float()
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def write(self, images: Tensor, max_tokens: int) -> Tensor:
        assert max_tokens == 3
        return self.written[images[:, 0, 0, 0].long()]


class Data:
    """Three images, filled with their number; the first two have a word drawn on them."""

    targets = torch.tensor(
        [
            [[6, EOS, -100], [4, 5, EOS], [4, EOS, -100]],
            [[6, 8, EOS], [5, EOS, -100], [5, EOS, -100]],
            [[6, EOS, -100], [4, EOS, -100], [8, EOS, -100]],
        ]
    )

    def store(self, split: str) -> Any:
        assert split == "validation"
        records = [{"kinds": ["word", "colour"]}, {"kinds": ["word"]}, {}]
        return type("Store", (), {"__len__": lambda _: 3, "record": lambda _, index: records[index]})()

    def prompted(self, split: str, indices: Sequence[int]) -> PromptedBatch:
        images = torch.tensor(list(indices)).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return PromptedBatch(images, self.targets[list(indices)], tuple("abc"), 0)


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_scores_by_hand(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions 5 of 7 tokens; words 1 of 2, the third image has none; boxes 1 of 3, the second is half over."""
    monkeypatch.setattr(module, "IMAGES_PER_BATCH", at_once)
    predicted = torch.tensor([[4, 8, EOS], [5, EOS, 9], [8, EOS, 9]])
    written = torch.tensor(
        [
            [[6, EOS, PAD], [9, 9, 9], [4, EOS, PAD]],
            [[7, EOS, PAD], [9, 9, 9], [4, EOS, PAD]],
            [[8, EOS, PAD], [9, 9, 9], [4, EOS, PAD]],
        ]
    )
    monkeypatch.setitem(TEXTS, 9, "never read")
    scores = encoder_scores(Encoder(predicted, written).train(), Tokenizer(), Data(), "validation")
    assert scores == {
        "caption_tokens": pytest.approx(5 / 7),
        "words": pytest.approx(1 / 2),
        "boxes": pytest.approx(1 / 3),
    }
    assert Data.targets[:, 1].ne(IGNORE_INDEX).sum() == 7


def test_an_encoder_is_scored_in_eval_mode() -> None:
    encoder = Encoder(torch.zeros(3, 3, dtype=torch.long), torch.full((3, 3, 3), PAD)).train()
    assert encoder_scores(encoder, Tokenizer(), Data(), "validation") == {"caption_tokens": 0, "words": 0, "boxes": 0}
    assert not encoder.training
