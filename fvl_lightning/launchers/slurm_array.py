"""Launcher of tasks as one SLURM job array: writes a script, submits it and waits for it."""

import contextlib
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.launchers.base import Task, thread_limits
from fvl_lightning.launchers.resources import ResourcesConfig
from fvl_lightning.launchers.sbatch import (
    check_options,
    gpu_option,
    job_name,
    meeting_lines,
    refuse_reserved,
    sbatch_lines,
    srun_lines,
)
from fvl_lightning.training.fault_tolerance.signals import Preempted

POLL_SECONDS = 2.0
SCANCEL_SECONDS = 30.0
EXIT_CODE = "exit_code"
"""File in a task's folder with the exit code of its process."""


class SlurmLauncher:
    """Runs each task as a task of a job array, `jobs` at a time; all machines must share the file system."""

    def __init__(self, folder: Path, name: str, jobs: int, options: Sequence[str]) -> None:
        self.script = folder / "array.sh"
        self.name, self.jobs, self.options = name, jobs, options

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """See launchers.base.Launcher. A task that the cluster preempts is resumed by the next start.

        Raises:
            ConfigError: there is no sbatch, or it rejects the script.
        """
        for task in tasks:
            task.prepare()
            (task.folder / EXIT_CODE).unlink(missing_ok=True)
        write_text_atomically(self.script, array_script(tasks, self.name, self.jobs, self.options))
        try:
            with subprocess.Popen(
                ["sbatch", "--parsable", "--wait", str(self.script)], stdout=subprocess.PIPE, text=True
            ) as waiting:
                assert waiting.stdout is not None
                job = ""
                try:
                    job = waiting.stdout.readline().strip().partition(";")[0]
                    while waiting.poll() is None:
                        watch()
                        time.sleep(POLL_SECONDS)
                except (KeyboardInterrupt, Preempted):
                    waiting.kill()
                    if job:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            subprocess.run(["scancel", job], check=False, timeout=SCANCEL_SECONDS)
                    raise
        except FileNotFoundError:
            raise ConfigError("launcher: there is no sbatch on this machine, use launcher: local") from None
        if not job:
            raise ConfigError(f"launcher: sbatch rejected {self.script}, see its message above and `slurm`")
        for task in tasks:
            with contextlib.suppress(OSError, ValueError):
                task.code = int((task.folder / EXIT_CODE).read_text(encoding="utf-8"))


def array_script(tasks: Sequence[Task], name: str, jobs: int, options: Sequence[str]) -> str:
    """Returns the job array as a script for sbatch.

    Args:
        tasks: each becomes a task of the array; all have the same resources.
        name: the name of the job.
        jobs: the number of tasks at a time.
        options: further sbatch options, such as --partition=long; they override those that are set here.

    Raises:
        ConfigError: an option is not an sbatch option, or determines the ranks of a task.
    """
    resources = tasks[0].resources if tasks else ResourcesConfig()
    gpus, several = any(task.gpus for task in tasks), resources.world_size > 1
    check_array_options(options, resources)
    given = [
        f"--job-name={job_name(name)}",
        f"--array=0-{len(tasks) - 1}%{jobs}",
        *([f"--nodes={resources.nodes}", f"--ntasks-per-node={resources.devices}"] if several else []),
        f"--cpus-per-task={resources.threads}",
        *(gpu_option(resources.devices, options) if gpus else []),
        *memory_option(resources, options),
        "--output=/dev/null",
    ]
    cases = [
        f"  {number}) folder={shlex.quote(str(task.folder))}; set -- {shlex.join(task.command)} ;;"
        for number, task in enumerate(tasks)
    ]
    lines = [
        "#!/bin/bash",
        *sbatch_lines(given, options),
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        *(f"export {key}={value}" for key, value in thread_limits(resources).items()),
        *(meeting_lines(resources.nodes, resources.devices) if several else []),
        "case $SLURM_ARRAY_TASK_ID in",
        *cases,
        "esac",
        *([*srun_lines(gpus), '    "$@" > "$folder/cell.log" 2>&1'] if several else ['"$@" > "$folder/cell.log" 2>&1']),
        f'echo $? > "$folder/{EXIT_CODE}"',
    ]
    return "\n".join(lines) + "\n"


def memory_option(resources: ResourcesConfig, options: Sequence[str]) -> list[str]:
    """Returns the option that asks for main memory on each machine; none where the user's options ask themselves."""
    own = any(option.startswith("--mem") for option in options)
    return [] if own or resources.memory_gb is None else [f"--mem={resources.memory_gb}G"]


def check_array_options(options: Sequence[str], resources: ResourcesConfig) -> None:
    """Raises ConfigError for what is not an sbatch option, and for one that contradicts the ranks of a task."""
    check_options(options, "slurm")
    if resources.world_size > 1:
        refuse_reserved(options, "slurm", "resources.devices and resources.nodes")
