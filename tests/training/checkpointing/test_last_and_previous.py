"""Checkpoints on disk: the one before outlives whatever happens to the newest."""

import errno
import logging
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fvl_lightning.core.errors import DataError
from fvl_lightning.training.checkpointing.checksum import read_file
from fvl_lightning.training.checkpointing.last_and_previous import (
    RUN_HASH,
    TRAINING_KEYS,
    CheckpointFiles,
    is_whole,
    newest_checkpoint,
    whole_checkpoint,
)
from tests.conftest import ONE_THREAD


def checkpoint(step: int) -> dict[str, Any]:
    """Something with a tensor in it."""
    return dict.fromkeys(TRAINING_KEYS) | {"global_step": step, "weights": torch.full((64, 64), float(step))}


def step_of(path: Path) -> int:
    """Which checkpoint this is."""
    return torch.load(path, weights_only=True)["global_step"]


@pytest.fixture
def files(tmp_path: Path) -> CheckpointFiles:
    """Two checkpoints, of steps 1 and 2."""
    files = CheckpointFiles()
    for step in (1, 2):
        files.save_checkpoint(checkpoint(step), tmp_path / "last.ckpt")
    return files


def test_the_last_two_are_kept(files: CheckpointFiles, tmp_path: Path) -> None:
    files.save_checkpoint(checkpoint(3), tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert (step_of(tmp_path / "last.ckpt"), step_of(tmp_path / "previous.ckpt")) == (3, 2)
    assert whole_checkpoint(tmp_path) == tmp_path / "last.ckpt"


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    files: CheckpointFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert whole_checkpoint(tmp_path) == previous
    assert caplog.messages == [f"{last} is damaged; the checkpoint before it is taken, {previous}"]
    previous.write_bytes(b"")
    with pytest.raises(DataError, match="no whole checkpoint") as raised:
        whole_checkpoint(tmp_path)
    assert str(last) in str(raised.value)
    assert str(previous) in str(raised.value)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no whole checkpoint"):
        whole_checkpoint(tmp_path)


def test_a_kill_between_the_two_renames_leaves_the_one_before(files: CheckpointFiles, tmp_path: Path) -> None:
    os.replace(tmp_path / "last.ckpt", tmp_path / "last.ckpt.tmp")
    assert step_of(whole_checkpoint(tmp_path)) == 1


def test_what_a_kill_left_half_written_is_in_nobodys_way(files: CheckpointFiles, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt.tmp").write_bytes(b"half")
    assert step_of(whole_checkpoint(tmp_path)) == 2
    files.save_checkpoint(checkpoint(3), tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("flips", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_damage_is_seen(flips: int, files: CheckpointFiles, tmp_path: Path) -> None:
    """Cuts anywhere, and a flipped bit anywhere, also in the archive's directory and in the checksum itself."""
    path = tmp_path / "last.ckpt"
    whole = path.read_bytes()
    assert is_whole(path)
    assert zipfile.ZipFile(path).testzip() is None
    draw = random.Random(0)
    for size in [0, 1, len(whole) - 1, *draw.sample(range(len(whole)), flips // 10)]:
        path.write_bytes(whole[:size])
        assert not is_whole(path), f"cut at {size} of {len(whole)}"
    for number in range(flips):
        directory = number % 2  # the last kilobytes are the directory, the end records and the checksum
        place = draw.randrange(len(whole) - 4096 if directory else 0, len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert not is_whole(path), f"flipped at {place} of {len(whole)}"
    path.write_bytes(whole + b"more")
    assert not is_whole(path)


@pytest.mark.parametrize("flips", [200, pytest.param(3_000, marks=pytest.mark.slow)])
def test_a_checkpoint_of_an_earlier_version_is_whole_if_torch_can_read_it(flips: int, tmp_path: Path) -> None:
    path, draw = tmp_path / "last.ckpt", random.Random(0)
    torch.save(checkpoint(1), path)
    whole = path.read_bytes()
    assert is_whole(path)
    for number in range(flips):
        damaged = bytearray(whole)
        place = draw.randrange(len(whole) - 2048 if number % 2 else 0, len(whole))
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        if is_whole(path):  # the bit is one that torch does not read
            found = read_file(path)
            assert torch.equal(found["weights"], torch.full((64, 64), 1.0)), f"flipped at {place} of {len(whole)}"
    size_of_id = len(whole) - whole[::-1].index(b"serialization_id"[::-1]) - len("last/.data/serialization_id") - 22
    damaged = bytearray(whole)
    assert damaged[size_of_id] == 40
    damaged[size_of_id] ^= 16  # in the directory: torch would read 16 bytes of whatever lies in memory
    path.write_bytes(damaged)
    assert not is_whole(path)
    damaged = bytearray(whole)
    attributes = whole.index(b"PK\x01\x02") + 38
    assert damaged[attributes] == 0
    damaged[attributes] ^= 16  # a folder, of which torch would return memory as it was
    path.write_bytes(damaged)
    assert not is_whole(path)
    for size in [0, 1, 21, len(whole) - 1, *draw.sample(range(len(whole)), 20)]:
        path.write_bytes(whole[:size])
        assert not is_whole(path), f"cut at {size} of {len(whole)}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (3, "is no checkpoint of this kit"),
        ({"weights": torch.ones(2)}, "is no checkpoint of this kit"),
        (checkpoint(9) | {RUN_HASH: "another"}, "is of another run"),
    ],
    ids=["number", "weights", "another run"],
)
def test_a_file_of_another_kind_gives_way_to_the_one_before(
    content: Any, problem: str, files: CheckpointFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    torch.save(content, last)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path, "this") == previous
    assert caplog.messages == [f"{last} {problem}; the checkpoint before it is taken, {previous}"]


def test_a_full_disk_keeps_what_is_there(
    files: CheckpointFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        files.save_checkpoint(checkpoint(3), tmp_path / "last.ckpt")
    assert files.failure is not None
    assert "No space left on device" in files.failure
    assert f"bytes free in {tmp_path}" in files.failure
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert step_of(tmp_path / "last.ckpt") == 2
    files.save_checkpoint(checkpoint(4), tmp_path / "last.ckpt")
    assert files.failure is None
    assert step_of(tmp_path / "last.ckpt") == 4


@pytest.mark.slow
def test_a_file_that_ends_in_the_middle_of_a_tensor(files: CheckpointFiles, tmp_path: Path) -> None:
    """A real refusal by the system, which torch reports as something else."""
    program = (
        "import resource, sys, torch\n"
        "from fvl_lightning.training.checkpointing.last_and_previous import CheckpointFiles\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "files = CheckpointFiles()\n"
        "files.save_checkpoint({'weights': torch.randn(300, 300)}, sys.argv[1])\n"
        "sys.stdout.write(files.failure)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "last.ckpt")],
        env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "File too large" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert step_of(tmp_path / "last.ckpt") == 2


def test_an_error_that_is_not_the_disks_is_not_hidden(tmp_path: Path) -> None:
    class Odd:
        def __reduce__(self) -> Any:
            raise RuntimeError("cannot be saved")

    with pytest.raises(RuntimeError, match="cannot be saved"):
        CheckpointFiles().save_checkpoint({"odd": Odd()}, tmp_path / "last.ckpt")
