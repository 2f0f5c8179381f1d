"""What the scores of a comparison's cells show: verdicts over seeds, hints by kind, intervals over images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import reduce
from operator import getitem
from typing import Any

from fvl_lightning.comparison.statistics.image_bootstrap import LABEL, image_intervals
from fvl_lightning.comparison.statistics.verdicts import EXPLORATORY, compare_arms, explore
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.metrics import normalised

Results = Mapping[int, Mapping[str, Mapping[str, Any]]]
"""{seed: {arm: what was measured}}."""
Answers = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
"""{arm: {seed: its answers, each with index (of the image), kind, truth and answer}}, in one order everywhere."""


def conclusions(
    metric: str, baseline: str, smallest_effect: float, results: Results, answers: Answers
) -> dict[str, Any]:
    """The statistics of a comparison as plain containers.

    Args:
        metric: accuracy/macro or accuracy/overall.
        baseline: the arm that the others are compared to.
        smallest_effect: see verdicts.compare_arms.
        results: of the finished cells.
        answers: of the same cells, arms without any included.

    Returns:
        The fields of verdicts.ArmComparison, and `exploratory` (label, contrasts: those of verdicts.explore) and
        `images` (label, arms: {arm: {estimate, interval}}).
    """
    average = metric.rpartition("/")[2]
    scores = _scores(results, answers, ("accuracy", average))
    compared = asdict(compare_arms(scores, baseline, smallest_effect))
    groups = {name: _scores(results, answers, path) for name, path in _groups(results).items()}
    hints = [asdict(contrast) for contrast in explore(groups, baseline)]
    return compared | {
        "exploratory": {"label": EXPLORATORY, "contrasts": hints},
        "images": {
            "label": LABEL,
            "arms": _image_intervals(answers, baseline, average, compared["tested_seeds"] or answers[baseline]),
        },
    }


def averaged(entries: Sequence[Any]) -> Any:
    """Entries of one form as one: numbers as their mean, everything else as in the first."""
    if not entries:
        return None
    first = entries[0]
    if isinstance(first, Mapping):
        return {key: averaged([entry[key] for entry in entries if key in entry]) for key in first}
    if isinstance(first, int | float) and any(entry != first for entry in entries):
        return sum(entries) / len(entries)
    return first


def _scores(results: Results, answers: Answers, path: Sequence[str]) -> dict[str, dict[int, float]]:
    """{arm: {seed: what stands at `path` of its result}}."""
    return {
        arm: {seed: _at(results[seed][arm], path) for seed in by_seed} for arm, by_seed in answers.items()
    }


def _at(result: Any, path: Sequence[str]) -> float:
    return float(reduce(getitem, path, result))


def _groups(results: Results) -> dict[str, tuple[str, ...]]:
    """Kinds of question, splits of what training held back, and other levels, each with where its score stands."""
    first = next(iter(next(iter(results.values())).values()))
    paths: dict[str, tuple[str, ...]] = {kind: ("accuracy", "by_kind", kind) for kind in first["accuracy"]["by_kind"]}
    paths |= {name: (field, name, "macro") for field in ("unseen", "transfer") for name in first[field]}
    return paths


def _image_intervals(answers: Answers, baseline: str, average: str, seeds: Iterable[int]) -> dict[str, Any]:
    """Of the arms that were trained with all of `seeds`, averaged over them; nothing without a baseline."""
    seeds = set(seeds)
    shared = {arm: by_seed for arm, by_seed in answers.items() if seeds and set(by_seed) >= seeds}
    if len(shared) < 2:
        return {}
    asked = next(iter(shared[baseline].values()))
    order = [(row["index"], row["kind"], row["truth"]) for row in asked]
    right: dict[str, list[list[bool]]] = {}
    for arm, by_seed in shared.items():
        right[arm] = []
        for seed in sorted(seeds):
            rows = by_seed[seed]
            if [(row["index"], row["kind"], row["truth"]) for row in rows] != order:
                raise DataError(f"arm {arm} with seed {seed} was asked other questions than {baseline}")
            right[arm].append([normalised(row["answer"]) == normalised(row["truth"]) for row in rows])
    kinds = [row["kind"] for row in asked] if average == "macro" else None
    intervals = image_intervals(right, [row["index"] for row in asked], baseline, kinds)
    return {arm: asdict(interval) for arm, interval in intervals.items()}
