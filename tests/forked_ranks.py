"""Starts ranks without the seconds that imports take: `python forked_ranks.py` forks them from itself.

A line of standard input is a job, `{"folder", "out", "ranks": [[program, word, ...], ...]}`, one list per rank; its
answer is a line of exit codes. The output of a rank goes to `<out>/rank<r>.txt`.
"""

import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import lightning  # noqa: F401
import peft  # noqa: F401
import torch

import datamodules.demo  # noqa: F401
import fvl_lightning.cli.main
import fvl_lightning.runs.run  # noqa: F401
from fvl_lightning.core import registry
from tests.integration.runs import free_port


def be(rank: int, world_size: int, port: int, job: dict[str, Any]) -> None:
    """Runs one rank as torchrun would start it."""
    os.chdir(job["folder"])
    where = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
    where |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "forked"}
    os.environ.update({name: str(value) for name, value in where.items()})
    with (Path(job["out"]) / f"rank{rank}.txt").open("w") as said:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(said.fileno(), stream.fileno())
    sys.argv = job["ranks"][rank]
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    """Serves jobs until there are no more."""
    torch.set_num_threads(1)
    for slot in registry.SLOT_PACKAGES:
        registry.names(slot)  # which imports its components
    context = multiprocessing.get_context("fork")
    for line in sys.stdin:
        job = json.loads(line)
        count, port = len(job["ranks"]), free_port()
        processes = [context.Process(target=be, args=(rank, count, port, job)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        sys.stdout.write(json.dumps([process.exitcode for process in processes]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
