"""Workers that read ahead: nothing keeps their process from ending, and they end with it."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import workers as module
from datamodules.batching.workers import read_ahead

NEVER = 3600.0
KEPT: list[Any] = []
"""What refers to iterators that nobody closes, as a traceback does."""


class Slow(Dataset[int]):
    """Its first items are there at once; the others never come."""

    def __init__(self, quick: int) -> None:
        self.quick = quick

    def __getitem__(self, key: int) -> int:
        if key >= self.quick:
            time.sleep(NEVER)
        return os.getpid()


def began(quick: int) -> Iterator[int]:
    """An open iterator of two workers."""
    opened = read_ahead(Slow(quick), 2, range(100))
    KEPT.append(opened)
    return opened.__enter__()


def exit_code(life: Callable[[], None]) -> int | None:
    """How a process with this life ends; None where it has not in time."""
    process = multiprocessing.get_context("fork").Process(target=life)
    process.start()
    process.join(30)
    code = process.exitcode
    process.kill()
    return code


@pytest.mark.parametrize("quick", [2, 100], ids=["busy", "waiting for work"])
def test_a_process_ends_though_its_workers_are_referred_to(quick: int) -> None:
    def life() -> None:
        next(began(quick))
        sys.exit(7)

    assert exit_code(life) == 7


def test_a_process_ends_in_spite_of_workers_of_another_loader() -> None:
    """Such as one of a user's own data module, whose workers ignore the signal that Python's exit sends."""

    def life() -> None:
        next(began(2))
        ignore: Any = lambda _: signal.signal(signal.SIGTERM, signal.SIG_IGN)  # noqa: E731
        KEPT.append(iter(DataLoader(Slow(2), None, sampler=range(9), num_workers=1, worker_init_fn=ignore)))
        next(KEPT[-1])
        sys.exit(7)

    assert exit_code(life) == 7


def test_workers_end_with_the_loop_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "END_SECONDS", 0.2)
    with pytest.raises(LookupError), read_ahead(Slow(2), 2, range(100)) as items:  # noqa: PT012
        pids = {next(items), next(items)}
        raise LookupError
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_workers_end_with_their_process(tmp_path: Path) -> None:
    """As after kill -9, in the middle of a sample that never comes."""

    def life() -> None:
        items = began(2)
        (tmp_path / "pids").write_text(f"{next(items)} {next(items)}", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(life) == -signal.SIGKILL
    pids = (tmp_path / "pids").read_text(encoding="utf-8").split()
    end = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: str) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
