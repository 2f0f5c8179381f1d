"""`fvl evaluate`: a finished run answers questions about images it has never seen."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from fvl_lightning.cli.train import build_stage, data_context, prepare_data
from fvl_lightning.core.config.loading import as_plain, check_config, load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import progress, terminal
from fvl_lightning.evaluation.answers import Answer, accuracy, answer_questions, prior_answers
from fvl_lightning.evaluation.encoder_scores import encoder_scores
from fvl_lightning.inference.adapters import ADAPTER_HELP, put_on
from fvl_lightning.modeling.build import Built, Loaded, load_model
from fvl_lightning.runs.folder import RunFolder, is_model_folder
from fvl_lightning.runs.references import MODEL_HELP, answering_model, finished_run, say_what_it_has_seen
from fvl_lightning.training.weights import load_components


def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    split: Annotated[str, typer.Option(help="Split to answer.")] = "test",
    level: Annotated[str | None, typer.Option(help="Another level of the demo set than its own.")] = None,
    data: Annotated[Path | None, typer.Option(help="Experiment file with the data, in place of the run's.")] = None,
    adapter: Annotated[str | None, typer.Option(help=ADAPTER_HELP)] = None,
) -> None:
    """Score a model: generated answers by kind, without the image, with another image, and the most frequent answer.

    Example: `fvl evaluate runs/demo/concat/finetune`
    """
    folder = None if is_model_folder(Path(model)) else finished_run(model)
    if folder is not None and folder.info["stage"] == "encoder_pretrain":
        if data is not None or adapter is not None:
            option = "--data" if data else "--adapter"
            raise ConfigError(f"{option}: {folder.path} is an encoder, which is scored as it is on the data of its run")
        scores = score_encoder(folder, split)
        table = Table("score", "value", title=f"{folder.path} on {split}")
        for name, value in scores.items():
            table.add_row(name, f"{value:.3f}")
        terminal().print(table)
        return
    if folder is not None and data is None:
        built, connected = open_model(folder, level)
        say_what_it_has_seen(built, model)
    else:
        built, connected = open_with_data(model, data, level)
    put_on(built, adapter and [adapter])
    with progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("answering", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"answering, {what}", completed=done, total=total)

        result, _ = score(built, connected, split, progress=show)
    named = f"{folder.path if folder else model}{f' with {adapter}' if adapter else ''}"
    table = Table("kind", *RESULTS.values(), title=f"{named} on {split}: accuracy")
    for kind in [*result["accuracy"]["by_kind"], "macro", "overall"]:
        cells = [result[name]["by_kind"].get(kind, result[name].get(kind)) for name in RESULTS]
        table.add_row(kind, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    terminal().print(table)


RESULTS = {"accuracy": "answers", "image_zeroed": "image zeroed", "image_shuffled": "image shuffled", "prior": "prior"}
"""The results of `score_run` and how a table calls them."""


def open_model(run: RunFolder, level: str | None = None) -> tuple[Loaded, Any]:
    """A finished run's model, and its data connected to it (at another level of the demo set, where one is named)."""
    experiment = check_config(ExperimentConfig, _at_level(run.config, level, str(run.path)))
    data = prepare_data(experiment)
    built = load_model(run.model)
    data.connect(data_context(built.model, built.tokenizer, experiment))
    return built, data


def open_with_data(reference: str, file: Path | None, level: str | None = None) -> tuple[Loaded, Any]:
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
    built: Built,
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
