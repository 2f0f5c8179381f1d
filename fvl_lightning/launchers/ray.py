"""Launcher of tasks through Ray, on this machine or on a cluster whose machines share a file system."""

import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.launchers.base import POLL_SECONDS, Task, thread_limits
from fvl_lightning.launchers.ranks import ranks_command
from fvl_lightning.launchers.resources import ResourcesConfig
from fvl_lightning.training.fault_tolerance.process_exit import STARTED_BY
from fvl_lightning.training.fault_tolerance.signals import Preempted


@dataclass
class RayConfig:
    """Cluster of `launcher: ray`, and a cell's share of a GPU."""

    address: str = "local"
    """local: only this machine; auto: the cluster that this machine is part of; or the host:port of a cluster."""
    num_gpus: float = number(0.0, at_least=0)
    """GPUs for every cell of one device, in addition to its cores; 0.5 shares one GPU between two cells. A cell of
    several devices has a GPU for each, where the cluster has GPUs."""


logger = logging.getLogger(__name__)

OWN_CLUSTER = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
"""Arguments for a cluster that this process starts: no web server, and little shared memory, which cells do not use."""


class RayLauncher:
    """Runs each task as a Ray task with cores and GPUs of its own, at most `jobs` at a time.

    Ray runs a task on one machine, so that all ranks of a cell are together.
    """

    def __init__(self, jobs: int, config: RayConfig) -> None:
        self.jobs, self.config = jobs, config

    def run(self, tasks: Sequence[Task], watch: Callable[[], None]) -> None:
        """See launchers.base.Launcher. A task whose machine is lost is resumed by the next start."""
        ray = connect(self.config)
        try:
            asked = ray_resources(tasks, self.config, ray.cluster_resources().get("GPU", 0.0))
            remote = ray.remote(**asked, max_retries=0)(cell_process())
            self._run(ray, remote, list(tasks), watch)
        finally:
            ray.shutdown()

    def _run(self, ray: Any, remote: Any, waiting: list[Task], watch: Callable[[], None]) -> None:
        running: dict[Any, Task] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    task = waiting.pop(0)
                    task.prepare()
                    command = ranks_command(task.resources.devices, task.command)
                    limits = thread_limits(task.resources)
                    arguments = (command, os.path.abspath(task.log), os.getcwd(), limits, POLL_SECONDS)
                    running[remote.remote(*arguments)] = task
                ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
                for reference in ended:
                    task = running.pop(reference)
                    task.code = _exit_code(ray, reference, task)
                watch()
        except (KeyboardInterrupt, Preempted):
            for reference in running:
                ray.cancel(reference)
            for reference, task in running.items():
                task.code = _exit_code(ray, reference, task)
            raise


def ray_resources(tasks: Sequence[Task], config: RayConfig, present: float) -> dict[str, float]:
    """Returns the resources of every Ray task: cores, GPUs, and main memory in bytes where it is configured.

    Args:
        tasks: all of them have the same resources.
        config: the share of a GPU for a task of one device.
        present: the GPUs of the cluster.

    Raises:
        ConfigError: the cluster has fewer GPUs than a task needs.
    """
    resources = tasks[0].resources if tasks else ResourcesConfig()
    several = resources.devices > 1
    on_gpus = several and present > 0 and any(task.gpus for task in tasks)
    wanted = float(resources.devices) if on_gpus else config.num_gpus
    if several and config.num_gpus not in (0.0, wanted):
        raise ConfigError(
            f"ray.num_gpus: {config.num_gpus:g} for every cell, and resources.devices gives it {resources.devices}; "
            "leave ray.num_gpus out"
        )
    if wanted > present:
        key = "resources.devices" if on_gpus else "ray.num_gpus"
        raise ConfigError(f"{key}: {wanted:g} for every cell, and the cluster has {present:g}")
    memory = {} if resources.memory_gb is None else {"memory": resources.memory_gb * 1e9}
    return {"num_cpus": resources.cores, "num_gpus": wanted, **memory}


def connect(config: RayConfig) -> Any:
    """Connects to the cluster and returns the module `ray`.

    Raises:
        ConfigError: the package is missing, or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its usage to its developers
    try:
        ray = import_module("ray")
    except ImportError:
        raise ConfigError(
            'launcher: ray needs its package, pip install "fvl-lightning[ray]", or use launcher: local'
        ) from None
    before = signal.getsignal(signal.SIGTERM)
    own = OWN_CLUSTER if config.address == "local" else {}
    try:
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"ray.address: no Ray cluster can be joined at '{config.address}' ({reason})") from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray's handler would end this process before the cells have saved
    return ray


def cell_process() -> Callable[..., int]:
    """Returns the function that a Ray task runs: it runs a command, writes its output to a file, returns its exit code.

    A nested function is sent by value, so Ray's workers import nothing of this package.
    """
    starter = STARTED_BY

    def run(command: list[str], log: str, folder: str, environment: Mapping[str, str], pause: float) -> int:
        import os
        import subprocess
        import time

        started = {starter: str(os.getpid())}  # a cell ends with Ray's worker
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
                env={**os.environ, **environment, **started},
            )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(pause)
        except KeyboardInterrupt:  # Ray's signal to a cancelled task
            process.terminate()  # not SIGINT, which a worker blocks for its child processes too
            process.wait()
        return process.returncode

    return run


def _exit_code(ray: Any, reference: Any, task: Task) -> int | None:
    """Returns the exit code; None for a task that was cancelled before it began, or that was lost."""
    try:
        return ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return None
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning("Ray lost %s (%s); the next start resumes it", task.name, lines[-1])
        return None


