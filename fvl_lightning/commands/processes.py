"""One process per device of this machine, as torchrun starts them, with one voice and one exit code."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from fvl_lightning.commands.console import INTERRUPTED, MISTAKE, REQUEUE
from fvl_lightning.training.stop import CLUSTER

GRACE = 60.0
"""Seconds the others have to end by themselves, once one has failed; they may be waiting for it."""


def run_ranks(devices: int, words: Sequence[str]) -> int:
    """Runs `fvl <words>` once per device; 0, or the exit code of a process that failed.

    What asks this process to stop is handed on to all, which save and end; so is Ctrl-C, by the terminal.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": devices, "LOCAL_WORLD_SIZE": devices, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }  # fmt: skip
    threads = max(1, (os.cpu_count() or 1) // devices)
    command = [sys.executable, "-m", "fvl_lightning", *words]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *CLUSTER)}
    processes: list[subprocess.Popen[bytes]] = []

    def hand_on(signum: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(signum)

    handlers: dict[int, Any] = dict.fromkeys(CLUSTER, hand_on) | {signal.SIGINT: lambda *_: None}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        for rank in range(devices):
            own = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            processes.append(subprocess.Popen(command, env={"OMP_NUM_THREADS": str(threads)} | os.environ | own))
        return _wait(processes)
    finally:
        for process in processes:
            process.kill()
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    end = float("inf")
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < end:
        if any(codes):
            end = min(end, time.monotonic() + GRACE)
        time.sleep(0.1)
    failed = [code for code in codes if code]
    # Of several the one that says why: a process whose neighbour has gone ends with an error of its own.
    return next((code for code in (INTERRUPTED, REQUEUE, MISTAKE) if code in failed), failed[0] if failed else 0)
