"""Stopped after any step and gone on, on any ranks and workers, packed or padded, alone or mixed: the same batches."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.shards import DatasetConfig, ShardsData
from fvl_lightning.core.types import Batch, DataContext

MakeContext = Callable[..., DataContext]
STEPS = 9
"""More than an epoch of the single data set: 27 samples in batches of 2 rows on up to 2 ranks."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {},
    "grouped": {"group_by_length": True, "sequence_length": 64},
    "packed": {"packing": "best_fit", "sequence_length": 64},
    "split": {"packing": "best_fit", "sequence_length": 40, "over_long": "split"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, write_long_talks: Callable[..., None]) -> dict[str, Path]:
    """Three data sets of different sizes; one of the second's five samples cannot be used."""
    found = {}
    for name, count in (("one", 27), ("two", 5), ("three", 11)):
        found[name] = tmp_path_factory.mktemp(name)
        write_long_talks(found[name], "train", count, prefix=name, bad=name == "two")
        write_long_talks(found[name], "validation", 3, prefix=name)
    return found


MIXTURE = {"one": 2.0, "two": 1.0, "three": 0.5}
ALL_GOOD = {"one": 2.0, "three": 0.5}


def opened(folders: dict[str, Path], shares: dict[str, float] | None, **fields: Any) -> ShardsData:
    common = {"max_bad_fraction": 1.0, **fields}
    if shares is None:
        return ShardsData(ShardsData.Config(root=str(folders["one"]), **common))
    datasets = {name: DatasetConfig(root=str(folders[name]), share=share) for name, share in shares.items()}
    return ShardsData(ShardsData.Config(datasets=datasets, **common))


def batches(data: ShardsData, context: DataContext, position: int = 0) -> Iterator[Batch]:
    data.connect(replace(context, position=position))
    return iter(data.train_dataloader())


def fingerprint(batch: Batch) -> list[Any]:
    tensors = (batch.token_ids, batch.labels, batch.images, batch.positions, batch.dataset_ids)
    return [batch.keys, batch.position, *(None if tensor is None else tensor.tolist() for tensor in tensors)]


def ways() -> Iterator[Any]:
    """Number of workers, number of ranks, layout and shares; nearly all with workers are among the long tests."""
    for way in product([0, 2], [1, 2], LAYOUTS, [None, MIXTURE]):
        workers, world_size, layout, shares = way
        quick = not workers or (world_size, layout, shares) == (1, "packed", MIXTURE)
        name = f"{workers}-{world_size}-{layout}-{'mixture' if shares else 'one'}"
        yield pytest.param(*way, id=name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("workers", "world_size", "layout", "shares"), ways())
def test_going_on_after_every_step(
    folders: dict[str, Path],
    make_context: MakeContext,
    shares: dict[str, float] | None,
    layout: str,
    world_size: int,
    workers: int,
) -> None:
    data = opened(folders, shares, **LAYOUTS[layout])
    context = make_context(batch_size=2, world_size=world_size)
    ranks = [replace(context, rank=rank) for rank in range(world_size)]
    whole = [list(islice(batches(data, rank), STEPS)) for rank in ranks]
    assert len({batch.keys for rank in whole for batch in rank}) > STEPS // 2
    data = opened(folders, shares, workers=workers, **LAYOUTS[layout])
    for step in range(0, STEPS, 3 if workers else 1):  # workers are processes, and start anew each time
        for rank, uninterrupted in zip(ranks, whole, strict=True):
            position = uninterrupted[step - 1].position if step else 0
            resumed = islice(batches(data, rank, position), STEPS - step)
            for one, other in zip(resumed, uninterrupted[step:], strict=True):
                assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("shares", [None, ALL_GOOD], ids=["one", "mixture"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_together_have_the_sequence_of_one(
    folders: dict[str, Path], make_context: MakeContext, shares: dict[str, float] | None, layout: str
) -> None:
    """In order, and so for a run that goes on with another number of ranks."""
    data = opened(folders, shares, **LAYOUTS[layout])
    alone = list(islice(batches(data, make_context(batch_size=1)), 12 * 4))
    for world_size, batch_size in ((2, 2), (4, 1), (2, 1)):
        context = make_context(batch_size=batch_size, world_size=world_size)
        ranks = [list(islice(batches(data, replace(context, rank=rank)), 4)) for rank in range(world_size)]
        dealt = [key for step in zip(*ranks, strict=True) for batch in step for key in batch.keys]
        assert dealt == [key for batch in alone for key in batch.keys][: len(dealt)]
        assert len({batch.position for batch in (rank[-1] for rank in ranks)}) == 1
        following = next(batches(data, make_context(batch_size=1), ranks[0][-1].position))
        assert following.keys == alone[4 * world_size * batch_size].keys


@pytest.mark.parametrize("layout", ["padded", "grouped", "packed"])
def test_an_epoch_shows_each_sample_once(folders: dict[str, Path], make_context: MakeContext, layout: str) -> None:
    """An epoch of one data set, of which every sample is good."""
    data = ShardsData(ShardsData.Config(root=str(folders["three"]), **LAYOUTS[layout]))
    seen: list[str] = []
    for batch in batches(data, make_context(batch_size=1)):
        seen += batch.keys
        if batch.position == 11:
            break
    assert sorted(seen) == sorted(f"three{i}" for i in range(11))


def test_packed_rows_hold_the_samples_alone_one_after_the_other(
    folders: dict[str, Path], make_context: MakeContext
) -> None:
    context = make_context(batch_size=4)
    padded = opened(folders, None, sequence_length=64)
    examples: dict[str, tuple[list[int], list[int], Any]] = {}
    for batch in islice(batches(padded, make_context(batch_size=1)), 27):
        assert batch.images is not None
        examples[batch.keys[0]] = (batch.token_ids[0].tolist(), batch.labels[0].tolist(), batch.images)
    for batch in islice(batches(opened(folders, None, **LAYOUTS["packed"]), context), 6):
        assert batch.positions is not None
        keys, images = list(batch.keys), []
        for ids, labels, positions in zip(batch.token_ids, batch.labels, batch.positions, strict=True):
            start = 0
            while start < len(ids) and ids[start] != context.tokenizer.pad_token_id:
                alone = examples[keys.pop(0)]
                end = start + len(alone[0])
                assert (ids[start:end].tolist(), labels[start:end].tolist()) == alone[:2]
                assert positions[start:end].tolist() == list(range(end - start))
                images.append(alone[2])
                start = end
            assert not positions[start:].any()
            assert (labels[start:] == -100).all()
        assert keys == []
        assert torch.equal(batch.images, torch.cat(images))
