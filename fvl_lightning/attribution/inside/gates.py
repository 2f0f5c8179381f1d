"""Weights that a fusion gives its sources: over the questions that are asked, by kind, and at each place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.encoding.questions import Question
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.core.device import autocast
from fvl_lightning.evaluation.statistics.means import mean_estimate
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.inference.generation import question_inputs
from fvl_lightning.inference.source_weight_maps import SourceWeights, weights_of_sources

IMAGES_AT_ONCE = 64
"""Images whose weights are computed together."""


@dataclass(frozen=True)
class Gates:
    """The weights of the sources of one model; intervals are over new images."""

    overall: Mapping[str, Estimate]
    """{source: its mean weight in [0, 1] over the questions}."""
    by_kind: Mapping[str, Mapping[str, Estimate]]
    """{kind of question: {source: its mean weight}}."""


def weights_of_questions(opened: OpenedRun, questions: Sequence[Question]) -> list[SourceWeights]:
    """Returns the weights for each question, from features that are there; empty ones where the fusion has none.

    An image in tiles has the mean weights of its tiles, and the maps of the last one. A fusion that does not read the
    question weighs each image once.
    """
    model, conditioned = opened.built.model, opened.built.model.conditioned
    asked: dict[int, Question] = {}
    for place, question in enumerate(questions):
        asked.setdefault(place if conditioned else question.index, question)
    found: dict[int, SourceWeights] = {}
    keys = list(asked)
    with torch.inference_mode(False), torch.no_grad(), autocast(model.device, opened.precision):
        for start in range(0, len(keys), IMAGES_AT_ONCE):
            part = keys[start : start + IMAGES_AT_ONCE]
            tiles = [len(opened.rows[asked[key].index]) for key in part]
            texts = [opened.data.encoder.question(asked[key].prompt_messages) for key in part]
            repeated = [text for text, count in zip(texts, tiles, strict=True) for _ in range(count)]
            sources = opened.sources_of([asked[key].index for key in part])
            weights = iter(
                weights_of_sources(model, sources, question_inputs(opened.built, repeated).get("question_ids"))
            )
            for key, count in zip(part, tiles, strict=True):
                found[key] = _of_tiles([next(weights) for _ in range(count)])
    return [found[place if conditioned else question.index] for place, question in enumerate(questions)]


def _of_tiles(tiles: Sequence[SourceWeights]) -> SourceWeights:
    means = {source: sum(tile.weights[source] for tile in tiles) / len(tiles) for source in tiles[0].weights}
    return SourceWeights(means, tiles[-1].maps)


def source_gates(opened: OpenedRun) -> Gates | None:
    """Returns the weights of the sources over the questions of a run; None for a fusion that does not weigh them."""
    questions = opened.questions
    weights = weights_of_questions(opened, questions)
    sources = list(weights[0].weights)
    if not sources:
        return None
    table = np.array([[one.weights[source] for source in sources] for one in weights])
    images, kinds = [question.index for question in questions], np.array([question.kind for question in questions])

    def means(rows: np.ndarray) -> dict[str, Estimate]:
        clusters = [image for image, chosen in zip(images, rows, strict=True) if chosen]
        return {source: mean_estimate(table[rows, place], clusters) for place, source in enumerate(sources)}

    by_kind = {str(kind): means(kinds == kind) for kind in np.unique(kinds)}
    return Gates(means(np.ones(len(kinds), dtype=bool)), by_kind)


def weight_is_not_use(weights: Mapping[str, float], missed: Sequence[str]) -> list[str]:
    """Returns a sentence about sources with at least an equal share of the weight that the answers can do without.

    Args:
        weights: {source: its mean weight}.
        missed: the sources without which no loss is shown.
    """
    heavy = [source for source in missed if weights.get(source, 0.0) >= 1 / len(weights)]
    if not heavy:
        return []
    named = " and ".join(f"`{source}` ({weights[source]:.0%})" for source in heavy)
    return [
        f"A weight is not use: the fusion gives {named} at least an equal share of its weight, but no loss is shown "
        f"without {'it' if len(heavy) == 1 else 'either' if len(heavy) == 2 else 'any one of them'}."
        + (" Equal copies share a weight in this way, and each replaces the other." if len(heavy) > 1 else "")
    ]
