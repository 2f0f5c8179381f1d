"""The learning rates of a comparison: every arm tries the same ones, with other seeds, on the validation split."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.arms import TUNING
from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import SeedPlan, experiments
from fvl_lightning.comparison.runner import Runner
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig

DIGITS = 12
"""Significant digits of a rate: 0.003 times 0.3 is 0.0009."""
FACTOR = "learning_rate_factor"
"""The tag behind `fvl.axis.` of what is only tried."""
ROUNDING = 1e-9
"""Scores that differ by less are equal."""


def tuning_plans(config: ComparisonConfig, path: Path, folder: Path) -> dict[int, SeedPlan]:
    """{tuning seed: the arms as the reported seeds train them}; empty where nothing is tuned."""
    return experiments(config, path, folder / TUNING, config.tune.seeds) if config.tune else {}


def tune(
    runs: Runner,
    plans: Mapping[int, SeedPlan],
    reported: Mapping[int, SeedPlan],
    values: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Trains every arm with every rate and gives the `reported` arms the best; returns what chosen_rates does.

    Args:
        runs: how cells are run.
        plans: those of tuning_plans.
        reported: {seed: the arms that are compared}, changed in place.
        values: {arm: what it sets}.

    Raises:
        DataError: cells that have not run, or an arm none of whose rates could be trained.
    """
    settings = runs.config.tune
    assert settings is not None
    factors = settings.learning_rate_factors
    told = {tried_name(arm, factor): {**values[arm], FACTOR: factor} for arm in values for factor in factors}
    cells, _ = runs.run(tried(plans, factors), told, "validation")
    chosen = chosen_rates(runs.config, plans, cells)
    for plan in reported.values():
        for arm, stages in plan.arms.items():
            plan.arms[arm] = [with_rates(stage, chosen["arms"][arm]["chosen"]) for stage in stages]
    for arm, found in chosen["arms"].items():
        chose = f"{arm}: learning rates x {found['chosen']:g}, chosen on the validation split"
        runs.console.print(chose, soft_wrap=True)
    return chosen


def tried(plans: Mapping[int, SeedPlan], factors: Sequence[float]) -> dict[int, SeedPlan]:
    """{tuning seed: every arm with every factor, as an arm of its own}."""
    every: dict[int, SeedPlan] = {}
    for seed, plan in plans.items():
        every[seed] = SeedPlan(plan.encoder, {}, {})
        for arm, stages in plan.arms.items():
            for factor in factors:
                label, folder = tried_name(arm, factor), plan.folders[arm]
                folder = folder.parent.with_name(f"{arm}-x{factor:g}") / folder.name
                every[seed].folders[label] = folder
                every[seed].arms[label] = [
                    dataclasses.replace(with_rates(stage, factor), output=str(folder)) for stage in stages
                ]
    return every


def tried_name(arm: str, factor: float) -> str:
    """As tables and messages say it."""
    return f"{arm}, learning rates x {factor:g}"


def with_rates(experiment: ExperimentConfig, factor: float) -> ExperimentConfig:
    """The experiment with all its learning rates times `factor`."""
    optimizer = experiment.optimizer
    scaled = dataclasses.replace(
        optimizer,
        learning_rate=_times(optimizer.learning_rate, factor),
        learning_rates={component: _times(rate, factor) for component, rate in optimizer.learning_rates.items()},
    )
    return dataclasses.replace(experiment, optimizer=scaled)


def chosen_rates(config: ComparisonConfig, plans: Mapping[int, SeedPlan], cells: Sequence[Cell]) -> dict[str, Any]:
    """The factor of every arm: the one with the highest score, averaged over the tuning seeds; of equals the smallest.

    Args:
        config: of the comparison, with `tune`.
        plans: of tuning_plans.
        cells: every arm with every factor and tuning seed, finished or failed.

    Returns:
        What the report says of it: seeds, factors, metric, and per arm `scores` {factor: score, None where a cell
        failed}, `failed` {factor: its words}, `chosen`, `edge` and `learning_rates` {stage: rate}.

    Raises:
        DataError: cells that have not run, or an arm none of whose rates could be trained.
    """
    assert config.tune is not None
    absent = [cell.name for cell in cells if not cell.finished and cell.failure is None]
    if absent:
        raise DataError(f"the learning rates are not chosen yet, not trained: {', '.join(absent)}")
    factors, average = sorted(config.tune.learning_rate_factors), config.metric.rpartition("/")[2]
    arms: dict[str, Any] = {}
    for arm, stages in next(iter(plans.values())).arms.items():
        scores: dict[float, float | None] = {}
        failed: dict[str, str] = {}
        for factor in factors:
            of = [cell for cell in cells if cell.arm == tried_name(arm, factor)]
            failed |= {f"{factor:g}": cell.failure for cell in of if cell.failure is not None}
            measured = [cell.result()["accuracy"][average] for cell in of if cell.finished]
            scores[factor] = sum(measured) / len(of) if len(measured) == len(of) else None
        chosen = best_factor(scores)
        if chosen is None:
            words = "; ".join(f"x {factor}: {said}" for factor, said in failed.items())
            raise DataError(f"tune: {arm} could be trained with none of its learning rates ({words})")
        arms[arm] = {
            "scores": {f"{factor:g}": score for factor, score in scores.items()},
            "failed": failed,
            "chosen": chosen,
            "edge": chosen in (factors[0], factors[-1]),
            "learning_rates": {s.name: with_rates(s, chosen).optimizer.learning_rate for s in stages},
        }
    return {"seeds": config.tune.seeds, "factors": factors, "metric": config.metric, "arms": arms}


def best_factor(scores: Mapping[float, float | None]) -> float | None:
    """The factor of the highest score, of equals the smallest; None where no score is a finite number."""
    best: tuple[float, float] | None = None
    for factor, score in sorted(scores.items()):
        if score is not None and math.isfinite(score) and (best is None or score > best[1] + ROUNDING):
            best = factor, score
    return None if best is None else best[0]


def _times(rate: float, factor: float) -> float:
    return float(f"{rate * factor:.{DIGITS}g}")
