"""Scores a run, a model folder or an encoder on a split."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.base import BatchData
from datamodules.encoding.question_form import QuestionForm
from datamodules.encoding.questions import Question
from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import as_plain, check_config, load_config
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.answers import (
    Answer,
    Images,
    answer_questions,
    asked_questions,
    prior_answers,
    score_answers,
)
from fvl_lightning.evaluation.encoder_scores import encoder_scores
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.evaluation.metrics.names import DEFAULT_METRIC
from fvl_lightning.modeling.build import BuiltModel, LoadedModel, load_model
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import answering_model, check_model
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.training.load_weights import load_components


@dataclass
class ControlScores:
    """Scores of answers that the images cannot have helped."""

    image_zeroed: KindScores
    """Answers without an image: all its pixels are zero."""
    image_shuffled: KindScores
    """Answers to the image of another sample."""
    prior: KindScores
    """The most frequent answer of each kind in training, given without looking."""


def open_model(run: RunFolder, level: str | None = None, split: str | None = None) -> tuple[LoadedModel, BatchData]:
    """Opens the model of a finished run, and its data connected to it.

    Args:
        run: the run.
        level: another level of its data set than the one it was trained on.
        split: the only split that the data must have; None for those of a training.

    Raises:
        ConfigError: the data set has no levels, or none of that name.
    """
    experiment = run.experiment(_at_level(run.config, level, str(run.path)))
    data = prepare_data(experiment, split)
    check_model(run)
    built = load_model(run.model)
    data.connect(data_context(built.model, built.tokenizer, experiment))
    return built, data


def open_with_data(
    reference: str, file: Path | None, level: str | None = None, split: str | None = None
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
    loaded = answering_model(reference)
    images = loaded.processor.image_processor
    config["data"] |= {"image_fit": images.fit, "scaled_decode": images.scaled_decode}
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


Progress = Callable[[str, int, int], None]
"""Called with which images are shown, the number of questions answered, and the number of all questions."""


def _silent(images: str, done: int, total: int) -> None:
    pass


def score_run(
    run: RunFolder, split: str = "test", level: str | None = None, metric: str = DEFAULT_METRIC
) -> tuple[KindScores, list[Answer]]:
    """Scores a finished run on its own data, or on another level of it; see `score`."""
    return score(*open_model(run, level), split, metric=metric)


def score(
    built: BuiltModel,
    data: BatchData,
    split: str,
    progress: Progress = _silent,
    metric: str = DEFAULT_METRIC,
    limit: int | None = None,
) -> tuple[KindScores, list[Answer]]:
    """Answers the questions of a split and scores the answers.

    Args:
        built: model and tokenizer.
        data: a connected data module.
        split: the name of the split.
        progress: see Progress.
        metric: the registered name of the metric.
        limit: how many questions, spread evenly over the split; None for all.
    """
    answers = answer_questions(built, data, split, "real", partial(progress, "images as they are"), limit)
    return score_answers(answers, metric), answers


def score_control(
    name: str,
    built: BuiltModel,
    data: BatchData,
    split: str,
    progress: Progress = _silent,
    metric: str = DEFAULT_METRIC,
    limit: int | None = None,
) -> KindScores | None:
    """Returns the score of one control, a field of ControlScores.

    None for a prior without questions in training, and for shuffled images where only one is asked about.
    """
    if name == "prior":
        seen = training_questions(data)
        return score_answers(prior_answers(asked_questions(data, split, limit), seen), metric) if seen else None
    images: Images = "zeroed" if name == "image_zeroed" else "shuffled"
    if images == "shuffled" and len({question.index for question in asked_questions(data, split, limit)}) < 2:
        return None
    return score_answers(
        answer_questions(built, data, split, images, partial(progress, f"images {images}"), limit), metric
    )


def score_controls(
    built: BuiltModel, data: BatchData, split: str, progress: Progress = _silent, metric: str = DEFAULT_METRIC
) -> ControlScores:
    """Answers the same questions without the image and with another one, and scores that and the prior; see `score`.

    Scores are NaN where there is nothing to score: no other sample's image, or no questions in training.
    """
    zeroed = answer_questions(built, data, split, "zeroed", partial(progress, "images zeroed"))
    asked, seen = data.questions(split), training_questions(data)
    several = len({question.index for question in asked}) > 1
    shown = partial(progress, "images shuffled")
    shuffled = answer_questions(built, data, split, "shuffled", shown) if several else []
    prior = prior_answers(asked, seen) if seen else []
    return ControlScores(
        image_zeroed=score_answers(zeroed, metric),
        image_shuffled=score_answers(shuffled, metric),
        prior=score_answers(prior, metric),
    )


def training_questions(data: BatchData) -> list[Question]:
    """Returns the questions of the split train; none where the data has no such split."""
    try:
        return data.questions("train")
    except (DataError, ConfigError):
        return []


def score_encoder(run: RunFolder, split: str = "test") -> dict[str, float]:
    """Scores what the encoder of an encoder_pretrain run writes; see `encoder_scores`."""
    experiment = run.experiment()
    data = prepare_data(experiment)
    stage = build_stage(experiment)
    check_model(run)
    load_components(stage.model, run.model)
    data.connect(data_context(stage.model, stage.tokenizer, experiment))
    return encoder_scores(stage.model.encoder, stage.tokenizer, data, split)
