"""The section of a report on sources that are knocked out."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from fvl_lightning.attribution.inside.gates import source_gates, weight_is_not_use
from fvl_lightning.attribution.knock_out.answers import knock_out
from fvl_lightning.attribution.knock_out.figures import kinds_figure, losses_figure
from fvl_lightning.attribution.knock_out.scores import KnockOut, SubsetScores
from fvl_lightning.attribution.knock_out.subsets import Subset, Subsets, subset_name, without
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.evaluation.statistics.resampling import LABEL, Estimate
from fvl_lightning.modeling.connector.replacement import Replacement
from fvl_lightning.reporting.section import PER_SOURCE, PER_SOURCE_MEANS, Section
from fvl_lightning.reporting.sentences import listed, with_range
from fvl_lightning.reporting.tables import Grid, format_score, interval, signed

NAME = "knock_out"
IN_PLACE: Mapping[Replacement, str] = {
    "zero": "zeros",
    "mean": "its mean over the images",
    "shuffled": "the features of another image",
    "noise": "noise of its mean and variance",
}
"""{kind of substitute: the text that says what stands in place of a source}."""


def knock_out_section(
    opened: OpenedRun,
    replacements: Sequence[Replacement] = ("mean",),
    subsets: Subsets = "single",
    seed: int = 0,
) -> Section:
    """Returns the section on sources that are left out at inference; arguments and errors are those of knock_out."""
    gates = source_gates(opened)
    weights = {source: weight.value for source, weight in gates.overall.items()} if gates else {}
    return section_of(knock_out(opened, replacements, subsets, seed), weights)


def section_of(found: Sequence[KnockOut], weights: Mapping[str, float] | None = None) -> Section:
    """Returns the section on the scores of one model.

    Args:
        found: the scores for each kind of substitute, at least one.
        weights: {source: its mean weight}, for a fusion that weighs its sources.
    """
    first = found[0]
    figures = {f"{NAME}_losses": losses_figure(found)}
    captions = {f"{NAME}_losses": f"Loss of each source that is left out, with 95 % intervals ({LABEL})."}
    if len(first.by_kind) > 1:
        figures[f"{NAME}_kinds"] = kinds_figure(first)
        captions[f"{NAME}_kinds"] = (
            f"Loss by kind of question with {IN_PLACE[first.replacement]} in place of the source; a frame marks a "
            "95 % interval that excludes zero."
        )
    return Section(
        NAME,
        "Answers without a source",
        [
            " ".join(finding(each) for each in found),
            "No weight is trained again: the model meets features that it has not met in training, so that a loss is "
            "what this model takes from a source, not what the source could give. Losses are paired by question; "
            f"questions about one image are drawn together for the 95 % intervals ({LABEL}).",
            *(sentence for each in found for sentence in stand_ins(each)),
            *(weight_is_not_use(weights, missed_one_by_one(first)) if weights else ()),
        ],
        [grid for each in found for grid in (_sources_grid(each), _kinds_grid(each), _subsets_grid(each)) if grid.rows],
        figures,
        {
            PER_SOURCE: {source: loss.value for source, loss in first.overall.losses.items()},
            PER_SOURCE_MEANS: f"loss with {IN_PLACE[first.replacement]} in place of the source, {first.metric}",
            **{each.replacement: knock_out_values(each) for each in found},
        },
        captions,
    )


def finding(found: KnockOut) -> str:
    """Returns the result in a sentence or two: the largest loss, and the sources without a measurable one."""
    losses = found.overall.losses
    order = sorted(losses, key=lambda source: -losses[source].value)
    needed = [source for source in order if losses[source].interval[0] > 0]
    missed = [source for source in order if source in missed_one_by_one(found)]
    harmful = [source for source in order if losses[source].interval[1] < 0]
    losing = [f"{with_interval(losses[source])} without `{source}`" for source in needed]
    lost = f"the score falls by {listed(losing)}" if losing else "no source has a loss that is shown"
    parts = [f"With {IN_PLACE[found.replacement]} in place of a source, {lost} ({found.metric})."]
    if missed and needed:
        parts.append(f"No loss is shown without {either(missed)}.")
    if harmful:
        parts.append(f"The answers are better without {either(harmful)}.")
    parts.append(f"The Information Gap is {with_interval(found.overall.information_gap)}.")
    return " ".join(parts)


def missed_one_by_one(found: KnockOut) -> list[str]:
    """Returns the sources without which no loss is shown while all others are there."""
    return [source for source in found.sources if not found.overall.losses[source].excludes_zero]


def either(sources: Sequence[str]) -> str:
    """Returns sources of which each is meant by itself."""
    return " or ".join(f"`{source}`" for source in sources)


def stand_ins(found: KnockOut) -> list[str]:
    """Returns a sentence for each smallest group of sources that can be missed one by one, but not together."""
    missed = missed_one_by_one(found)
    groups = [group for size in range(2, len(missed) + 1) for group in combinations(missed, size)]
    together: list[tuple[str, ...]] = []
    sentences = []
    for group in groups:
        fall = found.overall.falls.get(without(found.sources, *group))
        if fall is None or fall.interval[0] <= 0 or any(set(other) <= set(group) for other in together):
            continue
        together.append(group)
        names = listed([f"`{source}`" for source in group])
        sentences.append(
            f"{names} stand in for each other: no loss is shown without {either(group)} alone, but with "
            f"{'both' if len(group) == 2 else f'all {len(group)}'} replaced the score falls by {with_interval(fall)}."
        )
    return sentences


def with_interval(found: Estimate) -> str:
    """Returns a number with its interval as text."""
    return with_range(found.value, found.interval)


def _sources_grid(found: KnockOut) -> Grid:
    scores = found.overall
    rows = [
        [
            source,
            signed(scores.losses[source].value),
            interval(scores.losses[source].interval),
            format_score(scores.utilization[source].value),
            interval(scores.utilization[source].interval),
            signed(scores.gains[source].value),
            interval(scores.gains[source].interval),
        ]
        for source in found.sources
    ]
    header = ["source", "loss without it", "95 %", "CUR", "95 %", "gain of it alone", "95 %"]
    return Grid(f"Each source, {IN_PLACE[found.replacement]} in place of those left out", header, rows)


def _kinds_grid(found: KnockOut) -> Grid:
    rows = [
        [
            kind,
            str(scores.questions),
            str(scores.images),
            format_score(scores.scores[found.sources].value),
            *(f"{signed(loss.value)}{' *' if loss.excludes_zero else ''}" for loss in scores.losses.values()),
            format_score(scores.information_gap.value),
        ]
        for kind, scores in found.by_kind.items()
        if len(found.by_kind) > 1
    ]
    header = ["kind", "questions", "images", "all sources", *(f"without {s}" for s in found.sources), "IG"]
    note = "Loss without a source; * marks a 95 % interval that excludes zero, not adjusted for the number of kinds."
    return Grid(f"Loss by kind of question, {IN_PLACE[found.replacement]}", header, rows, note)


def _subsets_grid(found: KnockOut) -> Grid:
    rows = [
        [subset_name(kept, found.sources), format_score(score.value), " to ".join(map(format_score, score.interval))]
        for kept, score in found.overall.scores.items()
    ]
    return Grid(f"Every subset that was asked, {IN_PLACE[found.replacement]}", ["sources", "score", "95 %"], rows)


def knock_out_values(found: KnockOut) -> dict[str, Any]:
    """Returns the numbers as JSON has them; a subset is its sources, joined by +."""
    return {
        "sources": list(found.sources),
        "metric": found.metric,
        "all": _plain(found.overall),
        "kinds": {kind: _plain(scores) for kind, scores in found.by_kind.items()},
    }


def _plain(scores: SubsetScores) -> dict[str, Any]:
    def estimates(table: Mapping[Any, Estimate]) -> dict[str, Any]:
        return {key if isinstance(key, str) else _key(key): dataclasses.asdict(value) for key, value in table.items()}

    return {
        "questions": scores.questions,
        "images": scores.images,
        "scores": estimates(scores.scores),
        "falls": estimates(scores.falls),
        "losses": estimates(scores.losses),
        "gains": estimates(scores.gains),
        "conditional_utilization_rate": estimates(scores.utilization),
        "information_gap": dataclasses.asdict(scores.information_gap),
    }


def _key(kept: Subset) -> str:
    return "+".join(kept) or "none"
