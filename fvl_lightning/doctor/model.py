"""Checks of the model: can it be built, and are its initial weights there?"""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning.core.errors import UserError
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.doctor.finding import ADVICE, Finding
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import count_parameters

PRETRAINED_FIELD = "pretrained"
"""The field of a component that names its files."""


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


def stage_with_demo_tokenizer(experiment: ExperimentConfig) -> Iterator[Stage]:
    """`shaped_stage` with another tokenizer where components name files: for their sizes; none where it fails too."""
    with TemporaryDirectory() as folder, suppress(UserError):
        save_tokenizer(Path(folder))
        slots = {
            slot: dataclasses.replace(choice, config=dataclasses.replace(choice.config, tokenizer=folder))
            for slot, choice in _held(experiment).items()
        }
        yield shaped_stage(dataclasses.replace(experiment, **slots))


def advice_for_missing(experiment: ExperimentConfig) -> str:
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
    folders = " and ".join(f"{slot}.{PRETRAINED_FIELD}" for slot in held)
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
        and vars(choice.config).get(PRETRAINED_FIELD)
    }


def check_model(stage: Stage) -> list[Finding]:
    """The model that was built."""
    counts = count_parameters(stage.model)
    whole, learn = (sum(count[name] for count in counts.values()) for name in ("parameters", "trainable"))
    modes = ", ".join(f"{name} {mode}" for name, mode in stage.trainable.items())
    return [Finding("model", "ok", f"{whole:,} parameters, {learn:,} learn: {modes}")]


def check_initial_weights(experiment: ExperimentConfig) -> list[Finding]:
    """The runs and folders of `init_from` are there, and finished; DataError otherwise."""
    for reference in experiment.init_from:
        if not is_model_folder(Path(reference)):
            RunFolder.open(reference).check_finished()
    if experiment.init_from:
        return [Finding("init_from", "ok", f"starts from {', '.join(experiment.init_from)}")]
    choices = {slot: getattr(experiment, slot) for slot in COMPONENTS}
    fresh = [
        slot for slot, choice in choices.items() if choice is not None and not vars(choice.config).get(PRETRAINED_FIELD)
    ]
    said = f"starts from no earlier run{'; from random values: ' if fresh else ''}{', '.join(fresh)}"
    if experiment.stage is not None and experiment.stage.name == "finetune" and fresh:
        return [Finding("init_from", "warning", said, "name the run that has pretrained them in init_from")]
    return [Finding("init_from", "ok", said)]
