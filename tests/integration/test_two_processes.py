"""A training in two processes, stopped in the middle of an epoch and resumed: each rank sees its own next batches."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from fvl_lightning.training.journal import read_journal
from tests.conftest import ONE_THREAD, ROOT, furnish

PROGRAM = Path(__file__).with_name("two_ranks.py")
IN_TROUBLE = Path(__file__).with_name("stopped_ranks.py")


def train(folder: Path, out: str, stop: int, *checkpoint: str) -> list[dict[str, Any]]:
    """What both ranks saw."""
    return launch(folder, PROGRAM, out, str(stop), *checkpoint)


def launch(folder: Path, program: Path, out: str, *words: str) -> list[dict[str, Any]]:
    """Runs `program` as two ranks; what each wrote."""
    (folder / out).mkdir()
    torchrun(folder, program, out, *words)
    return [json.loads((folder / out / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def torchrun(folder: Path, program: Path, *words: str, ranks: int = 2) -> None:
    """Runs `program` as so many ranks in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = [f"--nproc-per-node={ranks}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    launcher = ["-m", "torch.distributed.run", *where]
    done = subprocess.run(
        [sys.executable, *launcher, str(program), *words],
        cwd=folder, env=os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_each_rank_goes_on_with_its_own_next_batches(tmp_path: Path, tiny_data: Path) -> None:
    folder = furnish(tmp_path, tiny_data)
    whole = train(folder, "whole", 6)
    first = train(folder, "first", 2)
    second = train(folder, "second", 6, "first/last.ckpt")
    for rank in range(2):
        assert len(first[rank]["keys"]) == 4
        assert first[rank]["keys"] + second[rank]["keys"] == whole[rank]["keys"]
        assert whole[rank]["position"] == second[rank]["position"] > first[rank]["position"]
    assert whole[0]["position"] == whole[1]["position"]
    seen = [{key for keys in rank["keys"] for key in keys} for rank in whole]
    assert max(map(len, seen)) > 8
    assert whole[0]["keys"] != whole[1]["keys"]


def test_trouble_on_one_rank_is_met_by_both_at_the_same_step(tmp_path: Path, tiny_data: Path) -> None:
    """A loss that is no number, then SIGTERM, both on rank 1 alone."""
    folder = furnish(tmp_path, tiny_data)
    ranks = launch(folder, IN_TROUBLE, "out")
    assert [rank["asked"] for rank in ranks] == ["NOBODY", "CLUSTER"]
    for rank in ranks:
        assert (rank["step"], rank["stop"]) == (4, "CLUSTER")
        assert rank["unchanged"] == [2]
    checkpoint = torch.load(folder / "out" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert {rank["position"] for rank in ranks} == {checkpoint["position"]}
    spoilt = [*ranks[0]["keys"][1], *ranks[1]["keys"][1]]
    for number in range(2):
        notes = [line["note"] for line in read_journal(folder / "out" / f"rank{number}.jsonl") if "note" in line]
        assert [note["skipped"] for note in notes] == [spoilt]
