"""One SLURM job for a training: a script that SLURM requeues until the training has ended."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.errors import EXIT_REQUEUE, ConfigError
from fvl_lightning.launchers.sbatch import (
    check_options,
    gpu_option,
    job_name,
    meeting_lines,
    refuse_reserved,
    sbatch_lines,
    srun_lines,
)

WARNING_SECONDS = 300
"""Time before the time limit at which SLURM signals the job to save."""


@dataclass(frozen=True)
class Job:
    """A training as a job of SLURM.

    Raises:
        ConfigError: an option is not an sbatch option, or one that fvl sets itself; or the name of the folder cannot be
            written in an #SBATCH line.
    """

    name: str
    nodes: int
    per_node: int
    """Processes per node."""
    gpus: bool
    """Whether each process has a GPU."""
    command: Sequence[str]
    """Command line of every process."""
    output: Path
    """Folder of the script and of the job's log."""
    options: Sequence[str] = ()
    """sbatch options, such as --partition=long; they override those that are set here."""

    def __post_init__(self) -> None:
        check_options(self.options, "--sbatch")
        refuse_reserved(self.options, "--sbatch", "--nodes and --gpus-per-node")
        if not re.fullmatch(r"[\w./+=@,-]+", str(self.output)):
            raise ConfigError(
                f"output: '{self.output}' cannot be written in an #SBATCH line, use letters, digits and ./_-"
            )

    @property
    def script(self) -> Path:
        """Path of the script, next to the run's folder, which the training itself creates."""
        return self.output / f"{job_name(self.name)}.launch.sh"

    @property
    def log(self) -> Path:
        """Path of the log of all starts of the job."""
        return self.script.with_suffix(".log")

    def text(self) -> str:
        """Returns the script for sbatch."""
        given = [
            f"--job-name={job_name(self.name)}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.per_node}",
            *(gpu_option(self.per_node, self.options) if self.gpus else []),
            "--requeue",
            f"--signal=USR1@{WARNING_SECONDS}",
            "--open-mode=append",
            f"--output={self.log}",
        ]
        lines = [
            "#!/bin/bash",
            *sbatch_lines(given, self.options),
            f"cd {shlex.quote(os.getcwd())} || exit 1",
            *meeting_lines(self.nodes, self.per_node),
            *srun_lines(self.gpus),
            f"    {shlex.join(self.command)}",
            "code=$?",
            f'if [ "$code" -eq {EXIT_REQUEUE} ]; then',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
        ]
        return "\n".join(lines) + "\n"

    def submit(self) -> str:
        """Writes the script and submits it; returns the number of the job.

        Raises:
            ConfigError: there is no sbatch, or it rejects the script.
        """
        if shutil.which("sbatch") is None:
            raise ConfigError("--slurm: there is no sbatch on this machine; --dry-run shows the script")
        self.output.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.script, self.text())
        done = subprocess.run(
            ["sbatch", "--parsable", str(self.script)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise ConfigError(f"--slurm: sbatch rejected {self.script}, see its message above")
        return done.stdout.strip().partition(";")[0]
