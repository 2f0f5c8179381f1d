"""What `fvl doctor` asks of an experiment, but for its data: start, schedule, memory, room, tracking, one batch."""

import math
import shutil
import time
from pathlib import Path
from tempfile import TemporaryFile

from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import bytes_in_words, plural
from fvl_lightning.doctor.finding import Finding, skipped
from fvl_lightning.doctor.model import unquantized
from fvl_lightning.profiling.memory import MemoryEstimate, checkpoint_bytes
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.store import open_store

MEMORY_HEADROOM = 0.9
"""Of a device's memory: what the estimate leaves out takes the rest."""
CHECKPOINTS = 3
"""There are two, and a third while it is written."""


def check_schedule(experiment: ExperimentConfig, samples: int | None, tokens: int | None) -> list[Finding]:
    """How batches, steps and epochs go together.

    Args:
        samples: of the split train; None where it is not known.
        tokens: of a row, the mean of what was looked at; None where nothing was.
    """
    trainer, warmup = experiment.trainer, experiment.optimizer.warmup_steps
    batch = trainer.batch_size * trainer.world_size * trainer.accumulate
    packed = experiment.data.config.layout == "packed"
    said = f"{trainer.batch_size} x {plural(trainer.devices, 'device')} x {plural(trainer.nodes, 'node')}"
    said += f" x {trainer.accumulate} accumulated = {plural(batch, 'row' if packed else 'sample')} a step"
    if tokens is not None:
        row = experiment.data.config.sequence_length if packed else tokens
        said += f", about {batch * row:,} tokens"
    if samples is not None and not packed:
        epoch = samples / batch
        said += (
            f"; {math.ceil(epoch):,} steps an epoch, {trainer.max_steps / epoch:.3g} epochs in {trainer.max_steps:,}"
        )
    findings = [Finding("batches", "ok", said)]
    if samples is not None and samples < batch:
        advice = "lower trainer.batch_size, devices or accumulate, or bring more data"
        findings.append(Finding("batches", "warning", f"a step takes more than all {samples:,} samples", advice))
    said = f"{warmup:,} of {plural(trainer.max_steps, 'step')}"
    if warmup >= trainer.max_steps:
        advice = "lower optimizer.warmup_steps (3 % of the steps are customary) or raise trainer.max_steps"
        return [*findings, Finding("warm-up", "failed", f"{said}: the learning rate never comes down", advice)]
    return [*findings, Finding("warm-up", "ok", said)]


def check_memory(
    experiment: ExperimentConfig, estimate: MemoryEstimate, device_bytes: int | None, longest: int | None = None
) -> list[Finding]:
    """Whether a step on the longest rows there may be fits into a device.

    Args:
        device_bytes: its memory; None where that is not known.
        longest: tokens of the longest row that was looked at; None where none was.
    """
    trainer, tokens = experiment.trainer, estimate.shape.tokens
    packed = experiment.data.config.layout == "packed"
    shorter = longest is not None and longest < tokens and not packed
    said = f"{bytes_in_words(estimate.peak)} on each rank for rows of {tokens:,} tokens"
    said += " each, as they are packed" if packed else ", the longest that data.sequence_length lets through"
    said += f" (of those looked at the longest has {longest:,})" if shorter else ""
    if device_bytes is None:
        return [Finding("memory", "ok", f"{said}; --memory-gb compares it with a device's")]
    said += f", the device has {bytes_in_words(device_bytes)}"
    if estimate.peak <= MEMORY_HEADROOM * device_bytes:
        return [Finding("memory", "ok", said)]
    ways = []
    if "language_model" not in trainer.checkpoint_activations:
        ways.append("trainer.checkpoint_activations=[encoder,language_model]")
    if not trainer.sharded and unquantized(experiment) is experiment:  # 4 bits cannot be sharded
        ways.append("trainer.strategy=fsdp")
    if trainer.precision == "32-true":
        ways.append("trainer.precision=bf16-mixed")
    if trainer.batch_size > 1:
        ways.append("a smaller trainer.batch_size with more trainer.accumulate")
    if shorter:
        ways.append("a smaller data.sequence_length, where no row needs so much")
    advice = "; ".join(ways) or "more devices under fsdp, or LoRA"
    return [Finding("memory", "failed" if estimate.peak > device_bytes else "warning", said, advice)]


def check_disk_space(experiment: ExperimentConfig, stage: Stage | None) -> list[Finding]:
    """The folder of runs can be written to, and has room for three checkpoints; None where their size is not known."""
    folder = Path(experiment.output).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        advice = "name another folder in `output`, or make this one writable"
        return [Finding("run folder", "failed", f"{there} cannot be written to ({error.strerror})", advice)]
    free = shutil.disk_usage(there).free
    if stage is None:
        return [skipped("run folder", f"the model, to compare {bytes_in_words(free)} free in {there} with")]
    one = checkpoint_bytes(stage.experiment, stage.model)
    said = f"{bytes_in_words(one)} a checkpoint, {bytes_in_words(free)} free in {there}"
    if free < CHECKPOINTS * one:
        advice = f"make room for {CHECKPOINTS} of them, or name another folder in `output`"
        return [Finding("run folder", "failed", said, advice)]
    return [Finding("run folder", "ok", said)]


def check_tracking(experiment: ExperimentConfig) -> list[Finding]:
    """The MLflow store can be opened, made if it is an sqlite file that is not there; DataError otherwise."""
    if not experiment.tracking.enabled:
        return [Finding("tracking", "ok", "off (tracking.enabled=false)")]
    began = time.monotonic()
    open_store(experiment.tracking.uri, experiment.tracking.experiment)
    seconds = time.monotonic() - began
    return [Finding("tracking", "ok", f"{experiment.tracking.uri} answers in {seconds:.1f} s")]


