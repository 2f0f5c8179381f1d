"""The MLflow run above those of a comparison: one for its folder, however often the comparison is started."""

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.report.figures import mass_figure
from fvl_lightning.comparison.report.report import FILES
from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import as_plain, config_hash
from fvl_lightning.core.errors import DataError
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.null import NullTracker
from fvl_lightning.tracking.provenance import provenance
from fvl_lightning.tracking.tracker import Tracker
from fvl_lightning.training.fault_tolerance.signals import Preempted

PARENT = "parent.json"
"""The file in a comparison's folder that names its run."""


@contextmanager
def tracked_parent(config: ComparisonConfig, folder: Path, fresh: bool) -> Iterator[Tracker]:
    """The parent; it also creates the store before several processes open it."""
    if not config.tracking.enabled:
        yield NullTracker()
        return
    plain = as_plain(config)
    tags = provenance(plain, config_hash(plain)) | {
        "fvl.kind": "comparison",
        "fvl.comparison": config.name,
        "fvl.lineage": config.lineage,
        "fvl.metric": config.metric,
    }
    tracker = _started(config, folder / PARENT, tags, fresh)
    tracker.log_config(plain)
    try:
        yield tracker
    except (KeyboardInterrupt, Preempted):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")


def read_parent(folder: Path) -> dict[str, Any]:
    """`store` (its address and the experiment) and `run_id` of a comparison's parent; DataError where it has none."""
    try:
        return json.loads((folder / PARENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder} is no folder of a comparison that was tracked ({PARENT} is missing there)") from None


def _started(config: ComparisonConfig, file: Path, tags: dict[str, str], fresh: bool) -> Tracker:
    """The run of an earlier start, or else a new one: what was trained before lies under it."""
    uri, experiment = config.tracking.uri, config.tracking.experiment
    if file.is_file() and not fresh:
        earlier = json.loads(file.read_text(encoding="utf-8"))
        if earlier["store"] == [uri, experiment]:
            with contextlib.suppress(DataError):  # the store has been replaced since
                return Tracker.start(uri, experiment, config.name, tags, run_id=earlier["run_id"])
    tracker = Tracker.start(uri, experiment, config.name, tags)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps({"store": [uri, experiment], "run_id": tracker.run_id}))
    return tracker


def log_report(tracker: Tracker, report: dict[str, Any], folder: Path) -> None:
    """Report and figures, the arms' scores, and what they show as tags to filter by."""
    for name in FILES:
        if (folder / name).is_file():
            tracker.log_artifact(folder / name)
    masses = {}
    for arm, entry in report["arms"].items():
        last = list(entry["runs"].values())[-1]
        if curves := RunFolder(Path(last)).source_weights():
            masses[arm] = curves
    if masses:
        tracker.log_figure(mass_figure(masses), "source_mass.png")
    average = report["metric"].rpartition("/")[2]
    scores: dict[str, float] = {}
    for arm, entry in report["arms"].items():
        scores |= {f"{arm}/accuracy_{average}": entry["accuracy"][average], f"{arm}/same_start": entry["same_start"]}
    verdicts = {}
    for contrast in report["statistics"]["contrasts"]:
        verdicts[f"fvl.verdict.{contrast['arm']}"] = contrast["verdict"]
        scores |= {f"{contrast['arm']}/{name}": contrast[name] for name in ("estimate", "standard_error", "p_holm")}
    tracker.log_metrics({name: value for name, value in scores.items() if isfinite(value)})
    tracker.set_tags(verdicts | {"fvl.baseline": report["statistics"]["baseline"]})
