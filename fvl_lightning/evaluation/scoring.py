"""A run, a model folder or an encoder scored on a split."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fvl_lightning.core.config.loading import as_plain, check_config, load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.answers import Answer, accuracy, answer_questions, prior_answers
from fvl_lightning.evaluation.encoder_scores import encoder_scores
from fvl_lightning.modeling.build import BuiltModel, LoadedModel, load_model
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import answering_model
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.training.weights import load_components

RESULTS = {"accuracy": "answers", "image_zeroed": "image zeroed", "image_shuffled": "image shuffled", "prior": "prior"}
"""The results of `score_run` and how a table calls them."""


def open_model(run: RunFolder, level: str | None = None) -> tuple[LoadedModel, Any]:
    """A finished run's model, and its data connected to it (at another level of the demo set, where one is named)."""
    experiment = check_config(ExperimentConfig, _at_level(run.config, level, str(run.path)))
    data = prepare_data(experiment)
    built = load_model(run.model)
    data.connect(data_context(built.model, built.tokenizer, experiment))
    return built, data


def open_with_data(reference: str, file: Path | None, level: str | None = None) -> tuple[LoadedModel, Any]:
    """Any model, and the data of an experiment file connected to it, its pictures fitted as the model knows them."""
    if file is None:
        raise ConfigError(f"--data: {reference} is a model without data; name an experiment file whose data it answers")
    config = as_plain(load_config(ExperimentConfig, file))
    if config["data"] is None:
        raise ConfigError(f"--data: {file} names no data")
    loaded = answering_model(reference)
    images = loaded.processor.image_processor
    config["data"] |= {"image_fit": images.fit, "scaled_decode": images.scaled_decode}
    experiment = check_config(ExperimentConfig, _at_level(config, level, str(file)))
    data = prepare_data(experiment)
    data.connect(data_context(loaded.model, loaded.tokenizer, experiment))
    return loaded, data


def _at_level(config: dict[str, Any], level: str | None, where: str) -> dict[str, Any]:
    if level is not None:
        if config["data"]["name"] != "demo":
            raise ConfigError(f"--level: the data of {where} is {config['data']['name']}, only the demo set has levels")
        config["data"]["level"] = level
    return config


def score_run(
    run: RunFolder, split: str = "test", level: str | None = None, controls: bool = True
) -> tuple[dict[str, Any], list[Answer]]:
    """`score` of a finished run on its own data, or on another level of it."""
    return score(*open_model(run, level), split, controls)


def score(
    built: BuiltModel,
    data: Any,
    split: str,
    controls: bool = True,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> tuple[dict[str, Any], list[Answer]]:
    """{"accuracy", and with controls "image_zeroed", "image_shuffled", "prior"}, and the answers themselves.

    `progress` is called with what is being answered, the questions done, and the questions in all.
    """
    answers = answer_questions(built, data, split, progress=partial(progress, "images as they are"))
    result = {"accuracy": accuracy(answers)}
    if controls:
        result["image_zeroed"] = accuracy(
            answer_questions(built, data, split, "zeroed", partial(progress, "images zeroed"))
        )
        result["image_shuffled"] = accuracy(
            answer_questions(built, data, split, "shuffled", partial(progress, "images shuffled"))
        )
        asked = [answer.question for answer in answers]
        result["prior"] = accuracy(prior_answers(asked, data.questions("train")))
    return result, answers


def score_encoder(run: RunFolder, split: str = "test") -> dict[str, float]:
    """What the encoder of an encoder_pretrain run writes: caption_tokens, words, boxes."""
    experiment = check_config(ExperimentConfig, run.config)
    data = prepare_data(experiment)
    stage = build_stage(experiment)
    load_components(stage.model, run.model)
    data.connect(data_context(stage.model, stage.tokenizer, experiment))
    return encoder_scores(stage.model.encoder, stage.tokenizer, data, split)
