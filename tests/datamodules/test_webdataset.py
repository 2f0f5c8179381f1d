"""Shards read as a stream: each sample once per epoch, shuffled, mixed, resumed, and what is refused."""

import io
import math
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.batching.rows import single_rows
from datamodules.webdataset import WebDatasetData
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import DataContext, earliest

Write = Callable[..., Path]
MakeContext = Callable[..., DataContext]


def streamed(folder: Path, context: DataContext, **fields: Any) -> WebDatasetData:
    """Returns the data module that streams a folder's shards, prepared and connected."""
    data = WebDatasetData(WebDatasetData.Config(**{"root": str(folder), "shuffle_buffer": 5, **fields}))
    data.prepare_data()
    data.connect(context)
    return data


def batches(data: WebDatasetData, count: int) -> list[Any]:
    return list(islice(data.train_dataloader(), count))


def keys(data: WebDatasetData, count: int) -> list[str]:
    """The keys of the samples of the first batches, in order."""
    return [key for batch in batches(data, count) for key in batch.keys]


@pytest.fixture
def folder(tmp_path: Path, write_split: Write) -> Path:
    """8 shards of 6 samples to train on, and 7 samples to validate on."""
    write_split(tmp_path, "train", 48, samples_per_shard=6)
    write_split(tmp_path, "validation", 7)
    return tmp_path


def test_an_epoch_has_every_sample_once_over_two_ranks_with_two_workers_each(
    folder: Path, make_context: MakeContext
) -> None:
    found = [
        keys(streamed(folder, make_context(batch_size=3, rank=rank, world_size=2), workers=2), 8) for rank in (0, 1)
    ]
    assert sorted(found[0] + found[1]) == sorted(f"s{i}" for i in range(48))
    assert not list(folder.glob("train-*.index*.lock"))


def test_epochs_differ_and_a_seed_gives_the_same_order(folder: Path, make_context: MakeContext) -> None:
    context = make_context(batch_size=6)
    twice = keys(streamed(folder, context), 16)
    first, second = twice[:48], twice[48:]
    assert sorted(first) == sorted(second) == sorted(f"s{i}" for i in range(48))
    assert first != second != sorted(first)
    assert keys(streamed(folder, context), 16) == twice
    assert keys(streamed(folder, replace(context, seed=4)), 8) != first


def test_train_is_not_indexed(folder: Path, make_context: MakeContext) -> None:
    for index in folder.glob("*.index.safetensors"):
        index.unlink()
    keys(streamed(folder, make_context()), 6)
    assert [path.name for path in folder.glob("*.index.safetensors")] == ["validation-000000.index.safetensors"]


def test_batches_are_those_of_shards_but_for_their_order(folder: Path, make_context: MakeContext) -> None:
    """Tokens, labels and pixels of a sample are what the indexed reader makes of it."""
    context = make_context(batch_size=1)
    data = streamed(folder, context)
    store, indexed = data.store("train"), super(WebDatasetData, data).train_dataloader().dataset
    batch = batches(data, 1)[0]
    expected = indexed[single_rows([store.keys.index(batch.keys[0])])].batch
    assert torch.equal(batch.token_ids, expected.token_ids)
    assert torch.equal(batch.labels, expected.labels)
    assert torch.equal(batch.images, expected.images)


def test_validation_is_each_sample_once_over_all_ranks(folder: Path, make_context: MakeContext) -> None:
    found = Counter[str]()
    for rank in (0, 1):
        for batch in streamed(folder, make_context(batch_size=2, rank=rank, world_size=2)).val_dataloader():
            found.update(key for key, labels in zip(batch.keys, batch.labels, strict=True) if (labels >= 0).any())
    assert found == Counter(f"s{i}" for i in range(7))


def test_a_mixture_keeps_its_shares(tmp_path: Path, write_split: Write, make_context: MakeContext) -> None:
    for name, count in (("a", 30), ("b", 12)):
        write_split(tmp_path / name, "train", count, samples_per_shard=6)
        write_split(tmp_path / name, "validation", 3)
    datasets = {name: {"root": str(tmp_path / name), "share": share} for name, share in (("a", 1), ("b", 3.0))}
    config = choose("data", {"name": "webdataset", "datasets": datasets, "shuffle_buffer": 5, "workers": 2}).config
    data = WebDatasetData(config)
    data.prepare_data()
    data.connect(make_context(batch_size=4))
    drawn: Counter[int] = Counter()
    for number, batch in enumerate(islice(data.train_dataloader(), 20), start=1):
        assert batch.datasets == ("a", "b")
        drawn.update(row.max().item() for row in batch.dataset_ids)
        assert abs(drawn[1] - 0.75 * 4 * number) <= 2  # one sample for each of the two readers
    assert len(batch.position) == 2


