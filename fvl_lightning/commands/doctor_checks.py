"""What `fvl doctor` asks of an experiment, but for its data: start, schedule, memory, room, tracking, one batch."""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import torch

from fvl_lightning.commands.shards_options import bytes_in_words, plural
from fvl_lightning.commands.train import build_stage, data_context, prepare_data
from fvl_lightning.core.config import load_config
from fvl_lightning.core.errors import UserError, first_line
from fvl_lightning.core.experiment import ExperimentConfig, TrainerConfig
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.store import open_store
from fvl_lightning.training.components import count_parameters
from fvl_lightning.training.memory import MemoryEstimate, checkpoint_bytes
from fvl_lightning.training.optimizer import build_optimizer
from fvl_lightning.training.run_folder import RunFolder, is_model_folder

Verdict = Literal["ok", "warning", "failed"]
SMALL = 50_000_000
"""Parameters of a model that takes a step on a login node in seconds."""
TIGHT = 0.9
"""Of a device's memory: what the estimate leaves out takes the rest."""
CHECKPOINTS = 3
"""There are two, and a third while it is written."""
SCALE = "scale"
"""The variant by whose choice `tiny` presets shrink."""
KEPT = ("plugins", "fusion", "projector", "normalize", "trainable", "optimizer")
"""Keys of the command line that also hold for `scale=tiny`."""
FEW = {"train_images": 8, "validation_images": 4, "test_images": 4, "unseen_images": 4}
"""Of the demo set, where only one batch of it is wanted."""


@dataclass(frozen=True)
class Finding:
    """A line of the table: what was found, and what to do about it where something is wrong."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""


def asked(check: str, question: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check has found; an error that ends it is a finding too, and no end of the checks after it."""
    findings: list[Finding] = []
    try:
        for finding in question():
            findings.append(finding)
    except UserError as error:  # its sentence says what to do
        findings.append(Finding(check, "failed", str(error)))
    except Exception as error:  # a component's own mistake, say
        said = f"{type(error).__name__}: {first_line(error)}"
        findings.append(Finding(check, "failed", said, "the training would end there too; its traceback has the place"))
    return findings


def unquantized(experiment: ExperimentConfig) -> ExperimentConfig:
    """The experiment without 4 bits, which this machine need not have the GPU for."""
    if experiment.lora is None or experiment.lora.quantization is None:
        return experiment
    return dataclasses.replace(experiment, lora=dataclasses.replace(experiment.lora, quantization=None))


def shaped_stage(experiment: ExperimentConfig) -> Stage:
    """The experiment's stage on the meta device, adapters in place."""
    stage = build_stage(unquantized(experiment), device="meta")
    stage.adapt(Path())
    return stage


def model(stage: Stage) -> list[Finding]:
    """The model that was built."""
    counts = count_parameters(stage.model)
    whole, learn = (sum(count[name] for count in counts.values()) for name in ("parameters", "trainable"))
    modes = ", ".join(f"{name} {mode}" for name, mode in stage.trainable.items())
    return [Finding("model", "ok", f"{whole:,} parameters, {learn:,} learn: {modes}")]


def start(experiment: ExperimentConfig) -> list[Finding]:
    """The runs and folders of `init_from` are there, and finished; DataError otherwise."""
    for reference in experiment.init_from:
        if not is_model_folder(Path(reference)):
            RunFolder.open(reference).check_finished()
    said = f"starts from {', '.join(experiment.init_from)}" if experiment.init_from else "starts from no earlier run"
    return [Finding("init_from", "ok", said)]


def schedule(experiment: ExperimentConfig, samples: int | None, tokens: int | None) -> list[Finding]:
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


def memory(experiment: ExperimentConfig, estimate: MemoryEstimate, device_bytes: int | None) -> list[Finding]:
    """Whether a step on the longest rows fits into the memory of a device; None where that is not known."""
    trainer, said = experiment.trainer, f"{bytes_in_words(estimate.peak)} on each rank"
    if device_bytes is None:
        return [Finding("memory", "ok", f"{said}; --memory-gb compares it with a device's")]
    said += f", the device has {bytes_in_words(device_bytes)}"
    if estimate.peak <= TIGHT * device_bytes:
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
    advice = "; ".join(ways) or "more devices under fsdp, or LoRA"
    return [Finding("memory", "failed" if estimate.peak > device_bytes else "warning", said, advice)]


