"""A training in two processes, stopped in the middle of an epoch and resumed: each rank sees its own next batches."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fvl_lightning.tracking.metrics_log import read_metrics
from tests.conftest import Fork, furnish

PROGRAM = Path(__file__).with_name("two_ranks.py")
IN_TROUBLE = Path(__file__).with_name("stopped_ranks.py")


@pytest.fixture
def launch(tmp_path: Path, tiny_data: Path, fork: Fork) -> Callable[..., list[dict[str, Any]]]:
    """(program, out, *words) -> what each of two ranks of the program wrote into `out`."""
    folder = furnish(tmp_path, tiny_data)

    def run(program: Path, out: str, *words: str) -> list[dict[str, Any]]:
        codes = fork(folder, out, *[(str(program), out, *words)] * 2)
        assert codes == [0, 0], (folder / out / "rank0.txt").read_text(encoding="utf-8")
        return [json.loads((folder / out / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]

    return run


@pytest.mark.slow
def test_each_rank_goes_on_with_its_own_next_batches(launch: Callable[..., list[dict[str, Any]]]) -> None:
    whole = launch(PROGRAM, "whole", "6")
    first = launch(PROGRAM, "first", "2")
    second = launch(PROGRAM, "second", "6", "first/last.ckpt")
    for rank in range(2):
        assert len(first[rank]["keys"]) == 4
        assert first[rank]["keys"] + second[rank]["keys"] == whole[rank]["keys"]
        assert whole[rank]["position"] == second[rank]["position"] > first[rank]["position"]
    assert whole[0]["position"] == whole[1]["position"]
    seen = [{key for keys in rank["keys"] for key in keys} for rank in whole]
    assert max(map(len, seen)) > 8
    assert whole[0]["keys"] != whole[1]["keys"]


@pytest.mark.slow
def test_trouble_on_one_rank_is_met_by_both_at_the_same_step(
    tmp_path: Path, launch: Callable[..., list[dict[str, Any]]]
) -> None:
    """A loss that is no number, one that is a spike, then SIGTERM, all on rank 1 alone."""
    ranks = launch(IN_TROUBLE, "out")
    assert [rank["asked"] for rank in ranks] == ["NOBODY", "CLUSTER"]
    for rank in ranks:
        assert (rank["step"], rank["stop"]) == (4, "CLUSTER")
        assert rank["unchanged"] == [2, 3]
    checkpoint = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert {rank["position"] for rank in ranks} == {checkpoint["position"]}
    assert checkpoint["recent_updates"] == ranks[0]["recent"] == ranks[1]["recent"]
    assert len(ranks[0]["recent"]["loss"]) == 2
    for number in range(2):
        lines = read_metrics(tmp_path / "out" / f"rank{number}.jsonl")
        spoilt, spike = (line["note"] for line in lines if "note" in line)
        assert spoilt["skipped"] == [*ranks[0]["keys"][1], *ranks[1]["keys"][1]]
        assert spoilt["reason"] == "its loss or gradient is not finite"
        assert [math.isfinite(float(loss)) for loss in spoilt["rank_losses"]] == [True, False]
        assert spike["skipped"] == [*ranks[0]["keys"][2], *ranks[1]["keys"][2]]
        assert "its loss is " in spike["reason"]
        assert float(spike["rank_losses"][1]) > 100 * float(spike["rank_losses"][0])
