"""Checks that the arms of a comparison share encoder, samples and initial weights."""

from collections.abc import Mapping
from math import prod
from typing import Any

from fvl_lightning.core.errors import DataError
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.components import component_of


def check_same_encoder(seed: int, encoder: RunFolder | None, by_arm: Mapping[str, Mapping[str, Any]]) -> None:
    """DataError where arms of a seed stand on different encoders."""
    hashes = {arm: result["encoder_hash"] for arm, result in by_arm.items()}
    shared = next(iter(hashes.values())) if encoder is None else encoder.info["encoder_hash"]
    others = [f"{arm} has {found}" for arm, found in hashes.items() if found != shared]
    if others:
        raise DataError(f"the arms of seed {seed} do not share one encoder: {', '.join(others)}, not {shared}")


def check_same_samples(stage: str, runs: dict[str, RunFolder]) -> None:
    """DataError where two arms did not train on the same samples at the same step."""
    seen: dict[int, tuple[str, float]] = {}
    for arm, run in runs.items():
        for step, keys in run.curve("data/step_keys"):
            other, theirs = seen.setdefault(step, (arm, keys))
            if keys != theirs:
                raise DataError(
                    f"arms {other} and {arm} trained on different samples at step {step} of {stage}; the comparison "
                    "would be unfair, train both again with --fresh"
                )


def check_same_start(
    seed: int,
    baseline: str,
    by_arm: Mapping[str, dict[str, Any]],
    differing: Mapping[str, Mapping[str, Any]],
) -> None:
    """DataError where a component that no swept key changes started from other weights; counts what started equal.

    Modules of one name and equal shapes are to start equal (the module is the unit of seeded initialisation). Every
    result gets `same_start`: the share of its parameters that started as the baseline's did.
    """
    reference = baseline if baseline in by_arm else next(iter(by_arm))
    theirs = by_arm[reference]["initial"]
    for arm, result in by_arm.items():
        changed = {key.partition(".")[0] for key in (*differing[arm], *differing[reference])}
        ours = result["initial"]
        unlike = {
            name.rpartition(".")[0]
            for name in {*ours, *theirs}
            if name not in ours or name not in theirs or ours[name][0] != theirs[name][0]
        }
        equal = total = 0
        for name, (shape, values) in ours.items():
            total += prod(shape)
            if theirs.get(name) == [shape, values]:
                equal += prod(shape)
            elif name.rpartition(".")[0] not in unlike and component_of(name) not in changed:
                raise DataError(
                    f"arms {reference} and {arm} of seed {seed} started from other weights at {name}; the comparison "
                    "would be unfair, train both again with --fresh"
                )
        result["same_start"] = equal / max(1, total)
