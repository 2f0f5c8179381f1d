"""The questions of an opened run, answered with subsets of the model's sources."""

from collections.abc import Sequence
from dataclasses import replace

from fvl_lightning.attribution.knock_out.features import ReplacedFeatures
from fvl_lightning.attribution.knock_out.scores import KnockOut, knock_out_scores
from fvl_lightning.attribution.knock_out.subsets import Subset, Subsets, subset_name, subsets_of
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.evaluation.answers import Answer, answer_questions
from fvl_lightning.evaluation.metrics.base import AnswerMetric, Reference
from fvl_lightning.evaluation.metrics.lookup import build_metric
from fvl_lightning.evaluation.tasks.result import TaskSample
from fvl_lightning.modeling.connector.replacement import Replacement


def knock_out(
    opened: OpenedRun,
    replacements: Sequence[Replacement] = ("mean",),
    subsets: Subsets = "single",
    seed: int = 0,
) -> list[KnockOut]:
    """Asks the questions of a run with subsets of its sources, and returns the scores for each kind of substitute.

    The encoder runs once over each image. The model with all sources is asked once, whatever the kinds of substitutes.

    Args:
        opened: the run.
        replacements: the kinds of substitutes, each of which is asked with every subset.
        subsets: single for each source left out, each alone, and none; all for every subset.
        seed: the seed of noise and of the bootstrap.

    Raises:
        ConfigError: there are too many subsets.
        DataError: features are to be shuffled, but all questions are about one image.
    """
    sources = tuple(opened.built.model.alignment.sources)
    asked, known = subsets_of(sources, subsets), dict[Subset, list[TaskSample]]()
    metric = build_metric(opened.scoring.metric, {question.kind for question in opened.questions})
    metric.prepare(Reference((question.answer,)) for question in opened.questions)
    found = []
    for how in replacements:
        features, samples = ReplacedFeatures(opened, how, seed), dict[Subset, list[TaskSample]]()
        for kept in asked:
            if kept != sources or kept not in known:
                known[kept] = _answers(opened, features, kept, metric)
            samples[kept] = known[kept]
        found.append(knock_out_scores(samples, sources, how, metric, seed=seed))
    return found


def _answers(opened: OpenedRun, features: ReplacedFeatures, kept: Subset, metric: AnswerMetric) -> list[TaskSample]:
    """Returns the scored answers to all questions with some sources as they are."""
    name = subset_name(kept, tuple(opened.built.model.alignment.sources))

    def show(images: str, done: int, total: int) -> None:
        opened.progress(f"answering, {name}", done, total)

    scoring = replace(opened.scoring, image_sources=features.keeping(kept), progress=show)
    return [_scored(number, answer, metric) for number, answer in enumerate(answer_questions(scoring))]


def _scored(number: int, answer: Answer, metric: AnswerMetric) -> TaskSample:
    """Returns an answer as the statistics take it; questions about one image are a cluster."""
    question, reference = answer.question, Reference((answer.question.answer,))
    score = metric.score_answer(answer.text, reference)
    cluster = f"image {question.index}"
    return TaskSample(str(number), answer.text, answer.text, score, reference, question.kind, cluster)
