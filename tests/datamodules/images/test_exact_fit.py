"""Rows cut at the end of a turn: the same in every layout, and never longer than a row."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.items import Piece
from datamodules.encoding.over_long import TOO_LONG, OverLong
from datamodules.encoding.views import CaptionView, ConversationView
from datamodules.shards import ShardsData
from datamodules.storage.sample import SampleError
from fvl_lightning.core.types import IGNORE_INDEX, DataContext
from tests.datamodules.encoding.templates import tokenizer_of

IMAGE = {"type": "image"}
TALKS: list[list[dict[str, Any]]] = [
    [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "one?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [{"type": "text", "text": "two?"}, IMAGE]},
        {"role": "assistant", "content": "blue\n"},
        {"role": "user", "content": "three?"},
        {"role": "assistant", "content": "the green one"},
    ],
    [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "x"}],
]
NAMES = ("llama_3", "qwen", "phi_3_5", "mistral_0_1")
"""Nothing, a line break, the end of the text and a blank behind the last end token."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_talks: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    for split in ("train", "validation"):
        write_talks(folder, split, TALKS)
    return folder


def made(name: str, tokens_per_image: int = 3) -> ConversationEncoder:
    tokenizer = tokenizer_of(name)
    return ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), tokens_per_image)


def lengths_around(name: str) -> list[int]:
    """The ends of answers and of whole conversations, and the lengths beside them."""
    encoded = [made(name).encode_turns(talk) for talk in TALKS]
    ends = {end + extra for one in encoded for end in (*one.turn_ends, len(one.ids)) for extra in (0, 2, 4)}
    return sorted({end + beside for end in ends for beside in (-1, 0, 1)})


@pytest.mark.parametrize("over_long", ["truncate", "split", "drop"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_tokens_planned_for_it(
    folder: Path, make_context: Callable[..., DataContext], name: str, over_long: OverLong
) -> None:
    encoder, planner = made(name), made(name, 5)
    store = ShardsData(ShardsData.Config(root=str(folder))).store("train")
    for planned in (None, planner):
        extra = 0 if planned is None else 2
        for limit in lengths_around(name):
            view = ConversationView(encoder, limit, over_long, [] if planned is None else [planned])
            for sample, talk in enumerate(TALKS):
                whole = encoder.encode_turns(talk)
                turns = zip(whole.turn_ends, whole.images_before, strict=True)
                ends = [end + extra * images for end, images in turns]
                if over_long == "split" and ends[0] > limit:
                    continue  # turns behind a first one that is too long may fit
                if ends[-1 if over_long == "drop" else 0] > limit:
                    with pytest.raises(SampleError, match="tokens") as caught:
                        view.measure(store, sample)
                    assert caught.value.reason == TOO_LONG
                    continue
                measured = view.measure(store, sample)
                supervised = 0
                for piece, tokens in measured.pieces:
                    encoded = view.encode(store, Piece(sample, piece))
                    ids, labels = encoded.rows[0]
                    assert len(ids) + extra * encoded.images == tokens <= limit
                    assert len(ids) == len(labels)
                    assert ids.count(encoder.image_token_id) == 3 * encoded.images
                    supervised += sum(label != IGNORE_INDEX for label in labels)
                if over_long == "truncate":
                    kept = sum(end <= limit for end in ends)
                    labels = whole.labels[: whole.turn_ends[kept - 1]]
                    assert supervised == sum(label != IGNORE_INDEX for label in labels)


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_has_the_same_rows(folder: Path, make_context: Callable[..., DataContext], name: str) -> None:
    tokenizer = tokenizer_of(name)
    context = make_context(
        tokenizer=tokenizer, image_token_id=tokenizer.convert_tokens_to_ids("<image>"), batch_size=1, tasks=()
    )
    encoded = made(name, 4).encode_turns(TALKS[0])
    for limit in {*encoded.turn_ends[1:], len(encoded.ids) - 1, len(encoded.ids)}:
        seen = []
        for fields in ({}, {"group_by_length": True}, {"packing": "best_fit"}):
            data = ShardsData(ShardsData.Config(root=str(folder), sequence_length=limit, **fields))
            data.prepare_data()
            data.connect(context)
            rows: dict[str, Any] = {}
            for batch in islice(iter(data.train_dataloader()), 4):
                ids, labels = batch.token_ids[0].tolist(), batch.labels[0].tolist()
                assert len(ids) <= limit
                starts = [0] if batch.positions is None else [i for i, p in enumerate(batch.positions[0]) if p == 0]
                cuts = [*starts[: len(batch.keys)], len(ids)]
                for key, start, end in zip(batch.keys, cuts[:-1], cuts[1:], strict=True):
                    rows[key] = (ids[start:end], labels[start:end])
            seen.append(rows)
        assert set(seen[0]) == {"s0", "s1"}
        assert seen[0] == seen[1] == seen[2]


def test_captions_that_fill_a_row_exactly(folder: Path) -> None:
    encoder = made("llama_3")
    store = ShardsData(ShardsData.Config(root=str(folder))).store("train")
    whole = encoder.caption("about it", 2)[0]
    for limit in range(5, len(whole) + 2):
        view = CaptionView(encoder, limit)
        if limit <= 7:  # the first token and two images
            for read in (lambda view=view: view.measure(store, 0), lambda view=view: view.encode(store, Piece(0))):
                with pytest.raises(SampleError, match="its images alone take"):
                    read()
            continue
        ((_, tokens),) = view.measure(store, 0).pieces
        assert view.encode(store, Piece(0)).rows[0][0] == whole[:tokens]
        assert tokens == min(limit, len(whole))
