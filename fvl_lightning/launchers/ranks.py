"""Launcher of ranks: one process per device of this machine, as with torchrun, and one exit code.

`python -m fvl_lightning.launchers.ranks DEVICES COMMAND...` runs a command on that many ranks.
"""

from fvl_lightning.training.fault_tolerance.signals import CLUSTER, handle_from_start, handled

if __name__ == "__main__":
    handle_from_start(preemptible=True)

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_USAGE_ERROR
from fvl_lightning.core.terminal import say_error
from fvl_lightning.training.fault_tolerance.hang_detection import rank_names
from fvl_lightning.training.fault_tolerance.process_exit import begin_exit, started_by_this_process

MODULE = "fvl_lightning.launchers.ranks"
POLL_SECONDS = 0.1
PATIENCE = 2
"""Ctrl-C that the ranks may answer by themselves."""
EXIT_GRACE_SECONDS = 30.0
"""Time that the other ranks have to end by themselves after one has failed; they may be waiting for it."""


@dataclass(frozen=True)
class Machine:
    """This machine among those of a training, and the address at which their ranks meet."""

    number: int = 0
    nodes: int = 1
    host: str = "127.0.0.1"
    """Address of the first machine."""
    port: int | None = None
    """Free port on the first machine; None finds one, for a single machine."""


def ranks_command(devices: int, command: Sequence[str]) -> list[str]:
    """Returns the command line of a process that runs `command` on so many ranks; `command` itself for one."""
    return list(command) if devices == 1 else [sys.executable, "-m", MODULE, str(devices), *command]


def run_ranks(devices: int, arguments: Sequence[str], machine: Machine | None = None) -> int:
    """Runs `fvl <arguments>` once per device of this machine; see `run_on_ranks`."""
    return run_on_ranks(devices, [sys.executable, "-m", "fvl_lightning", *arguments], machine)


def run_on_ranks(devices: int, command: Sequence[str], machine: Machine | None = None) -> int:
    """Runs a command once per device of this machine.

    Signals that ask this process to stop are forwarded to all ranks, which save and end. Each has a session of its own,
    so that Ctrl-C reaches it once, through this process; a third Ctrl-C kills them.

    Args:
        devices: the number of ranks on this machine.
        command: the command line of every rank.
        machine: this machine; None for a training on one machine.

    Returns:
        0, or the exit code of a rank that failed.

    Raises:
        KeyboardInterrupt: after a third Ctrl-C.
    """
    machine = machine or Machine()
    shared = {
        "WORLD_SIZE": machine.nodes * devices, "LOCAL_WORLD_SIZE": devices, "GROUP_RANK": machine.number,
        "MASTER_ADDR": machine.host, "MASTER_PORT": machine.port or _free_port(),
    }  # fmt: skip
    threads = max(1, (os.cpu_count() or 1) // devices)
    processes: list[subprocess.Popen[bytes]] = []

    interrupts = itertools.count(1)

    def forward(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and next(interrupts) > PATIENCE:
            raise KeyboardInterrupt
        for process in reversed(processes):  # rank 0, which holds the rendezvous store, is signalled last
            process.send_signal(signum)

    stops = (*CLUSTER, signal.SIGINT)
    handlers: dict[int, Any] = dict.fromkeys(stops, forward)
    with handled(handlers):
        # The started processes inherit the blocked signals and unblock them once their handlers are installed
        # (training/fault_tolerance/signals.py), so no signal is lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, stops)
        try:
            for local in range(devices):
                ranks = {"RANK": machine.number * devices + local, "LOCAL_RANK": local}
                own = {name: str(value) for name, value in {**shared, **ranks}.items()}
                environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | own | started_by_this_process()
                processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, stops)
            return _wait(processes, machine.number * devices)
        finally:
            for process in processes:
                process.kill()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(processes: Sequence[subprocess.Popen[bytes]], first_rank: int) -> int:
    end = float("inf")
    killed: dict[int, int] = {}
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < end:
        if any(codes) and end == float("inf"):
            end = time.monotonic() + EXIT_GRACE_SECONDS
            killed = _killed_ranks(codes, first_rank)
        time.sleep(POLL_SECONDS)
    killed = killed or _killed_ranks(codes, first_rank)
    failed = [EXIT_REQUEUE if code < 0 else code for code in codes if code]
    if killed and not set(failed) & set(codes):
        number = min(killed.values())
        ended = f"{'was' if len(killed) == 1 else 'were'} ended by {signal.Signals(number).name}"
        cause = ", as by a machine that is out of memory" if number == signal.SIGKILL else ""
        say_error(
            f"{rank_names(killed)} {ended}{cause}; all ranks end, and the same command "
            "with `--resume-or-start` goes on from the last checkpoint"
        )
    # Among several codes, the one that gives the reason: a rank whose peer is gone ends with an error of its own.
    reasons = (EXIT_INTERRUPTED, EXIT_USAGE_ERROR, EXIT_REQUEUE)
    return next((code for code in reasons if code in failed), failed[0] if failed else 0)


def _killed_ranks(codes: Sequence[int | None], first_rank: int) -> dict[int, int]:
    """Returns {rank that a signal has ended: the signal's number}."""
    return {first_rank + local: -code for local, code in enumerate(codes) if code is not None and code < 0}


if __name__ == "__main__":
    try:
        ended = run_on_ranks(int(sys.argv[1]), sys.argv[2:])
    except KeyboardInterrupt:
        ended = EXIT_INTERRUPTED
    begin_exit(ended)
    sys.exit(ended)
