"""The origin of a run (code, configuration and machine) as MLflow tags."""

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fvl_lightning

UNKNOWN = "unknown"


def provenance(config: Mapping[str, Any], config_hash: str) -> dict[str, str]:
    """Tags by which a run can be found and repeated.

    Args:
        config: the resolved configuration as plain containers; what fills each slot and the seed become tags.
        config_hash: its hash (core.config.config_hash).

    Returns:
        `fvl.config_hash`, `fvl.git_commit` and `fvl.git_dirty` ("unknown" where this package is not part of a git
        checkout), `fvl.version`, `fvl.torch_version`, `fvl.machine`, `fvl.cpu_count`, `fvl.<slot>`, `fvl.seed`, and
        `fvl.chosen.<variant>` for what was taken of an experiment file's variants.
    """
    tags = {
        "config_hash": config_hash,
        "git_commit": UNKNOWN,
        "git_dirty": UNKNOWN,
        "version": fvl_lightning.__version__,
        "torch_version": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_count": str(os.cpu_count()),
    }
    commit = _git("rev-parse", "HEAD")
    # An installed copy may lie inside someone else's checkout (an environment in a project): not their commit, then.
    in_checkout = bool(commit and _git("ls-files", "__init__.py"))
    if in_checkout:
        dirty = _git("status", "--porcelain", "--untracked-files=no")
        tags |= {"git_commit": commit, "git_dirty": "true" if dirty else "false"}
    tags |= {key: entry["name"] for key, entry in config.items() if isinstance(entry, Mapping) and "name" in entry}
    if "seed" in config:
        tags["seed"] = str(config["seed"])
    tags |= {f"chosen.{variant}": choice for variant, choice in config.get("chosen", {}).items()}
    # MLflow's own pages show the commit under this name of theirs.
    shown = {"mlflow.source.git.commit": commit} if in_checkout else {}
    return {f"fvl.{key}": value for key, value in tags.items()} | shown


def _git(*arguments: str) -> str:
    """Returns the output of git for the folder of this package; empty without git or a checkout."""
    command = ["git", "-C", str(Path(fvl_lightning.__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
