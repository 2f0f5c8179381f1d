"""Checks that the model can be built and that its initial weights exist."""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from fvl_lightning.core.errors import UserError
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.doctor.finding import ADVICE, Finding
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.profiling.published_sizes import without_hub
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import count_parameters

PRETRAINED_FIELD = "pretrained"
"""Field of a component's configuration that names its weights: a hub id or a folder."""


def unquantized(experiment: ExperimentConfig) -> ExperimentConfig:
    """Returns the experiment without 4-bit quantization, which needs a GPU."""
    if experiment.lora is None or experiment.lora.quantization is None:
        return experiment
    return dataclasses.replace(experiment, lora=dataclasses.replace(experiment.lora, quantization=None))


def shaped_stage(experiment: ExperimentConfig) -> Stage:
    """Builds the experiment's stage with its adapters on the meta device."""
    stage = build_stage(unquantized(experiment), device="meta")
    stage.adapt(Path())
    return stage


def stage_with_stand_in_tokenizer(experiment: ExperimentConfig) -> Iterator[Stage]:
    """Yields `shaped_stage` with what the kit knows in place of the hub's files; nothing where it fails too.

    The shapes are right where the sizes of the models are known: of those that presets name, and of folders with a
    config.json.
    """
    with suppress(UserError), without_hub(experiment) as offline:
        yield shaped_stage(offline)


def advice_for_missing(experiment: ExperimentConfig) -> str:
    """Returns advice for a model that cannot be built, most often because its files are missing."""
    configs = {slot: choice.config for slot, choice in _choices_with_files(experiment).items()}
    if not configs:
        return ADVICE["model"]
    hub = [config for config in configs.values() if not Path(config.pretrained).is_dir()]
    fetched = " and ".join(
        f"`hf download {config.pretrained}{f' --revision {config.revision}' if config.revision else ''}`"
        for config in hub
    )
    beforehand = f"{fetched} where the hub can be reached, under the HF_HOME of the training, or " if hub else ""
    folders = " and ".join(f"{slot}.{PRETRAINED_FIELD}" for slot in configs)
    return (
        f"{ADVICE['model']}; for files: {beforehand}folders with all of them in {folders} (a config.json in each is "
        "enough for the memory estimate, and models that a preset names need none)"
    )


def _choices_with_files(experiment: ExperimentConfig) -> dict[str, Any]:
    """Returns, by slot, the components that read a tokenizer and their sizes from files."""
    choices = {"encoder": experiment.encoder, "language_model": experiment.language_model}
    return {
        slot: choice
        for slot, choice in choices.items()
        if choice is not None
        and {"tokenizer", "revision"} <= vars(choice.config).keys()
        and vars(choice.config).get(PRETRAINED_FIELD)
    }


def check_model(stage: Stage) -> list[Finding]:
    """Reports the size of the model that was built, and the attention of its language model."""
    counts = count_parameters(stage.model)
    total, trainable = (sum(count[name] for count in counts.values()) for name in ("parameters", "trainable"))
    modes = ", ".join(f"{name} {mode}" for name, mode in stage.trainable.items())
    model = Finding("model", "ok", f"{total:,} parameters, {trainable:,} learn: {modes}")
    chosen = stage.attention
    if chosen.problem is not None:
        return [model, Finding("attention", "failed", chosen.problem, "auto takes what this machine and model have")]
    return [model, Finding("attention", "ok", f"{chosen.name}: {chosen.reason}")]


def check_initial_weights(experiment: ExperimentConfig) -> list[Finding]:
    """Checks that the runs and folders of `init_from` exist and that the runs have finished; DataError otherwise."""
    for reference in experiment.init_from:
        if not is_model_folder(Path(reference)):
            RunFolder.open(reference).check_finished()
    if experiment.init_from:
        return [Finding("init_from", "ok", f"starts from {', '.join(experiment.init_from)}")]
    choices = {slot: getattr(experiment, slot) for slot in COMPONENTS}
    fresh = [
        slot for slot, choice in choices.items() if choice is not None and not vars(choice.config).get(PRETRAINED_FIELD)
    ]
    message = f"starts from no earlier run{'; from random values: ' if fresh else ''}{', '.join(fresh)}"
    if experiment.stage is not None and experiment.stage.name == "finetune" and fresh:
        return [Finding("init_from", "warning", message, "name the run that has pretrained them in init_from")]
    return [Finding("init_from", "ok", message)]
