"""Scores of the kit's metrics for the same cases."""

from collections.abc import Sequence

from fvl_lightning.core import registry
from fvl_lightning.evaluation.metrics.base import AnswerMetric, KindScores, Reference
from tests.lmms.cases import Case


def reference_of(case: Case) -> Reference:
    return Reference(tuple(case.references), choices=tuple(case.choices), group=case.group, row=case.row)


def metric_of(case: Case, kinds: Sequence[str] = ()) -> AnswerMetric:
    component = registry.component("metric", case.metric)
    return component(component.Config(**case.config), kinds)


def score(case: Case) -> float:
    """Returns the score of one answer."""
    return metric_of(case).score_answer(case.answer, reference_of(case))


def aggregate(cases: Sequence[Case]) -> KindScores:
    """Returns the scores of all answers, with the options of the first one."""
    metric = metric_of(cases[0], {case.kind for case in cases})
    for case in cases:
        metric.update(case.kind, case.answer, reference_of(case))
    return metric.compute()


def caption_scores(cases: Sequence[Case]) -> list[float]:
    """Returns the score of each caption."""
    metric, references = metric_of(cases[0]), [reference_of(case) for case in cases]
    metric.prepare(references)
    return [metric.score_answer(case.answer, reference) for case, reference in zip(cases, references, strict=True)]
