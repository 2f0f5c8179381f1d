"""Checks that the largest arm fits into the memory of its device, before anything is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from datamodules.base import BatchData
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.estimates.costs import peak_memory
from fvl_lightning.comparison.estimates.rows import rows_of
from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import bytes_in_words
from fvl_lightning.doctor.resources import ways_to_save_memory
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.profiling.batch_shape import BatchShape
from fvl_lightning.profiling.devices import device_here
from fvl_lightning.stages.base import Stage

TRIVIAL = 0.25
"""Fraction of the memory below which a guess is enough."""
ACTIVATIONS = 0.01
"""Bytes of activations for a token or patch and a byte of parameters: thrice what the demo's model needs, and larger
models need less."""
PATCH = 4
"""Pixels per side of a patch."""


class Training(NamedTuple):
    """One training of a comparison."""

    arm: str
    experiment: ExperimentConfig
    stage: Stage
    """On the meta device."""

    @property
    def held(self) -> int:
        """Bytes of parameters, gradients and two moments of each trained parameter, on one device."""
        parameters = list(self.stage.model.parameters())
        return sum((4 if parameter.requires_grad else 1) * parameter.nbytes for parameter in parameters)

    @property
    def image_tokens(self) -> int:
        """Image tokens in a batch of the language model."""
        model = self.stage.model
        tokens = model.image_spec.tokens_per_image if isinstance(model, FlorenceVLForConditionalGeneration) else 0
        tiles = self.experiment.data.config.tiles
        return self.experiment.trainer.batch_size * tokens * (1 if tiles is None else tiles.most)

    def rough_bytes(self, shape: BatchShape) -> float:
        """Returns a generous guess of the bytes of a step, found at once: what is held, and activations by token."""
        patches = shape.images * (self.stage.model.encoder.image_size // PATCH) ** 2
        parameters = sum(parameter.nbytes for parameter in self.stage.model.parameters())
        return self.held + parameters * ACTIVATIONS * (shape.rows * shape.tokens + patches)


@dataclass(frozen=True)
class Room:
    """Memory that a rank of a cell has."""

    bytes: int
    sentence: str
    """Whose memory it is."""


def check_memory(
    config: ComparisonConfig,
    trainings: Sequence[Training],
    data_of: Callable[[ExperimentConfig], BatchData | None],
    memory: int | None = None,
) -> str:
    """Checks that a step of the largest arm fits into the memory of a device.

    Its rows are as long as the longest that was inspected: what does not fit with them cannot be trained.

    Args:
        config: the comparison.
        trainings: the stages of every arm, and that of the shared encoder.
        data_of: returns the data of an experiment; None where it is not there.
        memory: bytes of a device; None for those of this machine.

    Returns:
        The estimate and the memory.

    Raises:
        ConfigError: this machine lacks the device, or the memory does not suffice.
    """
    at_a_time = min(config.jobs, len({training.arm for training in trainings}) * len(config.seeds))
    if memory is None and config.launcher != "local":
        return f"launcher {config.launcher}: the memory of its devices is not known here (--memory-gb)"
    for training in trainings if memory is None else ():
        compute_device(training.experiment.trainer.accelerator)
    found: list[tuple[int, str]] = []
    for training in largest(trainings):
        experiment = training.experiment
        room = Room(memory, "a device has") if memory is not None else _room_here(experiment, at_a_time)
        if room is None:
            continue
        shape = rows_of(training.stage, data_of(experiment)).longest
        if training.rough_bytes(shape) < TRIVIAL * room.bytes:
            found.append((0, f"a step is small: {room.sentence} {bytes_in_words(room.bytes)}"))
            continue
        peak = peak_memory(training.stage, experiment, shape)
        if peak is None:
            continue
        message = (
            f"a step of {training.arm}, stage {experiment.name}, takes {bytes_in_words(peak)} for {shape.rows} rows of "
            f"{shape.tokens:,} tokens, and {room.sentence} {bytes_in_words(room.bytes)}"
        )
        if peak > room.bytes:
            ways = "; ".join(ways_to_save_memory(experiment)) or "more devices under fsdp, or LoRA"
            raise ConfigError(f"memory: {message}; try {ways}")
        found.append((peak, message))
    return max(found)[1] if found else "not estimated: a component reads values, which shapes lack"


def largest(trainings: Sequence[Training]) -> list[Training]:
    """Returns the trainings that hold most and that have most image tokens, one of each."""
    chosen = {id(one): one for one in (max(trainings, key=lambda one: one.held),)}
    most = max(trainings, key=lambda one: (one.image_tokens, one.held))
    return list((chosen | {id(most): most}).values())


def _room_here(experiment: ExperimentConfig, at_a_time: int) -> Room | None:
    """Returns the memory of this machine's device for a rank; cells on a CPU share the main memory."""
    device = device_here(experiment.trainer.accelerator)
    if device.memory is None:
        return None
    if not device.is_cpu:
        return Room(device.memory, f"{device.name} has")
    ranks = at_a_time * experiment.trainer.world_size
    share = f"of the free main memory each of {ranks} processes has" if ranks > 1 else "the free main memory is"
    return Room(device.memory // ranks, share)
