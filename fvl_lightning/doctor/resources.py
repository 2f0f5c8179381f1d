"""Checks of the schedule, device memory, disk space and the tracking store."""

import math
import shutil
import time
from pathlib import Path
from tempfile import TemporaryFile

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import bytes_in_words, plural
from fvl_lightning.doctor.finding import Finding, skipped
from fvl_lightning.doctor.model import unquantized
from fvl_lightning.profiling.memory import MemoryEstimate, checkpoint_bytes
from fvl_lightning.runs.extensions import OpenEvaluation, opened_evaluation
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.store import open_store
from fvl_lightning.training.distributed.process_group import Ranks
from fvl_lightning.training.lora import lora_components

MEMORY_HEADROOM = 0.9
"""Fraction of a device's memory that the estimate may fill; what the estimate leaves out takes the rest."""
CHECKPOINTS = 3
"""Checkpoints on disk at once: a run keeps two and writes a third."""


def check_schedule(experiment: ExperimentConfig, samples: int | None, tokens: int | None) -> list[Finding]:
    """Checks that batch size, number of steps, epochs and warm-up fit together.

    Args:
        samples: number of training samples; None where it is not known.
        tokens: mean number of tokens in the inspected rows; None where none was inspected.
    """
    trainer, warmup = experiment.trainer, experiment.optimizer.warmup_steps
    batch = trainer.samples_per_step
    packed = experiment.data.config.layout == "packed"
    message = trainer.batch_in_words("row" if packed else "sample")
    if tokens is not None:
        row = experiment.data.config.sequence_length if packed else tokens
        message += f", about {batch * row:,} tokens"
    if samples is not None and not packed:
        epoch = samples / batch
        message += (
            f"; {math.ceil(epoch):,} steps an epoch, {trainer.max_steps / epoch:.3g} epochs in {trainer.max_steps:,}"
        )
    findings = [Finding("batches", "ok", message)]
    if samples is not None and samples < batch:
        advice = "lower trainer.batch_size, devices or accumulate, or bring more data"
        findings.append(Finding("batches", "warning", f"one step needs more than all {samples:,} samples", advice))
    message = f"{warmup:,} of {plural(trainer.max_steps, 'step')}"
    if warmup >= trainer.max_steps:
        advice = "lower optimizer.warmup_steps (3 % of the steps are customary) or raise trainer.max_steps"
        return [*findings, Finding("warm-up", "failed", f"{message}: the learning rate never decays", advice)]
    return [*findings, Finding("warm-up", "ok", message)]


def check_evaluation(experiment: ExperimentConfig, open_evaluation: OpenEvaluation | None) -> list[Finding]:
    """Opens the tasks of `trainer.evaluate`, and counts the answers of all evaluations.

    Args:
        experiment: the experiment.
        open_evaluation: see run_training; None checks nothing.

    Raises:
        ConfigError, DataError: those of opened_evaluation.
    """
    evaluate, steps = experiment.trainer.evaluate, experiment.trainer.max_steps
    if open_evaluation is None or evaluate is None:
        return []
    evaluation = opened_evaluation(experiment, open_evaluation, Ranks())
    assert evaluation is not None
    asked = " and ".join(f"{count:,} of {task}" for task, count in evaluation.counts.items())
    times = math.ceil(steps / evaluate.every)
    answers = times * sum(evaluation.counts.values())
    message = f"{plural(times, 'evaluation')}, each with the questions {asked}: {answers:,} answers are generated"
    return [Finding("evaluation", "ok", message)]


def check_memory(
    experiment: ExperimentConfig, estimate: MemoryEstimate, device_bytes: int | None, longest: int | None = None
) -> list[Finding]:
    """Checks whether a step on the longest possible rows fits into a device.

    Args:
        estimate: peak memory of a rank for such a step.
        device_bytes: memory of the device; None where it is not known.
        longest: tokens of the longest inspected row; None where none was inspected.
    """
    tokens = estimate.shape.tokens
    packed = experiment.data.config.layout == "packed"
    shorter = longest is not None and longest < tokens and not packed
    message = f"{bytes_in_words(estimate.peak)} on each rank for rows of {tokens:,} tokens"
    message += " each, as they are packed" if packed else ", the longest that data.sequence_length lets through"
    message += f" (the longest inspected row has {longest:,})" if shorter else ""
    if device_bytes is None:
        return [Finding("memory", "ok", f"{message}; --memory-gb compares it with a device's")]
    message += f", the device has {bytes_in_words(device_bytes)}"
    if estimate.peak <= MEMORY_HEADROOM * device_bytes:
        return [Finding("memory", "ok", message)]
    ways = ways_to_save_memory(experiment)
    if shorter:
        ways.append("a smaller data.sequence_length, where no row needs so much")
    advice = "; ".join(ways) or "more devices under fsdp, or LoRA"
    return [Finding("memory", "failed" if estimate.peak > device_bytes else "warning", message, advice)]


