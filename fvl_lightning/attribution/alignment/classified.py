"""Classifiers on an encoder's features that answer questions about images, with intervals over images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from datamodules.base import BatchData
from datamodules.encoding.questions import Question
from datamodules.storage.sample import spread
from fvl_lightning.attribution.alignment.measured import SPLIT, Progress
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.evaluation.statistics.means import mean_draws
from fvl_lightning.evaluation.statistics.resampling import Array, Estimate, Resamples, estimate, within
from fvl_lightning.feature_analysis.classifiers import linear_probe, nearest_neighbours
from fvl_lightning.feature_analysis.labels import ImageLabels, image_labels
from fvl_lightning.feature_analysis.pooled import pooled_features

FITTED_IMAGES = 2000
"""Images of the training split on which classifiers are fitted."""
TOGETHER = "all together"
"""The name of all sources side by side."""
CLASSIFIERS = {"linear probe": linear_probe, "10 nearest neighbours": nearest_neighbours}


@dataclass(frozen=True)
class Classified:
    """Scores 0 and 1 of Q answers, one per question and image of the validation split."""

    scores: dict[tuple[str, str], Array]
    """{(source, classifier): [Q]}."""
    majority: Array
    """[Q], scores of the most frequent answer of each question in training."""
    samples: tuple[int, ...]
    """[Q], the sample of each."""
    kinds: tuple[str, ...]
    """[Q], the kind of each."""


def classify(encoder: Encoder, data: BatchData, progress: Progress) -> Classified | None:
    """Fits the classifiers on the training split and scores them on the validation split.

    Returns None where no question is asked in the same words about enough images (feature_analysis/labels.py).

    Args:
        encoder: an encoder in eval mode on its device.
        data: connected to it.
        progress: called as images are encoded.
    """
    fitted, tested = data.questions("train"), data.questions(SPLIT)
    kept = _spread_samples(fitted)
    labels = image_labels([question for question in fitted if question.index in kept], tested)
    if not labels:
        return None
    order = {
        "train": sorted({sample for each in labels for sample in each.fitted_samples}),
        SPLIT: sorted({sample for each in labels for sample in each.tested_samples}),
    }
    features = {
        split: _with_all(
            pooled_features(encoder, data, split, samples, lambda *done: progress("encoding images", *done))
        )
        for split, samples in order.items()
    }
    rows = {split: {sample: row for row, sample in enumerate(samples)} for split, samples in order.items()}
    scores = {
        (source, name): np.concatenate(
            [_score(classifier, features["train"][source], features[SPLIT][source], rows, each) for each in labels]
        )
        for source in features["train"]
        for name, classifier in CLASSIFIERS.items()
    }
    return Classified(
        scores,
        np.concatenate([(each.tested == each.most_frequent).double().numpy() for each in labels]),
        tuple(sample for each in labels for sample in each.tested_samples),
        tuple(each.kind for each in labels for _ in each.tested_samples),
    )


def over_images(scores: Sequence[Array], clusters: Sequence[object]) -> Estimate:
    """Returns the mean of scores, averaged over encoders or seeds, with an interval over new images.

    Args:
        scores: [Q] of each encoder or seed.
        clusters: the image of each score.
    """
    resamples = Resamples([str(cluster) for cluster in clusters])
    found = estimate(mean_draws([np.mean(scores, 0)], resamples)[:, 0], resamples.clusters, reach=1.0)
    return replace(within(found, (0.0, 1.0)), value=found.value)


def _spread_samples(questions: Sequence[Question]) -> set[int]:
    samples = sorted({question.index for question in questions})
    return {samples[place] for place in spread(len(samples), FITTED_IMAGES)}


def _with_all(features: dict[str, Tensor]) -> dict[str, Tensor]:
    if len(features) == 1:
        return features
    return features | {TOGETHER: torch.cat(list(features.values()), 1)}


def _score(
    classifier: object, train: Tensor, test: Tensor, rows: dict[str, dict[int, int]], each: ImageLabels
) -> Array:
    fitted = train[[rows["train"][sample] for sample in each.fitted_samples]]
    tested = test[[rows[SPLIT][sample] for sample in each.tested_samples]]
    predicted = classifier(fitted, each.fitted, tested)  # type: ignore[operator]
    return (predicted == each.tested).double().numpy()
