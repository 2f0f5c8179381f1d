"""Scores a model on a split of its own data, or of other data."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvl_lightning.api.experiment import checked
from fvl_lightning.api.model import Model, load_model
from fvl_lightning.api.run import open_run
from fvl_lightning.core.device import COMPUTE_PRECISIONS
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.answers import Answer, Scoring
from fvl_lightning.evaluation.metrics.base import KindScores
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_METRIC
from fvl_lightning.evaluation.scoring import ControlScores, score, score_controls
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.request import EvaluationRequest, default_output
from fvl_lightning.evaluation.tasks.result import TaskResult
from fvl_lightning.evaluation.tasks.run import run_evaluation
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.runs.setup import data_context, prepare_data


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a split."""

    scores: KindScores
    """`macro`, `overall` and `by_kind` of the metric."""
    controls: ControlScores | None
    """The same without the image, with another image, and without looking; None if they were not asked for."""
    answers: list[Answer] = field(repr=False)
    """Every question with the generated answer."""


def evaluate(
    model: str | os.PathLike[str] | Model,
    split: str = "test",
    data: ExperimentConfig | None = None,
    controls: bool = True,
    metric: str = DEFAULT_METRIC,
    precision: str = "32-true",
) -> Evaluation:
    """Has a model answer every question of a split, and scores the answers.

    Args:
        model: a loaded model, a run or a model folder.
        split: the name of the split.
        data: the experiment whose data is scored; None for that of the model's run. Images are fitted as the model
            expects, whatever it says.
        controls: whether to ask without the image and with another one, too.
        metric: the registered name of the metric.
        precision: 32-true computes in the type of the weights, bf16-mixed in bfloat16.

    Raises:
        ConfigError: a model folder without `data`, an unknown metric or precision, or a run that trained an encoder
            alone.
        DataError: there is no such model or split, or the split has no questions to score.
    """
    if precision not in COMPUTE_PRECISIONS:
        raise unknown_name("precision", precision, COMPUTE_PRECISIONS, "precision")
    data = None if data is None else checked(data)
    model = model if isinstance(model, Model) else load_model(model)
    if data is None and is_model_folder(Path(model.reference)):
        raise ConfigError(f"data: {model.reference} is a model without data; pass an experiment whose data it answers")
    images = model.loaded.processor.image_processor
    experiment = (open_run(model.reference).experiment if data is None else data).with_overrides(
        {"data.image_fit": images.fit, "data.scaled_decode": images.scaled_decode, "data.tiles": images.tiles}
    )
    prepared = prepare_data(experiment, split)
    prepared.connect(data_context(model.loaded.model, model.loaded.tokenizer, experiment))
    scoring = Scoring(model.loaded, prepared, split, metric, precision=precision)
    scores, answers = score(scoring)
    asked = score_controls(scoring) if controls else None
    return Evaluation(scores, asked, answers)


def evaluate_tasks(
    models: Sequence[str | os.PathLike[str]],
    tasks: Sequence[str | os.PathLike[str]],
    limit: int | None = None,
    controls: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    precision: str = "32-true",
    accelerator: str = "auto",
) -> dict[str, list[TaskResult]]:
    """Has models answer the questions of benchmarks, and scores the answers.

    Answers are kept in the output folder; what a model has answered there before is not asked again.

    Args:
        models: runs or model folders.
        tasks: names of the catalog, or YAML files.
        limit: the largest number of questions of a task, spread evenly.
        controls: names of controls and corruptions under which each task is asked, too, such as blind or noise-3.
        output: the folder of samples and scores; None for one below runs/evaluations.
        precision: 32-true computes in the type of the weights, bf16-mixed in bfloat16.
        accelerator: auto, cpu, cuda or mps.

    Returns:
        {model: its results, task after task, each followed by those of its controls}.

    Raises:
        ConfigError: an unknown task, control, precision or device, or a task with a mistake.
        DataError: there is no such model, or rows or images cannot be read.
    """
    if precision not in COMPUTE_PRECISIONS:
        raise unknown_name("precision", precision, COMPUTE_PRECISIONS, "precision")
    found = [find_task(os.fspath(task)) for task in tasks]
    folder = default_output(found) if output is None else Path(output)
    request = EvaluationRequest(
        [os.fspath(model) for model in models], found, folder, limit, controls,
        precision=precision, accelerator=accelerator,
    )  # fmt: skip
    return run_evaluation(request)