@pytest.mark.parametrize(
    ("size", "block", "batch_size", "workers", "window"),
    [(6, 5, 2, 2, 0), (6, 1, 3, 0, 0), (4, 10, 2, 1, 0), (6, 5, 2, 0, 12)],
    ids=["two workers", "no shuffle", "one worker", "grouped by length"],
)
def test_what_a_resume_promises(
    tmp_path: Path,
    write_split: Write,
    make_context: MakeContext,
    size: int,
    block: int,
    batch_size: int,
    workers: int,
    window: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No sample is lost; seen again are at most those of 2 + (2 b + B + window) / s shards of each reader."""
    shards, ranks = 24, 2
    write_split(tmp_path, "train", shards * size, samples_per_shard=size)
    write_split(tmp_path, "validation", 3)
    fields = {"shuffle_buffer": block, "workers": workers, "group_by_length": window > 0}
    monkeypatch.setattr("datamodules.streaming.loader.WINDOW", window)
    readers = ranks * max(1, workers)
    steps = shards * size // (2 * ranks * batch_size)
    seen, positions = Counter[str](), []
    for rank in range(ranks):
        context = make_context(batch_size=batch_size, rank=rank, world_size=ranks)
        stopped = batches(streamed(tmp_path, context, **fields), steps)
        seen.update(key for batch in stopped for key in batch.keys)
        positions.append(stopped[-1].position)
    position = earliest(positions)
    assert isinstance(position, tuple)
    assert 0 < position[0] < shards
    rest = (shards - position[0]) * size
    # Resumed on one rank, so that the rest of the epoch is one stretch of its order.
    context = make_context(batch_size=1, position=position)
    seen_then = keys(streamed(tmp_path, context, **{**fields, "workers": 0, "group_by_length": False}), rest)
    again = sum(key in seen for key in seen_then)
    assert set(seen) | set(seen_then) == {f"s{i}" for i in range(shards * size)}
    assert max(Counter(seen_then).values()) == 1
    assert again <= readers * (2 + math.ceil((2 * block + batch_size + window) / size)) * size


@pytest.mark.parametrize("fields", [{"packing": "best_fit"}, {"group_by_length": True}, {"over_long": "split"}])
def test_rows_are_planned_on_the_stream(
    tmp_path: Path, write_long_talks: Callable[..., None], make_context: MakeContext, fields: dict[str, Any]
) -> None:
    for split, count in (("train", 30), ("validation", 6)):
        write_long_talks(tmp_path, split, count)
    data = streamed(tmp_path, make_context(batch_size=4), sequence_length=60, **fields)
    found = batches(data, 12)
    assert all(batch.token_ids.shape[1] <= 60 for batch in found)
    if "packing" in fields:
        assert all(batch.positions is not None for batch in found)
        assert sum(len(batch.keys) for batch in found) > 12 * 4
    if "group_by_length" in fields:
        lengths = [(batch.labels >= 0).any(1).sum().item() for batch in found]
        assert lengths == [4] * 12


def damage(shard: Path, size: int) -> None:
    shard.write_bytes(shard.read_bytes()[:size])


@pytest.mark.parametrize(
    ("harm", "reason", "lost"),
    [
        (lambda shard: damage(shard, 5 * 512 + 100), "cut short", range(6)),
        (lambda shard: damage(shard, len(shard.read_bytes()) // 2 // 512 * 512), "cut short", range(4, 6)),
        (lambda shard: damage(shard, 0), "empty file", range(6)),
        (lambda shard: shard.write_bytes(b"\x1f\x8b" + b"x" * 4096), "not a tar", range(6)),
    ],
    ids=["in a member", "at a header", "empty", "compressed"],
)
def test_a_broken_tar_is_counted(
    folder: Path, make_context: MakeContext, harm: Callable[[Path], None], reason: str, lost: range
) -> None:
    harm(folder / "train-000000.tar")
    data = streamed(folder, make_context(batch_size=6), max_bad_fraction=1.0)
    loader = data.train_dataloader()
    found = {key for batch in islice(loader, 16) for key in batch.keys}
    assert loader.tally.bad[reason] >= 1
    assert {f"s{i}" for i in range(6, 48)} <= found
    assert not found & {f"s{i}" for i in lost}


def test_a_broken_image_is_left_out_and_counted(
    tmp_path: Path, write_split: Write, make_context: MakeContext, make_talk: Any
) -> None:
    write_split(tmp_path, "train", 12, {4: (make_talk("how dark is 4?", "4"), [b"no image"])}, samples_per_shard=6)
    write_split(tmp_path, "validation", 3)
    loader = streamed(tmp_path, make_context(batch_size=4)).train_dataloader()
    found = [key for batch in islice(loader, 3) for key in batch.keys]
    assert sorted(found) == sorted({f"s{i}" for i in range(12)} - {"s4"})
    assert loader.tally.bad == Counter({"broken image": 1})
    with pytest.raises(DataError, match=r"more than max_bad_fraction 0.01; the last is sample 's4' in .*broken image"):
        list(islice(streamed(tmp_path, make_context(batch_size=4)).train_dataloader(), 40))


def test_members_that_are_not_read_cost_nothing(tmp_path: Path, write_split: Write, make_context: MakeContext) -> None:
    """Pickles, links, extras, duplicates and folders in a tar from elsewhere, two tars put together with `cat`."""
    write_split(tmp_path, "train", 6)
    write_split(tmp_path, "validation", 3)
    shard = tmp_path / "train-000000.tar"
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (("x.pkl", b"cos\nsystem\n"), ("y.seg.png", b""), ("z.txt", b"z"), ("z.txt", b"again")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("w.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    shard.write_bytes(file.getvalue() + shard.read_bytes())
    loader = streamed(tmp_path, make_context(batch_size=6), max_bad_fraction=1.0).train_dataloader()
    assert set(next(iter(loader)).keys) <= {f"s{i}" for i in range(6)}
    assert set(loader.tally.bad) <= {"no messages", "duplicate member"}


def test_shards_without_a_sample_end_the_run(tmp_path: Path, write_split: Write, make_context: MakeContext) -> None:
    write_split(tmp_path, "validation", 3)
    for number in range(2):
        with tarfile.open(tmp_path / f"train-{number:06d}.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("a.pkl"))
    with pytest.raises(DataError, match="2 shards hold no sample"):
        next(iter(streamed(tmp_path, make_context()).train_dataloader()))


BAD = [
    ({"root": "{folder}/none"}, "no folder .*none with shards"),
    ({"shards": {"train": ["pipe:cat a.tar"], "validation": ["{folder}"]}}, "pipe:cat a.tar cannot be used"),
    ({"root": "pipe:ls"}, "pipe:ls cannot be used"),
    ({"datasets": {"a": {"root": "{folder}", "share": 0}}}, "share.* 0"),
    ({"datasets": {"a": {"root": "{folder}", "share": -1.0}}}, "share.* -1"),
    ({"root": "{folder}", "shufle_buffer": 3}, "shuffle_buffer"),
    ({"root": "{folder}", "shuffle_buffer": 0}, "shuffle_buffer"),
    ({"root": "{folder}", "shards": {"train": ["{folder}"]}}, "root and shards are given"),
]


@pytest.mark.parametrize(("fields", "sentence"), BAD, ids=[sentence for _, sentence in BAD])
def test_bad_input_is_one_sentence(folder: Path, fields: dict[str, Any], sentence: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.format(folder=folder) if isinstance(value, str) else value

    with pytest.raises((ConfigError, DataError), match=sentence):
        WebDatasetData(choose("data", {"name": "webdataset", **filled(fields)}).config).prepare_data()


def test_the_hash_of_train_follows_names_and_bytes(folder: Path, write_split: Write, tmp_path: Path) -> None:
    data = WebDatasetData(WebDatasetData.Config(root=str(folder)))
    one, manifest = data.content_hash(), data.manifest_hash()
    shard = folder / "train-000003.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    again = WebDatasetData(WebDatasetData.Config(root=str(folder)))
    assert again.manifest_hash() == manifest
    assert again.content_hash() != one


def test_remote_shards_are_streamed_without_a_copy(
    folder: Path, make_context: MakeContext, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for shard in sorted(folder.glob("train-*.tar")):
        bucket.upload_file(str(shard), f"data/{shard.name}")
    shards = {"train": [f"s3://{bucket.name}/data"], "validation": [str(folder / "validation-000000.tar")]}
    for workers in (0, 2):
        data = streamed(folder, make_context(batch_size=6), root="", shards=shards, workers=workers)
        assert sorted(keys(data, 8)) == sorted(f"s{i}" for i in range(48))
    assert not list(tmp_path.glob("cache/**/*.tar"))
    for shard in bucket.objects.filter(Prefix="data/train-000003"):
        shard.delete()
    with pytest.raises(DataError, match=r"there is no s3://.*/data/train-000003.tar"):
        keys(data, 8)
