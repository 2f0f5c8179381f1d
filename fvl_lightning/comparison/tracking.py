"""The MLflow parent run of a comparison: one for its folder, however often the comparison is started."""

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.report.figures import source_weight_figure
from fvl_lightning.comparison.report.report import FILES
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import as_plain, config_hash
from fvl_lightning.core.errors import DataError
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.links import METRIC_TAG
from fvl_lightning.tracking.null import NullTracker
from fvl_lightning.tracking.provenance import provenance
from fvl_lightning.tracking.tracker import Tracker
from fvl_lightning.training.fault_tolerance.signals import Preempted

PARENT = "parent.json"
"""File in a comparison's folder that names its MLflow run."""


@contextmanager
def tracked_parent(config: ComparisonConfig, folder: Path, fresh: bool) -> Iterator[Tracker]:
    """Opens the parent run and ends it with its status; creates the store before several processes open it."""
    if not config.tracking.enabled:
        yield NullTracker()
        return
    plain = as_plain(config)
    tags = provenance(plain, config_hash(plain)) | {
        "fvl.kind": "comparison",
        "fvl.comparison": config.name,
        "fvl.lineage": config.lineage,
        METRIC_TAG: config.metric,
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
    """Reads `store` (address and experiment) and `run_id` of a comparison's parent run; DataError where it has none."""
    try:
        return json.loads((folder / PARENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder} is not the folder of a tracked comparison ({PARENT} is missing)") from None


def _started(config: ComparisonConfig, file: Path, tags: dict[str, str], fresh: bool) -> Tracker:
    """Returns the parent run of an earlier start, under which earlier cells are tracked, or else a new one."""
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


def log_report(tracker: Tracker, comparison: Comparison, folder: Path) -> None:
    """Logs report and figures, the arms' scores, and the verdicts as tags to filter by."""
    for name in FILES:
        if (folder / name).is_file():
            tracker.log_artifact(folder / name)
    weights = {}
    for arm, result in comparison.arms.items():
        if curves := RunFolder(Path(list(result.runs.values())[-1])).source_weights():
            weights[arm] = curves
    if weights:
        tracker.log_figure(source_weight_figure(weights), "source_mass.png")
    name = comparison.metric.replace("/", "_")
    scores: dict[str, float] = {}
    for arm, result in comparison.arms.items():
        scores |= {f"{arm}/{name}": result.score(comparison.metric), f"{arm}/same_start": result.same_start}
    verdicts = {}
    for contrast in comparison.statistics.contrasts:
        verdicts[f"fvl.verdict.{contrast.arm}"] = contrast.verdict
        scores |= {
            f"{contrast.arm}/estimate": contrast.estimate,
            f"{contrast.arm}/standard_error": contrast.standard_error,
            f"{contrast.arm}/p_holm": contrast.p_holm,
        }
    tracker.log_results({name: value for name, value in scores.items() if isfinite(value)})
    tracker.set_tags(verdicts | {"fvl.baseline": comparison.statistics.baseline})
