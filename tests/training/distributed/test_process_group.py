"""What rank 0 does for all ranks."""

from typing import Any

import pytest

from fvl_lightning.training.distributed import process_group as ranks
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.fault_tolerance.signals import Preempted


def test_what_ended_the_first_rank_is_not_hidden_by_others_that_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    payloads: list[Any] = []

    def gone(payload: list[Any], *_: Any) -> None:
        payloads.append(payload)
        raise RuntimeError("Connection closed by peer")

    def asked() -> None:
        raise Preempted

    monkeypatch.setattr(ranks.distributed, "broadcast_object_list", gone)
    with pytest.raises(Preempted):
        Ranks(0, 2).broadcast_from_rank0(asked)
    assert payloads == [[None, False]]
