"""Adds a report, and the number of each source, to the run in MLflow that it is about."""

import logging
from pathlib import Path

from fvl_lightning.attribution.report import Explanation
from fvl_lightning.comparison.tracking import PARENT, read_parent
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.tasks.tracking import logged_name
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.tracking import track_results
from fvl_lightning.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

PREFIX = "explain"
"""The first part of the names of the numbers, and the folder of the report among the run's artifacts."""


def track_run(run: RunFolder, explained: Explanation) -> None:
    """Adds the numbers `explain/<section>/<source>` and the report to a run, if that run is tracked.

    A store that is out of reach is a warning: `fvl sync` sends the numbers, and `fvl explain` again the report.
    """
    if not run.tracking.is_file():
        return
    before = run.read_tracking()
    others = {name: value for name, value in before.results.items() if not name.startswith(f"{PREFIX}/")}
    numbers = {logged_name(PREFIX, *name.split("/", 1)): value for name, value in explained.numbers.items()}
    track_results(run, others | numbers, before.tables)
    run_id = run.info.get("mlflow_run_id")
    if run_id is not None:  # a store that was never reached has no run yet
        _send(before.uri, before.experiment, run_id, explained)


def track_comparison(folder: Path, explained: Explanation) -> None:
    """Adds the report to the run of a comparison, if that is tracked; a store that is out of reach is a warning."""
    if (folder / PARENT).is_file():
        parent = read_parent(folder)
        uri, experiment = parent["store"]
        _send(uri, experiment, parent["run_id"], explained)


def _send(uri: str, experiment: str, run_id: str, explained: Explanation) -> None:
    try:
        Tracker.of(uri, experiment, run_id).log_folder(explained.folder, PREFIX)
    except DataError as error:
        again = f"`fvl explain {explained.reference}`"
        logger.warning("%s; the report is in %s, and %s sends it", error, explained.folder, again)
