"""Tuning of learning rates: every arm tries the same factors, with other seeds, on the validation split."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvl_lightning.comparison.arms import TUNING_FOLDER
from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig, TuneConfig
from fvl_lightning.comparison.plan import SeedPlan, experiments
from fvl_lightning.comparison.result_files.comparison import ArmTuning, Tuning
from fvl_lightning.comparison.runner import Runner
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.metrics.lookup import metric_of

RATE_DIGITS = 12
"""Significant digits of a learning rate, so that 0.003 times 0.3 is 0.0009."""
FACTOR_AXIS = "learning_rate_factor"
"""Name of the factor among the axes of a trial, in its MLflow tags."""
SCORE_TOLERANCE = 1e-9
"""Scores that differ by less count as equal."""


def tuning_plans(config: ComparisonConfig, path: Path, folder: Path) -> dict[int, SeedPlan]:
    """Returns {tuning seed: the arms as the reported seeds train them}; empty where nothing is tuned."""
    return experiments(config, path, folder / TUNING_FOLDER, config.tune.seeds) if config.tune else {}


def tune(
    runner: Runner,
    plans: Mapping[int, SeedPlan],
    reported: Mapping[int, SeedPlan],
    values: Mapping[str, Mapping[str, str]],
) -> Tuning | None:
    """Trains every arm with every factor, and gives the `reported` arms the best learning rates.

    Args:
        runner: runs the cells.
        plans: those of tuning_plans.
        reported: {seed: the arms that are compared}, changed in place.
        values: {arm: values that it sets}.

    Returns:
        What chosen_rates returns; None where nothing is tuned.

    Raises:
        DataError: cells have not run, or an arm could not be trained with any factor.
    """
    settings = runner.config.tune
    if settings is None:
        return None
    factors = settings.learning_rate_factors
    axes = {trial_name(arm, f): {**values[arm], FACTOR_AXIS: str(f)} for arm in values for f in factors}
    cells, _ = runner.run(trials(plans, factors), axes, "validation")
    tuning = chosen_rates(settings, settings.metric or runner.config.metric, plans, cells)
    for plan in reported.values():
        for arm, stages in plan.arms.items():
            plan.arms[arm] = [scale_rates(stage, tuning.arms[arm].chosen) for stage in stages]
    for arm, tried in tuning.arms.items():
        line = f"{arm}: learning rates x {tried.chosen:g}, chosen on the validation split"
        runner.console.print(line, soft_wrap=True)
    return tuning


def trials(plans: Mapping[int, SeedPlan], factors: Sequence[float]) -> dict[int, SeedPlan]:
    """Returns {tuning seed: every arm with every factor, as an arm of its own}."""
    by_seed: dict[int, SeedPlan] = {}
    for seed, plan in plans.items():
        by_seed[seed] = SeedPlan(plan.encoder, {}, {})
        for arm, stages in plan.arms.items():
            for factor in factors:
                label, folder = trial_name(arm, factor), plan.folders[arm]
                folder = folder.parent.with_name(f"{arm}-x{factor:g}") / folder.name
                by_seed[seed].folders[label] = folder
                by_seed[seed].arms[label] = [
                    dataclasses.replace(scale_rates(stage, factor), output=str(folder)) for stage in stages
                ]
    return by_seed


def trial_name(arm: str, factor: float) -> str:
    """Returns the name of a trial in tables and messages."""
    return f"{arm}, learning rates x {factor:g}"


def scale_rates(experiment: ExperimentConfig, factor: float) -> ExperimentConfig:
    """Returns the experiment with all its learning rates times `factor`."""
    optimizer = experiment.optimizer
    scaled = dataclasses.replace(
        optimizer,
        learning_rate=_times(optimizer.learning_rate, factor),
        learning_rates={component: _times(rate, factor) for component, rate in optimizer.learning_rates.items()},
    )
    return dataclasses.replace(experiment, optimizer=scaled)


def chosen_rates(
    settings: TuneConfig, metric: str, plans: Mapping[int, SeedPlan], cells: Sequence[Cell]
) -> Tuning:
    """Chooses the factor of every arm: the one with the best score, averaged over the tuning seeds.

    Among equal scores the smallest factor is chosen.

    Args:
        settings: seeds and factors.
        metric: the score to choose by.
        plans: those of tuning_plans.
        cells: every arm with every factor and tuning seed, finished or failed.

    Raises:
        DataError: cells have not run, or an arm could not be trained with any factor.
    """
    absent = [cell.name for cell in cells if not cell.finished and cell.failure is None]
    if absent:
        raise DataError(f"the learning rates are not chosen yet, not trained: {', '.join(absent)}")
    factors, better = sorted(settings.learning_rate_factors), metric_of(metric).higher_is_better
    arms: dict[str, ArmTuning] = {}
    for arm, stages in next(iter(plans.values())).arms.items():
        scores: dict[float, float | None] = {}
        failed: dict[str, str] = {}
        for factor in factors:
            tried = [cell for cell in cells if cell.arm == trial_name(arm, factor)]
            failed |= {f"{factor:g}": cell.failure for cell in tried if cell.failure is not None}
            measured = [cell.trial().score(metric) for cell in tried if cell.finished]
            scores[factor] = sum(measured) / len(tried) if len(measured) == len(tried) else None
        chosen = best_factor(scores, better)
        if chosen is None:
            reasons = "; ".join(f"x {factor}: {reason}" for factor, reason in failed.items())
            raise DataError(f"tune: {arm} could be trained with none of its learning rates ({reasons})")
        arms[arm] = ArmTuning(
            scores={f"{factor:g}": score for factor, score in scores.items()},
            failed=failed,
            chosen=chosen,
            edge=chosen in (factors[0], factors[-1]),
            learning_rates={stage.name: scale_rates(stage, chosen).optimizer.learning_rate for stage in stages},
        )
    return Tuning(settings.seeds, factors, metric, arms)


def best_factor(scores: Mapping[float, float | None], higher_is_better: bool = True) -> float | None:
    """Returns the factor with the best score, among equals the smallest; None where no score is a finite number."""
    best: tuple[float, float] | None = None
    for factor, score in sorted(scores.items()):
        if score is None or not math.isfinite(score):
            continue
        gain = score if higher_is_better else -score
        if best is None or gain > best[1] + SCORE_TOLERANCE:
            best = factor, gain
    return None if best is None else best[0]


def _times(rate: float, factor: float) -> float:
    return float(f"{rate * factor:.{RATE_DIGITS}g}")
