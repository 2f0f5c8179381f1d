"""What `fvl doctor` asks of an experiment, but for its data: start, schedule, memory, room, tracking, one batch."""

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Literal

import torch

from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning.cli.shards.options import bytes_in_words, plural
from fvl_lightning.cli.train import build_stage, data_context, prepare_data
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import UserError, first_line
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig, TrainerConfig
from fvl_lightning.profiling.memory import MemoryEstimate, checkpoint_bytes
from fvl_lightning.runs.folder import RunFolder, is_model_folder
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.store import open_store
from fvl_lightning.training.components import count_parameters
from fvl_lightning.training.optimizer import build_optimizer

Verdict = Literal["ok", "warning", "failed", "skipped"]
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
ADVICE = {
    "configuration": "mend what it names: `fvl describe` has every field, `fvl show` what a file comes to; a plugin is "
    "a Python file or module that can be imported here",
    "model": "mend what it names (`fvl describe` has every field of a component)",
    "init_from": "name a run that has finished (`fvl train --resume` finishes one), or the folder of a model",
    "shards": "`fvl shards build` makes them where `data` says they are; `fvl shards check` names what is damaged",
    "supervision": "`fvl shards preview` shows rows as they are trained on",
    "tracking": "start the store, name another in tracking.uri, or train without (tracking.enabled=false)",
    "one batch": "the training would end there too: mend what it names",
}
"""By check, for an error that ends it."""
HELD = "pretrained"
"""The field of a component that names its files."""


@dataclass(frozen=True)
class Finding:
    """A line of the table: what was found, and what to do about it where something is wrong."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.advice or self.verdict not in ("warning", "failed"), f"{self.check}: what is there to do about it?"


def asked(check: str, question: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check has found; an error that ends it is a finding too, and no end of the checks after it."""
    findings: list[Finding] = []
    try:
        for finding in question():
            findings.append(finding)
    except UserError as error:
        findings.append(Finding(check, "failed", str(error), ADVICE[check]))
    except Exception as error:  # a component's own mistake, say
        said = f"{type(error).__name__}: {first_line(error)}"
        findings.append(Finding(check, "failed", said, "the training would end there too; its traceback has the place"))
    return findings


def skipped(check: str, needs: str) -> Finding:
    """A check that cannot be done after what has failed before it."""
    return Finding(check, "skipped", f"needs {needs}")


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


def stand_in(experiment: ExperimentConfig) -> Iterator[Stage]:
    """`shaped_stage` with another tokenizer where components name files: for their sizes; none where it fails too."""
    with TemporaryDirectory() as folder, suppress(UserError):
        save_tokenizer(Path(folder))
        slots = {
            slot: dataclasses.replace(choice, config=dataclasses.replace(choice.config, tokenizer=folder))
            for slot, choice in _held(experiment).items()
        }
        yield shaped_stage(dataclasses.replace(experiment, **slots))


def where_to_find(experiment: ExperimentConfig) -> str:
    """What to do where a model cannot be built, most often for want of its files."""
    held = {slot: choice.config for slot, choice in _held(experiment).items()}
    if not held:
        return ADVICE["model"]
    hub = [config for config in held.values() if not Path(config.pretrained).is_dir()]
    fetched = " and ".join(
        f"`hf download {config.pretrained}{f' --revision {config.revision}' if config.revision else ''}`"
        for config in hub
    )
    beforehand = f"{fetched} where the hub can be reached, under the HF_HOME of the training, or " if hub else ""
    folders = " and ".join(f"{slot}.{HELD}" for slot in held)
    return (
        f"{ADVICE['model']}; for files: {beforehand}folders with all of them in {folders} (a config.json in each is "
        "enough to tell the memory)"
    )


def _held(experiment: ExperimentConfig) -> dict[str, Any]:
    """The components with a tokenizer whose sizes stand in files, by slot."""
    choices = {"encoder": experiment.encoder, "language_model": experiment.language_model}
    return {
        slot: choice
        for slot, choice in choices.items()
        if choice is not None
        and {"tokenizer", "revision"} <= vars(choice.config).keys()
        and vars(choice.config).get(HELD)
    }


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
    if experiment.init_from:
        return [Finding("init_from", "ok", f"starts from {', '.join(experiment.init_from)}")]
    choices = {slot: getattr(experiment, slot) for slot in COMPONENTS}
    fresh = [slot for slot, choice in choices.items() if choice is not None and not vars(choice.config).get(HELD)]
    said = f"starts from no earlier run{'; from random values: ' if fresh else ''}{', '.join(fresh)}"
    if experiment.stage is not None and experiment.stage.name == "finetune" and fresh:
        return [Finding("init_from", "warning", said, "name the run that has pretrained them in init_from")]
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


def memory(
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
    if shorter:
        ways.append("a smaller data.sequence_length, where no row needs so much")
    advice = "; ".join(ways) or "more devices under fsdp, or LoRA"
    return [Finding("memory", "failed" if estimate.peak > device_bytes else "warning", said, advice)]


def room(experiment: ExperimentConfig, stage: Stage | None) -> list[Finding]:
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


def tracking(experiment: ExperimentConfig) -> list[Finding]:
    """The MLflow store can be opened, made if it is an sqlite file that is not there; DataError otherwise."""
    if not experiment.tracking.enabled:
        return [Finding("tracking", "ok", "off (tracking.enabled=false)")]
    began = time.monotonic()
    open_store(experiment.tracking.uri, experiment.tracking.experiment)
    seconds = time.monotonic() - began
    return [Finding("tracking", "ok", f"{experiment.tracking.uri} answers in {seconds:.1f} s")]


def batch(path: Path, words: Sequence[str], experiment: ExperimentConfig, stage: Stage | None) -> list[Finding]:
    """Forward pass, backward pass and update of one batch: of the model itself, or of its preset's `scale=tiny`."""
    parameters = sum(count["parameters"] for count in count_parameters(stage.model).values()) if stage else None
    if parameters is not None and parameters <= SMALL:
        return _tried("the model itself", experiment)
    if experiment.chosen.get(SCALE) is None:
        if parameters is None:
            return [skipped("one batch", "the model")]
        advice = "try `fvl train` for a few steps, with a smaller language_model"
        said = f"not tried: {parameters:,} parameters are too many here, and no `{SCALE}=tiny` is offered"
        return [Finding("one batch", "warning", said, advice)]
    # Sizes and places of the real thing would not fit the small one.
    kept = [word for word in words if word.split("=")[0].split(".")[0] in (*KEPT, *experiment.chosen)]
    kept = [word for word in kept if not word.startswith(f"{SCALE}=")]
    small = load_config(ExperimentConfig, path, [*kept, f"{SCALE}=tiny"])
    settings = small.data.config
    few = {name: count for name, count in FEW.items() if name in vars(settings)}
    small = dataclasses.replace(
        small, data=dataclasses.replace(small.data, config=dataclasses.replace(settings, **few))
    )
    return _tried(f"{SCALE}=tiny, on pictures drawn into {settings.root}" if few else f"{SCALE}=tiny", small)


def _tried(named: str, experiment: ExperimentConfig) -> list[Finding]:
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
    experiment = dataclasses.replace(
        experiment,
        data=dataclasses.replace(choice, config=dataclasses.replace(choice.config, workers=0)),
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
