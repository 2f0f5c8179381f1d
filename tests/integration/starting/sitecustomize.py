"""With this folder on PYTHONPATH every process of a training that begins has MOMENT: there SIGNAL asks to stop.

Python imports it before anything else. What stands at the moment is in no hurry afterwards.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

MOMENT, RANK = os.environ.get("MOMENT"), os.environ.get("RANK")
LISTENS = "0A"
"""The state of a socket in /proc/net/tcp."""


def ask() -> None:
    """The signal to the process that was started by hand, which is the parent of the ranks."""
    os.kill(os.getppid() if RANK else os.getpid(), signal.Signals[os.environ["SIGNAL"]])
    time.sleep(120)


def ask_once_the_first_rank_waits() -> None:
    """For the others, in the store that it has opened."""
    port = f":{int(os.environ['MASTER_PORT']):04X}"
    sockets = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    while not any(
        fields[1].endswith(port) and fields[3] == LISTENS
        for file in sockets
        for fields in map(str.split, file.read_text().splitlines()[1:])
    ):
        time.sleep(0.05)
    ask()


def patch() -> None:
    """Asks where this rank would join the group that the first one is already waiting in."""
    from torch import distributed

    distributed.init_process_group = lambda *_, **__: ask()


MOMENTS: dict[str, tuple[str | None, str, Any]] = {
    "the parent imports": (None, "transformers", ask),
    "the ranks import": ("1", "transformers", ask),
    "the first rank waits in the store": ("1", "lightning", ask_once_the_first_rank_waits),
    "the group is made": ("1", "fvl_lightning.cli.main", patch),
}
"""The rank, the module that it is about to import, and what it does then."""


class AtImport:
    """Sees every module that is about to be imported."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Finds nothing, but does what is due."""
        if MOMENT and (RANK, name) == MOMENTS[MOMENT][:2]:
            sys.meta_path.remove(AtImport)
            MOMENTS[MOMENT][2]()


sys.meta_path.insert(0, AtImport)
