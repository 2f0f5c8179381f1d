"""Images as tiles on their way into batches: placeholders, planned rows, captions, pieces, and equal rows of models."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.batching.config import PlannedImage
from datamodules.batching.lengths import _identity
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import with_sizes
from datamodules.images.decoding import decode_image
from datamodules.images.tiling import Size, Tiles, Tiling
from datamodules.shards import ShardsData
from datamodules.storage.writer import ShardWriter
from datamodules.webdataset import WebDatasetData
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import Batch, DataContext, ImageSpec
from tests.datamodules.connecting import connected
from tests.datamodules.encoding.templates import ALL_FAMILIES, tokenizer_of

MakeContext = Callable[..., DataContext]
SIDE, TOKENS = 16, 3
SIZES: list[list[Size]] = [
    [(48, 16)], [(16, 48)], [(1, 1)], [(16, 16)], [(33, 30), (90, 30)], [], [(500, 20), (2, 2), (40, 80)], [(64, 64)],
]  # fmt: skip
"""Sizes of the images of each sample: wide, tall, tiny, square, several, none."""
FOUR = Tiles(max=4, marks="rows")
ROW = 130


def png(size: Size, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def talk(images: int, turns: int) -> list[dict[str, Any]]:
    """A conversation whose first images stand in its first turn, and the last one in its last turn."""
    asked: list[list[dict[str, Any]]] = [[{"type": "text", "text": f"what {turn}?"}] for turn in range(turns)]
    for number in range(images):
        asked[-1 if number and number + 1 == images else 0].insert(0, {"type": "image"})
    return [
        message
        for turn, content in enumerate(asked)
        for message in ({"role": "user", "content": content}, {"role": "assistant", "content": f"it is {turn}"})
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    for split in ("train", "validation"):
        with ShardWriter(folder, split, samples_per_shard=5) as writer:
            for i, sizes in enumerate(SIZES):
                images = [png(size, 10 * i + n) for n, size in enumerate(sizes)]
                writer.write(f"s{i}", {"messages": talk(len(sizes), 1 + i % 3), "caption": f"about {i}"}, images)
    return folder


@pytest.fixture
def context(make_context: MakeContext) -> DataContext:
    return make_context(image=ImageSpec(SIDE, (0.5,) * 3, (0.25,) * 3, TOKENS), batch_size=2)


def equal(one: Batch, other: Batch) -> bool:
    tensors = ("token_ids", "labels", "images", "positions")
    pairs = [(getattr(one, name), getattr(other, name)) for name in tensors]
    return one.keys == other.keys and all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["llama_3", "llama_2", "phi_3_5", "gemma", "mistral_0_1"])
def test_a_prompt_is_what_training_shows_before_an_answer(name: str) -> None:
    assert name in ALL_FAMILIES
    tokenizer, sizes = tokenizer_of(name), SIZES[6]
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    for marks in ("none", "rows", "tags"):
        tiling = Tiling(SIDE, 4, marks=marks)
        encoder = ConversationEncoder(tokenizer, image_id, TOKENS, tiling)
        messages = with_sizes(talk(3, 2), sizes)
        encoded = encoder.encode_turns(messages)
        tiles = [tiling.grid(size).tiles for size in sizes]
        assert tiles == [5, 1, 3]
        assert encoded.images == sum(tiles)
        assert encoded.images_before == [6, 9]
        assert encoded.ids.count(image_id) == TOKENS * sum(tiles)
        first = next(place for place, label in enumerate(encoded.labels) if label >= 0)
        assert encoder.prompt(messages[:1]) == encoded.ids[:first]
        assert encoder.prompt(messages[:3]) == encoder.encode_turns(messages).ids[: len(encoder.prompt(messages[:3]))]
        breaks = 0 if marks == "none" else 2  # behind both rows of the tall image there is its thumbnail
        decoded = tokenizer.decode(encoder.image_ids([(40, 80)]), skip_special_tokens=True)
        assert decoded.count("\n") == (breaks and 2)
        assert decoded.count("<row_2_col_1>") == (marks == "tags")
        # What has one tile is what it is without tiles.
        plain = ConversationEncoder(tokenizer, image_id, TOKENS)
        small = with_sizes(talk(1, 2), [(SIDE, SIDE)])
        assert encoder.encode(small) == plain.encode(talk(1, 2))
        assert encoder.caption("a b", 2, [(1, 1), (9, 5)]) == plain.caption("a b", 2)


@pytest.mark.parametrize("layout", [{}, {"group_by_length": True}, {"packing": "best_fit"}])
def test_batches_hold_the_tiles_of_their_placeholders(
    folder: Path, context: DataContext, layout: dict[str, Any]
) -> None:
    data = connected(folder, context, tiles=FOUR, sequence_length=ROW, **layout)
    tiling, store = Tiling(SIDE, 4, marks="rows"), data.store("train")
    images = {f"s{i}": [decode_image(png(size, 10 * i + n)) for n, size in enumerate(s)] for i, s in enumerate(SIZES)}
    seen = set()
    for batch in islice(data.train_dataloader(), 5):
        places = int((batch.token_ids == context.image_token_id).sum())
        wanted = data.reader.pixels([data.reader.cut(image) for key in batch.keys for image in images[key]])
        assert batch.images is not None
        assert places == TOKENS * len(batch.images)
        assert torch.equal(batch.images, wanted)
        seen.update(batch.keys)
    assert len(seen) == len(SIZES)
    for i, sizes in enumerate(SIZES):
        assert store.image_sizes(i) == sizes
        assert data.tile_counts("train", i) == [tiling.grid(size).tiles for size in sizes]
        assert len(data.pixels("train", [i])) == sum(data.tile_counts("train", i))


@pytest.mark.parametrize("over_long", ["truncate", "split"])
def test_rows_have_the_tokens_and_the_images_that_are_planned(
    folder: Path, context: DataContext, over_long: str
) -> None:
    data = connected(folder, context, tiles=Tiles(4), sequence_length=44, over_long=over_long, packing="best_fit")
    items, view, store = data.train_dataloader().rows.order.items, data.view("conversation"), data.store("train")
    tokens = []
    for number in range(len(items)):
        encoded = view.encode(store, items[number])
        tokens.append(len(encoded.rows[0][0]))
        assert encoded.rows[0][0].count(context.image_token_id) == TOKENS * encoded.images
    assert tokens == items.tokens.tolist()
    assert max(tokens) <= 44
    assert items.counts["split" if over_long == "split" else "truncated"] >= 1
    for batch in islice(data.train_dataloader(), 6):
        assert len(batch.images) * TOKENS == int((batch.token_ids == context.image_token_id).sum())


def test_captions_stand_behind_all_tiles(folder: Path, context: DataContext) -> None:
    data = connected(folder, context, tiles=FOUR, view="caption", sequence_length=ROW, max_bad_fraction=1.0)
    view, store = data.view("caption"), data.store("train")
    for i, sizes in enumerate(SIZES):
        if sizes:
            from datamodules.encoding.items import Piece

            encoded = view.encode(store, Piece(i))
            assert encoded.images == sum(data.tile_counts("train", i))
            assert encoded.rows[0][0].count(context.image_token_id) == TOKENS * encoded.images
            assert view.measure(store, i).pieces == [(None, len(encoded.rows[0][0]))]


def test_one_tile_each_is_training_without_tiles(folder: Path, context: DataContext) -> None:
    for layout in ({"packing": "best_fit"}, {}):
        plain = connected(folder, context, sequence_length=ROW, **layout)
        tiled = connected(folder, context, sequence_length=ROW, tiles=Tiles(1, marks="tags"), **layout)
        for one, other in islice(zip(plain.train_dataloader(), tiled.train_dataloader(), strict=False), 5):
            assert equal(one, other)


def test_a_run_goes_on_with_the_same_tiles_on_any_workers_and_ranks(folder: Path, context: DataContext) -> None:
    fields = {"tiles": FOUR, "sequence_length": ROW, "packing": "best_fit"}
    whole = list(islice(connected(folder, context, **fields).train_dataloader(), 6))
    later = connected(folder, replace(context, position=whole[2].position), **fields, workers=1)
    assert all(map(equal, whole[3:], islice(later.train_dataloader(), 3)))
    alone = connected(folder, replace(context, batch_size=4), **fields).train_dataloader()
    ranks = [
        connected(folder, replace(context, rank=rank, world_size=2), **fields).train_dataloader() for rank in (0, 1)
    ]
    for both, first, second in islice(zip(alone, *ranks, strict=False), 3):
        assert both.keys == (*first.keys, *second.keys)
        assert torch.equal(both.images, torch.cat([first.images, second.images]))


def test_a_stream_has_the_tiles_too(folder: Path, context: DataContext) -> None:
    config = WebDatasetData.Config(root=str(folder), tiles=FOUR, sequence_length=ROW, packing="best_fit")
    data = WebDatasetData(config)
    data.prepare_data()
    data.connect(context)
    batch = next(iter(data.train_dataloader()))
    assert len(batch.images) * TOKENS == int((batch.token_ids == context.image_token_id).sum())
    assert len(batch.images) > len(batch.keys)


def test_models_with_other_tiles_train_on_the_same_samples(folder: Path, context: DataContext) -> None:
    """Rows are planned by the arm that makes most of an image, image by image."""
    small = replace(context, image=replace(context.image, tokens_per_image=2))
    arms: list[tuple[DataContext, Tiles | None]] = [(small, Tiles(4, marks="rows")), (context, None), (small, Tiles(2))]
    planned = [PlannedImage(arm.image.tokens_per_image, SIDE, tiles) for arm, tiles in arms]
    for layout in ({"packing": "best_fit"}, {"over_long": "split"}, {}):
        seen = []
        for arm, tiles in arms:
            data = connected(folder, arm, tiles=tiles, planned_images=planned, sequence_length=60, **layout)
            batches = list(islice(data.train_dataloader(), 8))
            assert max(batch.token_ids.shape[1] for batch in batches) <= 60
            seen.append([(batch.keys, batch.position, int((batch.labels >= 0).sum())) for batch in batches])
        assert seen[0] == seen[1] == seen[2]


def test_lengths_of_before_are_found_and_those_of_other_tiles_are_not(folder: Path, context: DataContext) -> None:
    def identity(tiles: Tiles | None, **fields: Any) -> str:
        data = connected(folder, context, tiles=tiles, sequence_length=ROW, packing="best_fit", **fields)
        view, store = data.view("conversation"), data.store("train")
        found = _identity(store, range(len(store)), view)
        if tiles is None and not fields:
            tokenizer = data.encoder.tokenizer
            before = [
                3, store.content_hash(), [0, len(store)], "ConversationView", tokenizer.backend_tokenizer.to_str(),
                data.encoder.template.text, {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
                context.image_token_id, TOKENS, ROW, "truncate",
            ]  # fmt: skip
            assert found == hashlib.sha256(json.dumps(before).encode()).hexdigest()[:16]
        return found

    named = [identity(None), identity(Tiles(4)), identity(Tiles(3)), identity(Tiles(4, thumbnail=False))]
    named += [identity(Tiles(4, marks="rows")), identity(None, planned_images=[PlannedImage(TOKENS, SIDE, Tiles(4))])]
    assert len(set(named)) == 5  # planned by the same tiles, it is planned alike
    assert named[-1] == named[1]


def test_settings_that_cannot_be_are_refused_in_a_sentence(folder: Path, context: DataContext) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^data.sequence_length: 15 tokens do not hold an image of 5 tiles, which has 15 tokens \(3 per tile\); "
        r"raise it, or lower data.tiles.max$",
    ):
        connected(folder, context, tiles=Tiles(4), sequence_length=15).view("conversation")
    for fields, what in (({"scaled_decode": True}, "scaled_decode"), ({"view": "tasks"}, "view: tasks")):
        with pytest.raises(ValueError, match=f"tiles cannot be combined with {what}"):
            ShardsData.Config(tiles=Tiles(), **fields)
