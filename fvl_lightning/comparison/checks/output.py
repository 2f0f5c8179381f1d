"""Checks that the folder of a comparison does not hold the results of another configuration."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.cell import CELL, RESULT
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import SeedPlan
from fvl_lightning.core.config.fields import defaults_of, keys_that_change
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.launchers.placement import without_placement
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.identity import RunIdentity

SHOWN = 3
"""Keys that a message lists; further ones are counted."""
TUNED = "optimizer.learning_rate"
"""Beginning of the keys that `tune` chooses once its trials have run."""
ADVICE = "give this comparison another `name` or `output`, or train everything again with --fresh"


def check_output(config: ComparisonConfig, folder: Path, plans: Mapping[int, SeedPlan]) -> str:
    """Checks that what is finished in a comparison's folder has the configuration that is planned now.

    Arms and seeds may be new or missing: what they share with the finished cells must be equal. Keys that do not change
    what training computes may differ.

    Returns:
        How many cells are finished.

    Raises:
        DataError: the folder holds another comparison, or a finished cell of another configuration.
    """
    finished = 0
    for seed, plan in plans.items():
        for arm, stages in plan.arms.items():
            stored = _finished_stages(plan.folders[arm])
            if stored is None:
                continue
            finished += 1
            if changed := list(_changes(stored, stages, tuned=config.tune is not None)):
                more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
                raise DataError(
                    f"{folder} holds results of another configuration: in {arm} with seed {seed}, "
                    f"{'; '.join(changed[:SHOWN])}{more}; {ADVICE}"
                )
        if finished and plan.encoder is not None:
            _check_encoder(folder, seed, plan.encoder)
    _check_arms(folder, plans)
    return f"{folder}: {finished} cells are finished" if finished else f"{folder}: nothing is finished yet"


def _finished_stages(folder: Path) -> list[dict[str, Any]] | None:
    """Returns the stages that a cell was trained through; None where it has no result."""
    if not (folder / RESULT).is_file():
        return None
    stages = _read(folder / CELL).get("stages")
    return stages if isinstance(stages, list) else None


def _changes(stored: list[dict[str, Any]], planned: list[ExperimentConfig], tuned: bool) -> Iterator[str]:
    """Yields each key at which a finished cell differs from the plan, with both values."""
    if len(stored) != len(planned):
        yield f"it was trained through {len(stored)} stages, not {len(planned)}"
        return
    for before, experiment in zip(stored, planned, strict=True):
        for key in sorted(_identity(experiment).changed_keys(without_placement(before))):
            if not (tuned and key.startswith(TUNED)):
                now = _value(as_plain(experiment), key)
                yield f"{key} of stage {experiment.name} was {_value(before, key)!r} and is {now!r}"


def _check_encoder(folder: Path, seed: int, encoder: ExperimentConfig) -> None:
    """Raises DataError where the encoder of a seed was trained with another configuration only."""
    runs = [run for run in RunFolder.named(Path(encoder.output), encoder.name) if run.finished]
    changes = [sorted(_identity(encoder).changed_keys(without_placement(run.config))) for run in runs]
    if changes and all(changes):
        key = changes[-1][0]
        before, now = _value(runs[-1].config, key), _value(as_plain(encoder), key)
        raise DataError(
            f"{folder} holds results of another configuration: of the encoder of seed {seed}, {key} was {before!r} and "
            f"is {now!r}; {ADVICE}"
        )


def _check_arms(folder: Path, plans: Mapping[int, SeedPlan]) -> None:
    """Raises DataError where the folder has the report of a comparison that shares no arm with this one."""
    before = _read(folder / "comparison.json").get("arms")
    now = list(next(iter(plans.values())).arms)
    if isinstance(before, Mapping) and before and not set(before) & set(now):
        raise DataError(
            f"{folder} holds the report of another comparison (its arms are {', '.join(before)}, not "
            f"{', '.join(now)}), which would be lost; {ADVICE}"
        )


def _identity(experiment: ExperimentConfig) -> RunIdentity:
    """Returns the identity of an experiment without placement, and without hashes of its inputs, whose change trains
    again."""
    nothing, placement = keys_that_change(experiment, "nothing"), keys_that_change(experiment, "placement")
    return RunIdentity(without_placement(as_plain(experiment)), nothing, placement, {}, defaults_of(experiment))


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _value(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, Mapping) else None
    return plain
