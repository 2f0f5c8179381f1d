"""How commands speak: quiet libraries, and exit codes."""

import logging
import os

from rich.logging import RichHandler
from transformers.utils.logging import disable_progress_bar

from fvl_lightning.core.terminal import terminal
from fvl_lightning.training.distributed.process_group import own_rank
from fvl_lightning.training.fault_tolerance.signals import TEMPFAIL

FAILED_ELSEWHERE = 1
"""Exit code of a rank where another one has failed, whose exit code says more."""
MISTAKE = 2
"""Exit code of what the user can mend."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells count."""
REQUEUE = TEMPFAIL
"""Exit code, 75, after SIGTERM, SIGUSR1 or SIGHUP, and where ranks have died or hang: to be run again (sysexits.h)."""


def quiet_libraries() -> None:
    """Our own log lines in one form; libraries speak up for warnings only."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_progress_bar()
    handler = RichHandler(console=terminal(stderr=True), show_path=False, show_time=False, markup=False)
    who = f"rank {own_rank()}: " if own_rank() else ""
    logging.basicConfig(level=logging.WARNING, format=f"{who}%(message)s", handlers=[handler], force=True)
    for name in ("fvl_lightning", "datamodules"):
        logging.getLogger(name).setLevel(logging.INFO)
    if own_rank() > 0:  # it sees what the first rank sees, but for its own samples
        logging.getLogger("fvl_lightning").setLevel(logging.ERROR)
        logging.getLogger("datamodules").setLevel(logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric", "alembic", "mlflow", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
