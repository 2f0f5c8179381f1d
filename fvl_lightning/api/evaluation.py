"""Scores a model on a split of its own data, or of other data."""

import os
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
        {"data.image_fit": images.fit, "data.scaled_decode": images.scaled_decode}
    )
    prepared = prepare_data(experiment, split)
    prepared.connect(data_context(model.loaded.model, model.loaded.tokenizer, experiment))
    scoring = Scoring(model.loaded, prepared, split, metric, precision=precision)
    scores, answers = score(scoring)
    asked = score_controls(scoring) if controls else None
    return Evaluation(scores, asked, answers)
