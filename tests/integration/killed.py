"""`python killed.py PLACE STEP <words of fvl>`: kill -9 at that place of that optimiser step, counted from 1.

At the place `never` it is `fvl <words>`; at `hangs` the process waits for ever at the beginning of the step, as for a
file that does not come.
"""

import os
import signal
import sys
import time
from typing import Any

from fvl_lightning.cli.main import main
from fvl_lightning.training.step_logging import LogWindow

PLACES = ("in the step", "after the update", "in a save", "between the renames of a save")
"""The last two are in the first save that comes at or after the step."""


def die() -> None:
    """As the kernel would have it: nothing is flushed, nothing is told."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(place: str, step: int) -> None:
    """Waits for the moment."""
    begins = place in ("in the step", "hangs")
    name = "on_train_batch_start" if begins else "on_train_batch_end"
    original, replace = getattr(LogWindow, name), os.replace

    def replace_or_die(source: Any, target: Any) -> None:
        if str(target).endswith("last.ckpt"):
            die()
        replace(source, target)

    def hook(self: LogWindow, trainer: Any, *arguments: Any) -> None:
        original(self, trainer, *arguments)
        if trainer.global_step + begins < step:
            return
        if place == "hangs":
            time.sleep(3600)
        elif place == "in a save":
            os.fsync = lambda handle: die()
        elif place == "between the renames of a save":
            os.replace = replace_or_die  # type: ignore[assignment]
        else:
            die()

    setattr(LogWindow, name, hook)


if __name__ == "__main__":
    if sys.argv[1] != "never":
        arm(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["fvl", *sys.argv[3:]]
    main()
