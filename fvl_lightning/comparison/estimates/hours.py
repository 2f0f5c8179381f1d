"""Hours of trainings: those of finished runs, measured steps, or operations at the speed of a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fvl_lightning.comparison.cell import RESULT
from fvl_lightning.comparison.estimates.costs import StageCost
from fvl_lightning.comparison.estimates.measured_steps import MeasuredSteps
from fvl_lightning.core.errors import DataError
from fvl_lightning.profiling.devices import SUSTAINED, Device
from fvl_lightning.runs.folder import RunFolder

HOUR = 3600


@dataclass(frozen=True)
class Duration:
    """Hours of a part, and how they are known."""

    hours: float | None
    source: str


@dataclass(frozen=True)
class Clock:
    """Finds the hours of trainings on a device.

    Args:
        device: the device that is planned for.
        sustained: operations a second that it sustains, as the user says; None for a share of its published peak.
        measured: steps that were measured.
    """

    device: Device
    sustained: float | None
    measured: MeasuredSteps

    def training(self, cost: StageCost, finished: Sequence[Path]) -> Duration:
        """Returns the hours of one training on all its devices together.

        Args:
            cost: the costs of the training.
            finished: folders of cells of the same arm whose results are there.
        """
        trainer = cost.experiment.trainer
        if seconds := _finished_seconds(finished, cost.experiment.name):
            return Duration(fmean(seconds) / HOUR, "those of finished cells")
        if (step := self.measured.seconds(cost)) is not None:
            validated = cost.flops / (cost.samples * cost.batch.executed / cost.rows.counted.rows)
            return Duration(trainer.max_steps * step * validated / HOUR, "measured here")
        return self.computed(cost.flops / trainer.world_size, trainer.precision)

    def computed(self, flops: float, precision: str) -> Duration:
        """Returns the hours that one device needs for `flops` operations; None where its speed is not known."""
        speed = self.sustained or self.device.speed(precision)
        if speed is None:
            return Duration(None, "not known")
        return Duration(flops / speed / HOUR, "computed")

    def assumption(self, precision: str) -> str | None:
        """Returns where the speed of computed hours comes from, as a sentence; None where there is none."""
        if self.sustained is not None:
            return f"Computed hours take {self.sustained / 1e12:,.3g} TFLOP/s a device, as --device-tflops says."
        speed = self.device.speed(precision)
        if speed is None:
            return None
        peak = speed / SUSTAINED / 1e12
        return (
            f"Computed hours assume that {self.device.name} sustains {SUSTAINED:.0%} of its published peak of "
            f"{peak:,.3g} TFLOP/s in {precision}: an assumption, not a measurement."
        )


def _finished_seconds(folders: Sequence[Path], stage: str) -> list[float]:
    """Returns the seconds that finished cells have trained a stage."""
    found: list[float] = []
    for folder in folders:
        if not (folder / RESULT).is_file():
            continue
        try:
            runs = [run for run in RunFolder.named(folder, stage) if run.finished]
            seconds = runs[-1].info.get("seconds") if runs else None
        except DataError:
            continue
        if seconds:
            found.append(float(seconds))
    return found
