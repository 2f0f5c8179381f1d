"""Checks that the arms of a comparison share encoder, samples and initial weights."""

from collections.abc import Mapping
from math import prod
from typing import Any

from fvl_lightning.comparison.result_files.cell import CellResult
from fvl_lightning.core.errors import DataError
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.components import component_of


def check_same_encoder(seed: int, encoder: RunFolder | None, by_arm: Mapping[str, CellResult]) -> None:
    """Raises DataError where arms of a seed were trained with different encoders."""
    hashes = {arm: result.encoder_hash for arm, result in by_arm.items()}
    shared = next(iter(hashes.values())) if encoder is None else encoder.info["encoder_hash"]
    others = [f"{arm} has {own}" for arm, own in hashes.items() if own != shared]
    if others:
        raise DataError(f"the arms of seed {seed} do not share one encoder: {', '.join(others)}, not {shared}")


def check_same_samples(stage: str, runs: Mapping[str, RunFolder]) -> None:
    """Raises DataError where two arms did not train on the same samples at the same step."""
    seen: dict[int, tuple[str, float]] = {}
    for arm, run in runs.items():
        for step, keys in run.curve("data/step_keys"):
            other, expected = seen.setdefault(step, (arm, keys))
            if keys != expected:
                raise DataError(
                    f"arms {other} and {arm} trained on different samples at step {step} of {stage}; the comparison "
                    "would be unfair, train both again with --fresh"
                )


def check_same_start(
    seed: int,
    baseline: str,
    by_arm: Mapping[str, CellResult],
    differing: Mapping[str, Mapping[str, Any]],
) -> dict[str, float]:
    """Checks that what no swept key changes started from the same weights; counts what started equal.

    Modules of one name and equal shapes must start equal (seeds are drawn per module).

    Args:
        seed: the seed of the cells.
        baseline: the arm to compare with; the first one where it has no result.
        by_arm: {arm: result}.
        differing: {arm: {configuration key in which it differs from the baseline: values}}.

    Returns:
        {arm: fraction of its parameters that started with the baseline's values}.

    Raises:
        DataError: a component started from other weights though no key of it is swept.
    """
    reference = baseline if baseline in by_arm else next(iter(by_arm))
    expected = by_arm[reference].initial
    shares: dict[str, float] = {}
    for arm, result in by_arm.items():
        changed = {key.partition(".")[0] for key in (*differing[arm], *differing[reference])}
        initial = result.initial
        unlike = {
            name.rpartition(".")[0]
            for name in {*initial, *expected}
            if name not in initial or name not in expected or initial[name][0] != expected[name][0]
        }
        equal = total = 0
        for name, (shape, values) in initial.items():
            total += prod(shape)
            if expected.get(name) == (shape, values):
                equal += prod(shape)
            elif name.rpartition(".")[0] not in unlike and component_of(name) not in changed:
                raise DataError(
                    f"arms {reference} and {arm} of seed {seed} started from other weights at {name}; the comparison "
                    "would be unfair, train both again with --fresh"
                )
        shares[arm] = equal / max(1, total)
    return shares
