"""Scores a run, a model folder or an encoder on a split."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from datamodules.base import BatchData
from datamodules.encoding.question_form import QuestionForm
from datamodules.encoding.questions import Question
from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import as_plain, check_config, load_config
from fvl_lightning.core.device import compute_device
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.answers import (
    Answer,
    Images,
    Scoring,
    answer_questions,
    asked_questions,
    prior_answers,
    score_answers,
)
from fvl_lightning.evaluation.encoder_scores import encoder_scores
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.modeling.build import BuiltModel, LoadedModel, load_model
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import answering_model, check_model
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.training.load_weights import load_components

logger = logging.getLogger(__name__)


@dataclass
class ControlScores:
    """Scores of answers that the images cannot have helped."""

    image_zeroed: KindScores
    """Answers without an image: all its pixels are zero."""
    image_shuffled: KindScores
    """Answers to the image of another sample."""
    prior: KindScores
    """The most frequent answer of each kind in training, given without looking."""


def open_model(
    run: RunFolder, level: str | None = None, split: str | None = None, accelerator: str | None = None
) -> tuple[LoadedModel, BatchData]:
    """Opens the model of a finished run on its device, and its data connected to it.

    Args:
        run: the run.
        level: see open_data.
        split: see open_data.
        accelerator: see scoring_device.

    Raises:
        ConfigError: the data set has no levels, or none of that name; or there is no such device.
    """
    experiment = run.experiment()
    device = scoring_device(experiment, accelerator)
    check_model(run)
    built = load_model(run.model)
    built.model.to(device)
    return built, open_data(run, built, level, split)


def open_data(run: RunFolder, built: BuiltModel, level: str | None = None, split: str | None = None) -> BatchData:
    """Returns the data of a run, connected to its model.

    Args:
        run: the run.
        built: its model.
        level: another level of its data set than the one it was trained on.
        split: the only split that the data must have; None for those of a training.

    Raises:
        ConfigError: the data set has no levels, or none of that name.
    """
    return connected_data(run.experiment(_at_level(run.config, level, str(run.path))), built, split)


def connected_data(experiment: ExperimentConfig, built: BuiltModel, split: str | None = None) -> BatchData:
    """Returns the data of an experiment, connected to a model; `split` as in open_data."""
    data = prepare_data(experiment, split)
    data.connect(data_context(built.model, built.tokenizer, experiment))
    return data


def experiment_at_level(experiment: ExperimentConfig, level: str) -> ExperimentConfig:
    """Returns an experiment with the test split of another level of its data."""
    assert experiment.data is not None
    return replace(experiment, data=replace(experiment.data, config=experiment.data.config.for_test_at(level)))


def scoring_device(experiment: ExperimentConfig, accelerator: str | None = None) -> torch.device:
    """Returns the device on which the model of an experiment is scored.

    Args:
        experiment: that of the run.
        accelerator: None for the accelerator of the experiment; where this machine lacks it, auto is taken.

    Raises:
        ConfigError: this machine has no such device.
    """
    if accelerator is not None:
        return compute_device(accelerator)
    try:
        return compute_device(experiment.trainer.accelerator)
    except ConfigError:
        device = compute_device()
        trained = experiment.trainer.accelerator
        logger.warning("trainer.accelerator: trained on %s, which is not here; scored on %s", trained, device.type)
        return device


def open_with_data(
    reference: str,
    file: Path | None,
    level: str | None = None,
    split: str | None = None,
    accelerator: str | None = None,
) -> tuple[LoadedModel, BatchData]:
    """Opens any model, and the data of an experiment file connected to it.

    Images are fitted, and questions have the form, as in the model's own training. The data needs only
    `split`, or without it the splits of a training.
    """
    if file is None:
        raise ConfigError(f"--data: {reference} is a model without data; name an experiment file whose data it answers")
    config = as_plain(load_config(ExperimentConfig, file))
    if config["data"] is None:
        raise ConfigError(f"--data: {file} names no data")
    loaded = answering_model(reference, compute_device(accelerator or "auto"))
    images = loaded.processor.image_processor
    config["data"] |= {"image_fit": images.fit, "scaled_decode": images.scaled_decode, "tiles": images.tiles}
    experiment = check_config(ExperimentConfig, _at_level(config, level, str(file)))
    data = prepare_data(experiment, split)
    data.asking = QuestionForm(**loaded.processor.asking)
    data.connect(data_context(loaded.model, loaded.tokenizer, experiment))
    return loaded, data


def levels_of(name: str) -> tuple[str, ...]:
    """Returns the levels of the data component of that name; see BatchData.levels."""
    component = registry.component("data", name)
    return component.levels if issubclass(component, BatchData) else ()


def _at_level(config: dict[str, Any], level: str | None, where: str) -> dict[str, Any]:
    if level is not None:
        name = config["data"]["name"]
        if not levels_of(name):
            raise ConfigError(f"--level: the data of {where} is {name}, which has no levels")
        config["data"]["level"] = level
    return config


def score(scoring: Scoring) -> tuple[KindScores, list[Answer]]:
    """Answers the questions of a split and scores the answers; the result is equal on all ranks."""
    answers = answer_questions(scoring)
    return score_answers(answers, scoring.metric), answers


def score_control(scoring: Scoring, name: str) -> KindScores | None:
    """Returns the score of one control, a field of ControlScores, for the same questions.

    None for a prior without questions in training, and for shuffled images where only one is asked about.
    """
    asked = asked_questions(scoring)
    if name == "prior":
        seen = training_questions(scoring.data)
        return score_answers(prior_answers(asked, seen), scoring.metric) if seen else None
    images: Images = "zeroed" if name == "image_zeroed" else "shuffled"
    if images == "shuffled" and len({question.index for question in asked}) < 2:
        return None
    return score_answers(answer_questions(scoring, images), scoring.metric)


def score_controls(scoring: Scoring) -> ControlScores:
    """Returns the scores of all controls; they are NaN where there is nothing to score (see score_control)."""
    found = {name: score_control(scoring, name) for name in ("image_zeroed", "image_shuffled", "prior")}
    return ControlScores(**{name: scores or score_answers([], scoring.metric) for name, scores in found.items()})


def training_questions(data: BatchData) -> list[Question]:
    """Returns the questions of the split train; none where the data has no such split."""
    try:
        return data.questions("train")
    except (DataError, ConfigError):
        return []


def score_encoder(
    run: RunFolder, split: str = "test", accelerator: str | None = None, precision: str = "32-true"
) -> dict[str, float]:
    """Scores what the encoder of an encoder_pretrain run writes; see `encoder_scores` and `scoring_device`."""
    experiment = run.experiment()
    device = scoring_device(experiment, accelerator)
    data = prepare_data(experiment)
    stage = build_stage(experiment)
    check_model(run)
    load_components(stage.model, run.model)
    stage.model.to(device)
    data.connect(data_context(stage.model, stage.tokenizer, experiment))
    return encoder_scores(stage.model.encoder, stage.tokenizer, data, split, precision)
