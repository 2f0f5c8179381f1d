"""What rank 0 does for all ranks."""

from typing import Any

import pytest
import torch
from torch import nn

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import TrainerConfig
from fvl_lightning.training.distributed import process_group as ranks
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.fault_tolerance.hang_detection import PeerFailedError
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


def test_a_rank_that_fails_takes_part_in_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others, which may have worked for hours, learn of it; it raises its own error, even if they have gone."""
    laid_down: list[Any] = []
    others: list[Any] = [("first", True)]

    def exchange(results: list[Any], own: Any, group: Any) -> None:
        laid_down.append(own)
        results[:] = [others[-1], own]

    def fail() -> None:
        raise ConfigError("no")

    monkeypatch.setattr(ranks.distributed, "all_gather_object", exchange)
    assert Ranks(1, 2).gather(lambda: "second") == ["first", "second"]
    with pytest.raises(ConfigError, match=r"^no$"):
        Ranks(1, 2).gather(fail)
    assert laid_down == [("second", True), (None, False)]
    others.append((None, False))
    with pytest.raises(PeerFailedError, match="rank 0 has failed"):
        Ranks(1, 2).gather(lambda: "second")
    assert Ranks().gather(lambda: "alone") == ["alone"]


def test_a_replica_has_the_values_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied tensors, buffers that are not saved and a rank without values included; the module stays as it was."""

    def tied(scale: float, device: str) -> nn.Module:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        module.register_buffer("table", torch.full((3,), scale), persistent=False)
        nn.init.constant_(module[0].weight, scale)
        module[1].weight = module[0].weight
        return module.to(device)

    first, other, sent = tied(2.0, "cpu"), tied(9.0, "meta"), []
    monkeypatch.setattr(ranks.distributed, "broadcast", lambda tensor, *_: sent.append(tensor))
    with Ranks(0, 2).replica(first, None) as replica:
        values = [tensor.clone() for tensor in sent]
        assert replica[1].weight is replica[0].weight
    monkeypatch.setattr(ranks.distributed, "broadcast", lambda tensor, *_: tensor.copy_(values.pop(0)))
    with Ranks(1, 2).replica(other, torch.device("cpu")) as replica:
        for name, tensor in [*first.state_dict().items(), ("table", first.table)]:
            assert torch.equal(replica.get_buffer(name) if name == "table" else replica.state_dict()[name], tensor)
    assert not values
    assert {tensor.device.type for tensor in (*other.parameters(), other.table)} == {"meta"}


@pytest.mark.parametrize(("strategy", "bound"), [("ddp", torch.device("cuda", 0)), ("fsdp", None), ("hsdp", None)])
def test_nccl_is_bound_to_its_device_where_no_mesh_splits_the_group(
    strategy: Any, bound: torch.device | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[dict[str, Any]] = []

    def join(backend: str, **arguments: Any) -> None:
        joined.append({"backend": backend, **arguments})
        raise ConfigError("no GPU")

    monkeypatch.setattr(ranks, "compute_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(ranks.distributed, "init_process_group", join)
    with pytest.raises(ConfigError, match="no GPU"), ranks.init_process_group(TrainerConfig(strategy=strategy)):
        pass
    assert joined[0]["backend"] == "cpu:gloo,cuda:nccl"
    assert joined[0].get("device_id") == bound
