"""The section of a report on models that were trained again on subsets of the sources."""

from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from fvl_lightning.attribution.retrained.arms import Size, SubsetArms, read_places, subset_arms
from fvl_lightning.attribution.retrained.figures import TITLES, interactions_figure, kinds_figure, worths_figure
from fvl_lightning.attribution.retrained.shapley import Subset, all_subsets
from fvl_lightning.attribution.retrained.worths import SizeWorths, Worths, all_worths
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.statistics.seed_means import SeedMeans
from fvl_lightning.core.terminal import plural
from fvl_lightning.reporting.section import PER_SOURCE, PER_SOURCE_MEANS, Section
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score, interval, signed

NAME, TITLE = "retrained", "Trained again on subsets of the sources"
ALPHA = 0.05
IN_TEXT: dict[Size, str] = {"natural": "At their own size", "matched": "At the size of all sources"}


def retrained_section(results: Comparison) -> Section:
    """Returns the section of a finished comparison whose arms differ in their sources.

    The subset of an arm is read from its configuration (`fused_sources`, `encoder.sources`, `fusion.repeat`).

    Raises:
        DataError: a run's configuration cannot be read.
    """
    return section_of(results, subset_arms(read_places(results), results.differences))


def section_of(results: Comparison, arms: SubsetArms | None) -> Section:
    """Returns the section on these arms; without any it says what is needed."""
    if arms is None:
        needed = "No two arms differ in their sources alone, so that nothing follows about what a source is worth."
        return Section(NAME, TITLE, [f"{needed} `experiments/studies/subsets.yaml` trains all subsets."])
    found = all_worths(results, arms)
    sources = arms.sources
    whole = [each for each in found if each.whole.complete]
    tables = [_scores_grid(arms, found)]
    for each in found:
        tables.append(_sources_grid(sources, each))
        tables += [_pairs_grid(sources, each)] if each.whole.complete and len(sources) > 1 else []
        tables += [_kinds_grid(sources, each)] if each.whole.complete and each.kinds else []
    figures, captions = {f"{NAME}_worths": worths_figure(sources, found)}, {}
    captions[f"{NAME}_worths"] = "What each source adds to the score, with 95 % intervals over seeds."
    if whole and len(sources) > 1:
        figures[f"{NAME}_interactions"] = interactions_figure(sources, whole)
        captions[f"{NAME}_interactions"] = (
            "Shapley interactions: what two sources gain together beyond the gains of each. Below zero they stand in "
            "for each other; a frame marks a 95 % interval without zero."
        )
    if whole and whole[0].kinds:
        figures[f"{NAME}_kinds"] = kinds_figure(sources, whole)
        captions[f"{NAME}_kinds"] = (
            "Shapley values by kind of question; a frame marks a value that differs from zero (exploratory, by "
            "Benjamini-Hochberg in a panel)."
        )
    first = next(iter(whole or found)).whole
    estimate = first.shapley_means if first.complete else first.left_out
    return Section(
        NAME,
        TITLE,
        [*(_finding(sources, each) for each in found), *_gaps(results, arms, found), _method(results)],
        tables,
        figures,
        {
            PER_SOURCE: {name: v for name, v in _by_source(sources, estimate.mean).items() if v is not None},
            PER_SOURCE_MEANS: "Shapley value" if first.complete else "loss of a training without the source",
            "sources": list(sources),
            "arms": {size: {_name(s, sources): arm for s, arm in by.items()} for size, by in arms.arms.items()},
            **{each.size: {"whole": _plain(sources, each.whole)} | _plain_kinds(sources, each) for each in found},
        },
        captions,
    )


def _finding(sources: Sequence[str], each: SizeWorths) -> str:
    worths, size = each.whole, IN_TEXT[each.size]
    if not worths.complete:
        losses = _listed(sources, worths.left_out)
        return f"{size}, a training without it loses: {losses}." if losses else f"{size}, too little is there."
    order = np.argsort(-worths.shapley_means.mean).tolist()
    values = _listed(sources, worths.shapley_means, order)
    clear = [f"`{sources[i]}`" for i in order if isfinite(worths.p[i]) and worths.p[i] <= ALPHA]
    tested = f"Clear of zero (Holm): {', '.join(clear) or 'none'}."
    gain = _text(worths.spread.mean, worths.spread.interval)
    return f"{size}, all sources gain {gain} over none. Shapley values share this out: {values}. {tested}"


def _listed(sources: Sequence[str], means: SeedMeans, order: Iterable[int] | None = None) -> str:
    places = [place for place in order or range(len(sources)) if isfinite(means.mean[place])]
    return ", ".join(f"`{sources[place]}` {_text(means.mean[place], means.interval[place])}" for place in places)


def _text(value: Any, bounds: Any) -> str:
    return f"{signed(float(value))} ({interval(bounds)})" if isfinite(bounds[0]) else signed(float(value))


def _gaps(results: Comparison, arms: SubsetArms, found: Sequence[SizeWorths]) -> list[str]:
    """Returns a sentence for what is missing at each size, and one for the arms that are left out."""
    sentences = []
    for each in found:
        if missing := [_name(subset, arms.sources) for subset in arms.missing(each.size)]:
            sentences.append(
                f"{IN_TEXT[each.size]}, Shapley values need all {2 ** len(arms.sources)} subsets; missing: "
                f"{', '.join(missing)}."
            )
        elif each.whole.complete < len(results.seeds):
            sentences.append(
                f"{IN_TEXT[each.size]}, {each.whole.complete} of {plural(len(results.seeds), 'seed')} have all "
                "subsets; the others have no Shapley values."
            )
    if arms.others:
        others = ", ".join(arms.others)
        sentences.append(f"Arms that differ in something else, or repeat a subset, are left out: {others}.")
    return sentences


