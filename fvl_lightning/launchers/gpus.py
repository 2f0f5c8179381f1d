"""The GPUs of this machine, handed out so that no two tasks have the same one."""

import os
from collections.abc import Sequence

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import plural
from fvl_lightning.launchers.base import Task
from fvl_lightning.launchers.resources import ResourcesConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that limits a process to some GPUs, named by their numbers or UUIDs."""


def visible_gpus() -> list[str]:
    """Returns the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch  # which the command line imports late

    count = torch.cuda.device_count()
    named = os.environ.get(VISIBLE)
    names = map(str, range(count)) if named is None else map(str.strip, named.split(","))
    return list(names)[:count]


class GpuPool:
    """Hands out GPUs to tasks; a task has its own until it gives them back.

    Where there is no GPU, tasks get none: they compute on the CPU, or say themselves what they lack.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._free, self._count = list(names), len(names)
        self._taken: dict[str, list[str]] = {}

    def check(self, resources: ResourcesConfig, gpus: bool) -> None:
        """Raises ConfigError where a task needs more GPUs than there are; see Task for what it is described by."""
        if (needed := self._needed(resources, gpus)) > self._count:
            raise ConfigError(
                f"resources.devices: every cell needs {needed} GPUs, and this machine has {self._count} ({VISIBLE} can "
                "hide some); choose fewer, or launcher: slurm"
            )

    def take(self, task: Task) -> dict[str, str] | None:
        """Returns the environment that gives GPUs to a task; None where too few are free now."""
        needed = self._needed(task.resources, task.gpus)
        if needed > len(self._free):
            return None
        if not needed:
            return {}
        self._taken[task.name], self._free = self._free[:needed], self._free[needed:]
        return {VISIBLE: ",".join(self._taken[task.name])}

    def give_back(self, task: Task) -> None:
        """Frees the GPUs of a task that has ended."""
        self._free += self._taken.pop(task.name, [])

    def at_a_time(self, jobs: int, task: Task) -> int:
        """Returns how many of `jobs` tasks such as this one can run at the same time."""
        needed = self._needed(task.resources, task.gpus)
        return min(jobs, self._count // needed) if needed else jobs

    def __str__(self) -> str:
        return plural(self._count, "GPU")

    def _needed(self, resources: ResourcesConfig, gpus: bool) -> int:
        return resources.devices if gpus and self._count else 0
