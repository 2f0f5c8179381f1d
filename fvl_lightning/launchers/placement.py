"""Places a training on the devices that a task has: the same samples in every step, whatever their number."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig, TrainerConfig
from fvl_lightning.launchers.resources import ResourcesConfig


def placed(experiment: ExperimentConfig, resources: ResourcesConfig, where: str = "resources") -> ExperimentConfig:
    """Returns the experiment on all devices of `resources`, with as many samples in every step as before.

    First `accumulate` is divided by the additional devices, and then `batch_size`, which never grows. A model that is
    trained on one device (`single`) is copied to each of several (`ddp`).

    Args:
        experiment: a checked experiment.
        resources: the devices and threads of the task.
        where: the place of `resources`, for messages.

    Raises:
        ConfigError: the experiment asks for more devices, or its samples cannot be divided among the devices.
    """
    trainer = experiment.trainer
    if trainer.devices > resources.devices or trainer.nodes > resources.nodes:
        raise ConfigError(
            f"{where}: stage {experiment.name} asks for {trainer.devices} x {trainer.nodes} devices (trainer.devices x "
            f"trainer.nodes), and every cell has {resources.devices} x {resources.nodes}; write resources: {{devices: "
            f"{max(trainer.devices, resources.devices)}, nodes: {max(trainer.nodes, resources.nodes)}}}, or leave "
            "trainer.devices and trainer.nodes out of the stage"
        )
    changes: dict[str, Any] = {"threads": resources.threads}
    if trainer.world_size < resources.world_size:
        changes |= {"devices": resources.devices, "nodes": resources.nodes}
        changes["strategy"] = "ddp" if trainer.strategy == "single" else trainer.strategy
        changes["batch_size"], changes["accumulate"] = _divided(experiment, resources, where)
    return dataclasses.replace(experiment, trainer=dataclasses.replace(trainer, **changes))


def _divided(experiment: ExperimentConfig, resources: ResourcesConfig, where: str) -> tuple[int, int]:
    """Returns (batch_size, accumulate) with the samples of a step divided among all ranks."""
    trainer, ranks = experiment.trainer, resources.world_size
    for size in range(trainer.batch_size, 0, -1):
        if trainer.samples_per_step % (size * ranks) == 0:
            return size, trainer.samples_per_step // (size * ranks)
    raise ConfigError(
        f"{where}: the {trainer.samples_per_step} samples of a step of stage {experiment.name} "
        f"({trainer.batch_in_words()}) cannot be divided among {ranks} devices; choose another number of devices, or a "
        f"trainer.batch_size that is a multiple of {ranks}"
    )


def on_one_device(experiment: ExperimentConfig) -> ExperimentConfig:
    """Returns the experiment as one device trains it, with the same samples in every step and as many at a time."""
    trainer = experiment.trainer
    if trainer.world_size == 1:
        return experiment
    alone: dict[str, Any] = {"strategy": "single", "devices": 1, "nodes": 1, "cpu_offload": False, "checkpoint": "auto"}
    accumulate = trainer.accumulate * trainer.world_size
    return dataclasses.replace(
        experiment, trainer=dataclasses.replace(trainer, accumulate=accumulate, **alone)
    )


def without_placement(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plain experiment without the trainer's values that decide only where the same samples are computed.

    They have their defaults; `batch_size` is that of all devices together.
    """
    trainer = dict(stage.get("trainer") or {})
    if all(isinstance(trainer.get(key, 1), int) for key in ("batch_size", "devices", "nodes")):
        rows = trainer.get("batch_size", 1) * trainer.get("devices", 1) * trainer.get("nodes", 1)
        free = {field.name: field for field in dataclasses.fields(TrainerConfig)}
        for name in trainer.keys() & free.keys():
            if free[name].metadata.get("changes") == "placement":
                trainer[name] = rows if name == "batch_size" else _default(free[name])
    return {**stage, "trainer": trainer} if trainer else dict(stage)


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
