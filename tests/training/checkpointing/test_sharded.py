"""Checkpoints in parts: what ranks have written comes together again for any number of them, or not at all."""

import errno
import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from fvl_lightning.core.errors import DataError
from fvl_lightning.training.checkpointing import last_and_previous as checkpoint_files
from fvl_lightning.training.checkpointing.last_and_previous import (
    TRAINING_KEYS,
    CheckpointFiles,
    is_whole,
    read_checkpoint,
    whole_checkpoint,
)
from fvl_lightning.training.checkpointing.sharded import (
    MANIFEST,
    ShardedTensor,
    copied,
    made_whole,
    put,
    rows_between,
    write_manifest,
    write_parts,
)

PLACE = ("optimizer_states", 0, "state", 3, "exp_avg")


def common(step: int) -> dict[str, Any]:
    """What one rank holds for all."""
    trained = {"state_dict": {"norm": torch.ones(3)}, "optimizer_states": [{"state": {3: {}}}]}
    return dict.fromkeys(TRAINING_KEYS) | {"global_step": step, **trained}


def write(folder: Path, value: Tensor, ranks: int, step: int = 1) -> None:
    """`value` in parts of `ranks`, of which the last ones may have nothing."""
    folder.mkdir()
    files = {}
    first = 0
    for rank, rows in enumerate(value.tensor_split(ranks)):
        parts = {PLACE: (first, rows), ("state_dict", "weight"): (first, rows + 1)} if len(rows) else {}
        files |= write_parts(folder, rank, common(step) if rank == 0 else None, parts)
        first += len(rows)
    write_manifest(folder, files)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_any_rows_are_found_again(ranks: int, tmp_path: Path) -> None:
    value = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    write(tmp_path / "last.ckpt", value, ranks)
    assert is_whole(tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    rows = found["optimizer_states"][0]["state"][3]["exp_avg"]
    assert isinstance(rows, ShardedTensor)
    for first in range(5):
        for end in range(first, 5):
            assert torch.equal(rows_between(rows, first, end), value[first:end])
    whole = made_whole(found)
    assert torch.equal(whole["state_dict"]["weight"], value + 1)
    assert whole["global_step"] == 1
    assert torch.equal(whole["state_dict"]["norm"], torch.ones(3))


def test_every_damage_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    write(folder, torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), 2)
    draw = random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        assert not is_whole(folder), f"without {path.name}"
        for size in draw.sample(range(len(whole) - 1), 10):
            path.write_bytes(whole[:size])
            assert not is_whole(folder), f"{path.name} cut at {size} of {len(whole)}"
        for _ in range(40 if path.name == MANIFEST else 20):
            place = draw.randrange(len(whole))
            damaged = bytearray(whole)
            damaged[place] ^= 1 << draw.randrange(8)
            path.write_bytes(damaged)
            if path.name != MANIFEST:  # in which white space has no meaning
                assert not is_whole(folder), f"{path.name} flipped at {place} of {len(whole)}"
            is_whole(folder)
        path.write_bytes(whole)
    assert is_whole(folder)
    (folder / MANIFEST).write_text(json.dumps({"files": {}}), encoding="utf-8")
    assert not is_whole(folder)


def test_a_damaged_part_gives_way_to_the_checkpoint_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    CheckpointFiles().save_checkpoint(common(1), last)
    last.rename(previous)
    write(last, torch.zeros(4, 2), 2, step=2)
    assert whole_checkpoint(tmp_path) == last
    (part,) = last.glob("part-00001*")
    part.write_bytes(part.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert whole_checkpoint(tmp_path) == previous
    assert "is damaged; the checkpoint before it is taken" in caplog.text
    previous.unlink()
    with pytest.raises(DataError, match="no whole checkpoint"):
        whole_checkpoint(tmp_path)


def test_a_copy_is_no_longer_what_training_changes() -> None:
    live = torch.zeros(2)
    tree = {"weights": [live, (1, live)], "step": 3}
    copy = copied(tree)
    live.add_(1)
    assert torch.equal(copy["weights"][0], torch.zeros(2))
    assert copy["weights"][1][0] == 1
    assert torch.equal(copy["weights"][1][1], torch.zeros(2))
    put(copy, ("weights", 0), "back")
    assert copy["weights"][0] == "back"


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("background", [False, True])
def test_the_last_two_are_kept_whatever_they_were(background: bool, tmp_path: Path) -> None:
    files, path = CheckpointFiles(background), tmp_path / "last.ckpt"
    for step in (1, 2, 3):
        files.save_parts(common(step), {PLACE: (0, torch.full((2, 2), float(step)))}, path)
        files.finish()
        assert files.failure is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert [read_checkpoint(tmp_path / name)["global_step"] for name in ("last.ckpt", "previous.ckpt")] == [3, 2]
    files.save_whole(common(4), path)
    files.finish()
    assert path.is_file()
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 3
    (tmp_path / "last.ckpt.tmp").write_bytes(b"half")
    files.save_parts(common(5), {PLACE: (0, torch.ones(2, 2))}, path)
    files.finish()
    assert is_whole(path)
    assert is_whole(tmp_path / "previous.ckpt")


@pytest.mark.usefixtures("alone")
def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files, path = CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_parts(common(1), {PLACE: (0, torch.ones(2, 2))}, path)
    for what in ("write_parts", "write_manifest", "_make"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_files, what, full)
            files.save_parts(common(2), {PLACE: (0, torch.ones(2, 2))}, path)
        assert files.failure is not None
        assert "No space left on device" in files.failure
        assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
        assert read_checkpoint(path)["global_step"] == 1
    files.save_parts(common(3), {PLACE: (0, torch.ones(2, 2))}, path)
    assert files.failure is None
    assert read_checkpoint(path)["global_step"] == 3


@pytest.mark.usefixtures("alone")
def test_an_error_that_is_not_the_disks_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> None:
        raise RuntimeError("cannot be saved")

    monkeypatch.setattr(checkpoint_files, "write_parts", wrong)
    files = CheckpointFiles(background=True)
    files.save_parts(common(1), {}, tmp_path / "last.ckpt")
    with pytest.raises(RuntimeError, match="cannot be saved"):
        files.finish()
