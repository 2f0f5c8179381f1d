"""Work spread over processes: in order, errors as one sentence, a killed worker told."""

import os
import signal

import pytest

from datamodules.inspection.parallel import map_in_processes
from fvl_lightning.core.errors import DataError


def square(number: int) -> int | None:
    if number == 13:
        raise DataError("thirteen cannot be used")
    return None if number == 4 else number * number


def own_process(number: int) -> int:
    return os.getpid()


def killed(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [1, 2, 50])
def test_results_come_in_order(processes: int) -> None:
    items = [1, 2, 3, 4, 5, 6, 7]
    assert list(map_in_processes(square, items, processes)) == [1, 4, 9, None, 25, 36, 49]


def test_one_process_is_this_one() -> None:
    assert set(map_in_processes(own_process, range(3), 1)) == {os.getpid()}
    assert os.getpid() not in set(map_in_processes(own_process, range(3), 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_in_a_worker_is_the_same_mistake(processes: int) -> None:
    with pytest.raises(DataError, match=r"^thirteen cannot be used$"):
        list(map_in_processes(square, [1, 13, 2], processes))


@pytest.mark.slow
def test_a_killed_worker_is_told() -> None:
    with pytest.raises(DataError, match="a worker process was killed"):
        list(map_in_processes(killed, range(10), 2))


def test_nothing_to_do() -> None:
    assert list(map_in_processes(square, [], 2)) == []