def _method(results: Comparison) -> str:
    higher = results.component.higher_is_better
    better = "" if higher else " A lower score is better, and the sign of all gains is changed."
    seeds = (
        "Each number is computed for every seed by itself; its 95 % interval (t) is over new seeds, on the same "
        "questions."
        if len(results.seeds) > 1
        else "There is one seed, so that nothing is known about another one."
    )
    return (
        f"The score is {results.metric}.{better} {seeds} A Shapley value is the mean gain of a source over all orders "
        "in which sources can be added; the values add up to the gain of all sources over none. Intervals are those "
        "of each number alone."
    )


def _scores_grid(arms: SubsetArms, found: Sequence[SizeWorths]) -> Grid:
    rows = []
    for place, subset in sorted(enumerate(all_subsets(arms.sources)), key=lambda item: -len(item[1])):
        cells = []
        for each in found:
            scores = each.whole.scores
            low, high = scores.interval[place]
            ends = f" ({low:.3f} to {high:.3f})" if isfinite(low) else ""
            cells.append(f"{format_score(float(scores.mean[place]))}{ends}" if scores.seeds[place] else ABSENT)
        if any(cell != ABSENT for cell in cells):
            rows.append([_name(subset, arms.sources), *cells])
    return Grid("Score of each subset", ["sources", *(TITLES[each.size] for each in found)], rows)


def _sources_grid(sources: Sequence[str], each: SizeWorths) -> Grid:
    worths = each.whole
    columns = (worths.shapley_means, worths.left_out, worths.alone)
    rows = [
        [
            source,
            *(text for means in columns for text in (signed(float(means.mean[i])), interval(means.interval[i]))),
            f"{worths.p[i]:.2g}" if isfinite(worths.p[i]) else ABSENT,
        ]
        for i, source in enumerate(sources)
    ]
    header = ["source", "Shapley value", "95 %", "left out of all", "95 %", "alone, beyond none", "95 %", "p (Holm)"]
    return Grid(f"Worth of each source, {TITLES[each.size]}", header, rows)


def _pairs_grid(sources: Sequence[str], each: SizeWorths) -> Grid:
    means = each.whole.interactions
    rows = [
        [f"{sources[i]} + {sources[j]}", signed(float(means.mean[i, j])), interval(means.interval[i, j])]
        for i in range(len(sources))
        for j in range(i + 1, len(sources))
    ]
    return Grid(f"Interaction of pairs, {TITLES[each.size]}", ["pair", "Shapley interaction", "95 %"], rows)


def _kinds_grid(sources: Sequence[str], each: SizeWorths) -> Grid:
    clear = each.clear_kinds()
    rows = [
        [
            kind,
            signed(float(worths.spread.mean)),
            *(
                f"{signed(float(worths.shapley_means.mean[i]))}{' *' if clear[kind][i] else ''}"
                for i in range(len(sources))
            ),
        ]
        for kind, worths in each.kinds.items()
    ]
    note = "* differs from zero: exploratory, adjusted by Benjamini-Hochberg over all values of the table"
    return Grid(f"Shapley values by kind, {TITLES[each.size]}", ["kind", "all beyond none", *sources], rows, note)


def _name(subset: Subset, sources: Sequence[str]) -> str:
    return " + ".join(source for source in sources if source in subset) or "none"


def _by_source(sources: Sequence[str], values: Any) -> dict[str, float | None]:
    return {source: _number(value) for source, value in zip(sources, values, strict=True)}


def _number(value: Any) -> float | None:
    return float(value) if isfinite(value) else None


def _plain_means(sources: Sequence[str], means: SeedMeans) -> dict[str, Any]:
    return {
        source: {"mean": _number(mean), "interval": [_number(end) for end in ends], "p": _number(p)}
        for source, mean, ends, p in zip(sources, means.mean, means.interval, means.p, strict=True)
    }


def _plain(sources: Sequence[str], worths: Worths) -> dict[str, Any]:
    names = [_name(subset, sources) for subset in all_subsets(sources)]
    pairs = [(i, j) for i in range(len(sources)) for j in range(i + 1, len(sources))]
    return {
        "seeds": {
            str(seed): {
                "scores": {name: _number(value) for name, value in zip(names, worths.table[row], strict=True)},
                "shapley": _by_source(sources, worths.shapley[row]),
            }
            for row, seed in enumerate(worths.seeds)
        },
        "shapley": _plain_means(sources, worths.shapley_means),
        "left_out": _plain_means(sources, worths.left_out),
        "alone": _plain_means(sources, worths.alone),
        "interactions": {
            f"{sources[i]} + {sources[j]}": {
                "mean": _number(worths.interactions.mean[i, j]),
                "interval": [_number(end) for end in worths.interactions.interval[i, j]],
            }
            for i, j in pairs
        },
    }


def _plain_kinds(sources: Sequence[str], each: SizeWorths) -> dict[str, Any]:
    return {"kinds": {kind: _plain(sources, worths) for kind, worths in each.kinds.items()}} if each.kinds else {}
