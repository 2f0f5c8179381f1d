"""Signals as requests, and what they are where there is no step to finish."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fvl_lightning.training.stop import Preempted, Stop, StopSignals, preemptible

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def _handlers_are_given_back() -> Any:
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    assert {number: signal.getsignal(number) for number in ALL} == before


@pytest.mark.parametrize(
    ("sent", "requested"),
    [
        ([], Stop.NOBODY),
        ([signal.SIGINT], Stop.PERSON),
        ([signal.SIGTERM], Stop.CLUSTER),
        ([signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM], Stop.CLUSTER),
        ([signal.SIGTERM, signal.SIGINT], Stop.PERSON),
        ([signal.SIGINT, signal.SIGTERM], Stop.PERSON),
    ],
)
def test_requests(sent: list[signal.Signals], requested: Stop) -> None:
    with StopSignals() as signals:
        for number in sent:
            signal.raise_signal(number)
        assert signals.requested is requested


def test_a_second_ctrl_c_is_answered_at_once() -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_that_another_has_set_meanwhile_are_taken_back() -> None:
    with StopSignals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signals.listen()
        signal.raise_signal(signal.SIGTERM)
        assert signals.requested is Stop.CLUSTER


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_of_steps_a_request_is_answered_at_once(number: signal.Signals) -> None:
    with pytest.raises(Preempted), preemptible():
        signal.raise_signal(number)


@pytest.mark.parametrize("other", list(Stop))
def test_ranks_agree_on_the_larger_request(other: Stop) -> None:
    class TwoRanks:
        root_device = torch.device("cpu")

        def reduce(self, mine: torch.Tensor, reduce_op: str) -> torch.Tensor:
            return {"max": torch.maximum}[reduce_op](mine, torch.tensor(int(other)))

    signals = StopSignals()
    signals.requested = Stop.CLUSTER
    trainer: Any = SimpleNamespace(world_size=2, strategy=TwoRanks())
    assert signals.agreed(trainer) is max(Stop.CLUSTER, other)


def test_who_asked_is_raised() -> None:
    Stop.NOBODY.raise_for()
    with pytest.raises(KeyboardInterrupt):
        Stop.PERSON.raise_for()
    with pytest.raises(Preempted):
        Stop.CLUSTER.raise_for()