def room(experiment: ExperimentConfig, stage: Stage) -> list[Finding]:
    """The folder of runs can be written to, and has room for three checkpoints."""
    folder = Path(experiment.output).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with TemporaryFile(dir=there) as file:
            file.write(b"0")
    except OSError as error:
        advice = "name another folder in `output`, or make this one writable"
        return [Finding("run folder", "failed", f"{there} cannot be written to ({error.strerror})", advice)]
    one, free = checkpoint_bytes(stage.experiment, stage.model), shutil.disk_usage(there).free
    said = f"{bytes_in_words(one)} a checkpoint, {bytes_in_words(free)} free in {there}"
    if free < CHECKPOINTS * one:
        advice = f"make room for {CHECKPOINTS} of them, or name another folder in `output`"
        return [Finding("run folder", "failed", said, advice)]
    return [Finding("run folder", "ok", said)]


def tracking(experiment: ExperimentConfig) -> list[Finding]:
    """The MLflow store can be opened, made if it is an sqlite file that is not there; DataError otherwise."""
    if not experiment.tracking.enabled:
        return [Finding("tracking", "ok", "off (tracking.enabled=false)")]
    began = time.monotonic()
    open_store(experiment.tracking.uri, experiment.tracking.experiment)
    seconds = time.monotonic() - began
    return [Finding("tracking", "ok", f"{experiment.tracking.uri} answers in {seconds:.1f} s")]


def batch(path: Path, words: Sequence[str], experiment: ExperimentConfig, stage: Stage) -> list[Finding]:
    """Forward pass, backward pass and update of one batch: of the model itself, or of its preset's `scale=tiny`."""
    parameters = sum(count["parameters"] for count in count_parameters(stage.model).values())
    named = "the model itself"
    if parameters > SMALL:
        if experiment.chosen.get(SCALE) is None:
            advice = "try `fvl train` for a few steps, with a smaller language_model"
            said = f"not tried: {parameters:,} parameters are too many here, and no `{SCALE}=tiny` is offered"
            return [Finding("one batch", "warning", said, advice)]
        # Sizes and places of the real thing would not fit the small one.
        kept = [word for word in words if word.split("=")[0].split(".")[0] in (*KEPT, *experiment.chosen)]
        kept = [word for word in kept if not word.startswith(f"{SCALE}=")]
        experiment, named = load_config(ExperimentConfig, path, [*kept, f"{SCALE}=tiny"]), f"{SCALE}=tiny"
    began = time.monotonic()
    loss, norm = _step(unquantized(experiment))
    said = f"{named}: loss {loss:.4g}, gradient norm {norm:.4g}, {time.monotonic() - began:.1f} s"
    if math.isfinite(loss) and math.isfinite(norm):
        return [Finding("one batch", "ok", said)]
    return [
        Finding("one batch", "failed", said, "look at the samples with `fvl shards preview`, and at the components")
    ]


def _step(experiment: ExperimentConfig) -> tuple[float, float]:
    """Loss and gradient norm of two samples, with an update after them."""
    choice = experiment.data
    few = {name: count for name, count in FEW.items() if name in vars(choice.config)}
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(choice, config=dataclasses.replace(choice.config, **few, workers=0)),
        trainer=TrainerConfig(batch_size=2),
    )
    data: Any = prepare_data(experiment)
    stage = build_stage(experiment)
    stage.adapt(Path())
    data.connect(data_context(stage.model, stage.tokenizer, experiment))
    stage.train()
    loss, _ = stage.compute(next(iter(data.train_dataloader())))
    loss.mean.backward()
    optimizer = build_optimizer(stage.model, experiment.optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf"))
    optimizer.step()
    return float(loss.mean.detach()), float(norm)
