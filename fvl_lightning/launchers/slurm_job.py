"""A training as one SLURM job: a script to read, submitted, which SLURM starts again until the training has ended."""

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
from fvl_lightning.launchers.sbatch import check_options, job_name

COUNTED = ("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "gpus-per-task", "array")
"""Options of sbatch from which ranks are counted; `fvl launch` sets them."""
WARNING_SECONDS = 300
"""How long before the end of its time a job is told to save."""
LEFT_BEHIND_SECONDS = 600
"""How long the others may go on once one rank has ended: they may be waiting for it, or write what all have trained."""

AS_RANK = 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID; exec "$@"'
"""What each task of srun does with the command: SLURM's numbers under the names that torch.distributed reads."""


@dataclass(frozen=True)
class Job:
    """What is asked of SLURM.

    Raises:
        ConfigError: an option that is none or is not free, or a folder whose name a line of #SBATCH cannot hold.
    """

    name: str
    nodes: int
    per_node: int
    """Processes on each of them."""
    gpus: bool
    """Whether each process has one."""
    command: Sequence[str]
    """Of every process."""
    output: Path
    """Folder of the script and of what the job says."""
    options: Sequence[str] = ()
    """Of sbatch, such as --partition=long; they win over what is set here."""

    def __post_init__(self) -> None:
        check_options(self.options, "--sbatch")
        for option in self.options:
            if (name := option[2:].partition("=")[0]) in COUNTED:
                raise ConfigError(f"--sbatch: --{name} follows from --nodes and --gpus-per-node, leave it out")
        if not re.fullmatch(r"[\w./+=@,-]+", str(self.output)):
            raise ConfigError(
                f"output: '{self.output}' cannot stand in a line of #SBATCH, take letters, digits and ./_-"
            )

    @property
    def script(self) -> Path:
        """Beside the run's folder, which the training itself makes."""
        return self.output / f"{job_name(self.name)}.launch.sh"

    @property
    def log(self) -> Path:
        """What the job says, of all its starts."""
        return self.script.with_suffix(".log")

    def text(self) -> str:
        """The script for sbatch.

        Every rank is a task of srun, which ends with the highest exit code of all; a launcher between would hide it.
        """
        chosen = {option.partition("=")[0] for option in self.options}
        own_gpus = any(name == "--gres" or name.startswith("--gpus") for name in chosen)
        given = [
            f"--job-name={job_name(self.name)}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.per_node}",
            *([f"--gres=gpu:{self.per_node}"] if self.gpus and not own_gpus else []),
            "--requeue",
            f"--signal=USR1@{WARNING_SECONDS}",
            "--open-mode=append",
            f"--output={self.log}",
        ]
        step = ["srun", "--kill-on-bad-exit=0", f"--wait={LEFT_BEHIND_SECONDS}"]
        step += ["--gpu-bind=none"] if self.gpus else []
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in given if option.partition("=")[0] not in chosen),
            *(f"#SBATCH {option}" for option in self.options),
            f"cd {shlex.quote(os.getcwd())} || exit 1",
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
            f"export MASTER_ADDR MASTER_PORT WORLD_SIZE={self.nodes * self.per_node} LOCAL_WORLD_SIZE={self.per_node}",
            f'{shlex.join(step)} ${{SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"}} \\',
            f"    bash -c {shlex.quote(AS_RANK)} rank \\",
            f"    {shlex.join(self.command)}",
            "code=$?",
            f'if [ "$code" -eq {EXIT_REQUEUE} ]; then',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
        ]
        return "\n".join(lines) + "\n"

    def submit(self) -> str:
        """Writes the script and hands it to sbatch; the job's number.

        Raises:
            ConfigError: there is no sbatch, or it refuses the script, saying why itself.
        """
        if shutil.which("sbatch") is None:
            raise ConfigError("--slurm: there is no sbatch on this machine; --dry-run shows what it would be given")
        self.output.mkdir(parents=True, exist_ok=True)
        write_text_atomically(self.script, self.text())
        done = subprocess.run(
            ["sbatch", "--parsable", str(self.script)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise ConfigError(f"--slurm: sbatch refused {self.script}, its own words stand above")
        return done.stdout.strip().partition(";")[0]
