"""Options and job names of sbatch scripts."""

import re
from collections.abc import Sequence

from fvl_lightning.core.errors import ConfigError


def check_options(options: Sequence[str], where: str) -> None:
    """Checks that each is one sbatch option that fits on a line of its own; ConfigError at `where` otherwise."""
    for option in options:
        if not re.fullmatch(r"--[a-z][\w-]*(=\S+)?", option):
            raise ConfigError(f"{where}: '{option}' is not an sbatch option, write for instance --partition=long")


def job_name(name: str) -> str:
    """Returns `name` without characters that an #SBATCH line could misread."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
