"""Runs of the stage alignment_probe as what `fvl explain` is asked about: all of them in one report."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from fvl_lightning.attribution.alignment.measured import STAGE, Progress, check_comparable
from fvl_lightning.attribution.alignment.section import NAME, alignment_section
from fvl_lightning.attribution.report import Explanation
from fvl_lightning.attribution.request import ExplainRequest
from fvl_lightning.attribution.tracking import track_run
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.reporting.section import Section
from fvl_lightning.runs.folder import RunFolder


class ProbedRuns:
    """Runs of the stage alignment_probe, which are compared with each other.

    Raises:
        ConfigError: a run is not finished, or the runs cannot be compared.
    """

    there: Sequence[str] = (NAME,)

    def __init__(self, runs: Sequence[RunFolder]) -> None:
        check_comparable(runs)
        self.runs = runs
        self.folder = runs[0].path
        """That of the first run."""

    def sections(
        self, names: Sequence[str], request: ExplainRequest, progress: Progress
    ) -> tuple[list[Section], dict[str, str]]:
        """Measures the validation split; the questions of the request do not matter."""
        about = {
            "runs": ", ".join(str(run.path) for run in self.runs),
            "measured": "all pairs of an image and a caption of the split validation",
        }
        return [alignment_section(self.runs, request.accelerator, progress)], about

    def track(self, explained: Explanation) -> None:
        """Adds the report to every run."""
        for run in self.runs:
            track_run(run, explained)


def probed_runs(references: Sequence[str]) -> ProbedRuns | None:
    """Returns the runs, if they are of the stage alignment_probe; None if none of the references is.

    Raises:
        ConfigError: some are, and others are not; or as of ProbedRuns.
    """
    runs: list[RunFolder] = []
    for reference in references:
        if (Path(reference) / "comparison.json").is_file():
            continue
        with contextlib.suppress(DataError):  # a mistake that is explained elsewhere
            run = RunFolder.open(reference)
            runs += [run] if run.info["stage"] == STAGE else []
    if runs and len(runs) < len(references):
        raise ConfigError(
            f"RUN_OR_COMPARISON: {runs[0].path} is a run of {STAGE}; such runs are compared with each other alone, "
            "explain the others by themselves"
        )
    return ProbedRuns(runs) if runs else None