def check_recomputation(peak: int, device_bytes: int) -> list[Finding]:
    """Says so if a step fits into a device without `trainer.checkpoint_activations`.

    Args:
        peak: peak memory of a rank for a step that recomputes nothing.
        device_bytes: memory of the device.
    """
    if peak > MEMORY_HEADROOM * device_bytes:
        return []
    message = f"{bytes_in_words(peak)} without trainer.checkpoint_activations, which computes blocks twice: not needed"
    return [Finding("recomputation", "ok", message)]


def ways_to_save_memory(experiment: ExperimentConfig) -> list[str]:
    """Returns the overrides that lower the memory of a step and that the experiment does not have yet."""
    trainer, ways = experiment.trainer, []
    if "language_model" not in trainer.checkpoint_activations:
        ways.append('"trainer.checkpoint_activations=[encoder,language_model]"')
    if not trainer.sharded and unquantized(experiment) is experiment:  # 4 bits cannot be sharded
        ways.append("trainer.strategy=fsdp")
    if trainer.precision == "32-true":
        ways.append("trainer.precision=bf16-mixed")
    if trainer.batch_size > 1:
        ways.append("a smaller trainer.batch_size with more trainer.accumulate")
    return ways


def check_disk_space(experiment: ExperimentConfig, stage: Stage | None) -> list[Finding]:
    """Checks that the output folder is writable and has room for three checkpoints, or for two and the model.

    Args:
        stage: gives the sizes; None where the model could not be built.
    """
    try:
        there, free = free_space(Path(experiment.output))
    except DataError as error:
        advice = "name another folder in `output`, or make this one writable"
        return [Finding("run folder", "failed", str(error), advice)]
    if stage is None:
        return [skipped("run folder", f"the model, to compare {bytes_in_words(free)} free in {there} with")]
    size, model = checkpoint_bytes(stage.experiment, stage.model), model_bytes(stage)
    best = model if stage.experiment.trainer.keep_best else 0
    needed = (CHECKPOINTS - 1) * size + best + max(size, model)
    sizes = f"{bytes_in_words(size)} a checkpoint, {bytes_in_words(model)} the model"
    message = f"{sizes}, {bytes_in_words(free)} free in {there}"
    if free < needed:
        advice = (
            f"make room for {CHECKPOINTS} checkpoints, and for the model beside two of them "
            f"({bytes_in_words(needed)}), or name another folder in `output`"
        )
        return [Finding("run folder", "failed", message, advice)]
    return [Finding("run folder", "ok", message)]


def free_space(folder: Path) -> tuple[Path, int]:
    """Returns the first of a folder and its parents that exists, and the free bytes there; DataError if read-only."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        raise DataError(f"{there} cannot be written to ({error.strerror})") from None
    return there, shutil.disk_usage(there).free


def bytes_left_by_run(stage: Stage) -> int:
    """Returns the bytes that a finished run keeps: one or two checkpoints, perhaps the best weights, and its model."""
    trainer = stage.experiment.trainer
    kept = min(CHECKPOINTS - 1, math.ceil(trainer.max_steps / trainer.checkpoint_every))
    model = model_bytes(stage)
    best = model if trainer.keep_best else 0
    return kept * checkpoint_bytes(stage.experiment, stage.model) + best + model


def model_bytes(stage: Stage) -> int:
    """Returns the bytes of the model that a run saves: with LoRA the adapter, and what is trained in full beside it."""
    parameters = list(stage.model.parameters())  # tied ones are saved once
    if lora_components(stage.trainable):
        return sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
    names = stage.model.state_dict().keys()
    buffers = [buffer for name, buffer in stage.model.named_buffers() if name in names]
    return sum(tensor.nbytes for tensor in (*parameters, *buffers))


def bytes_while_training(stage: Stage) -> int:
    """Returns the bytes that a running training needs besides: a checkpoint is whole before the oldest is removed."""
    return checkpoint_bytes(stage.experiment, stage.model)


def check_tracking(experiment: ExperimentConfig) -> list[Finding]:
    """Checks that the MLflow store can be opened, and creates a missing sqlite file; DataError otherwise."""
    if not experiment.tracked:
        return [Finding("tracking", "ok", "off (tracking.enabled=false, or trainer.loggers without mlflow)")]
    began = time.monotonic()
    open_store(experiment.tracking.uri, experiment.tracking.experiment)
    seconds = time.monotonic() - began
    return [Finding("tracking", "ok", f"{experiment.tracking.uri} answers in {seconds:.1f} s")]


