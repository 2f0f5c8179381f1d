"""Checks that every sbatch script needs: its options and its job name."""

import re
from collections.abc import Sequence

from fvl_lightning.core.errors import ConfigError


def check_options(options: Sequence[str], where: str) -> None:
    """ConfigError at `where`, unless each of them is one option of sbatch that fits on a line of its own."""
    for option in options:
        if not re.fullmatch(r"--[a-z][\w-]*(=\S+)?", option):
            raise ConfigError(f"{where}: '{option}' is no option of sbatch, write for instance --partition=long")


def job_name(name: str) -> str:
    """`name` without what a line of #SBATCH could misread."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
