"""The MLflow parent run of a comparison; every start of the comparison in a folder reuses it."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.cell import CELL_TAG, Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.report.description import description
from fvl_lightning.comparison.report.report import FILES
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.comparison.result_files.statistics import TaskContrast
from fvl_lightning.comparison.scoring.names import without_number
from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import as_plain, config_hash
from fvl_lightning.core.errors import DataError, first_line
from fvl_lightning.core.experiment import TrackingConfig
from fvl_lightning.reporting.tables import markdown_text
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.limits import Status
from fvl_lightning.tracking.links import CURRENT_TAG, METRIC_TAG, cells_view, comparison_pages, pages_address
from fvl_lightning.tracking.null import NullTracker
from fvl_lightning.tracking.provenance import provenance
from fvl_lightning.tracking.tracker import Tracker
from fvl_lightning.training.fault_tolerance.signals import Preempted

logger = logging.getLogger(__name__)

PARENT = "parent.json"
"""File in a comparison's folder that names its MLflow run."""
DESCRIPTION_TAG = "mlflow.note.content"
"""The tag that MLflow's pages show as a run's description."""
REPORTED_TAG = "fvl.reported"
"""Tag with the hash of the configuration whose results the run shows."""
VERDICT_TAG = "fvl.verdict."
"""Beginning of the tags that have the verdicts; the rest is the arm."""


@contextmanager
def tracked_parent(
    config: ComparisonConfig, tracking: TrackingConfig, folder: Path, fresh: bool
) -> Iterator[Tracker]:
    """Opens the parent run and ends it with its status; creates the store before several processes open it.

    Results of another configuration are removed from the run at once, since this one's come much later, or never.

    Args:
        config: the comparison.
        tracking: that of its stages.
        folder: the comparison's folder.
        fresh: whether to begin a new run, which takes the place of an earlier one.
    """
    if not tracking.enabled:
        yield NullTracker()
        return
    plain = {**config.recorded(), "tracking": as_plain(tracking)}
    hash_ = config_hash(plain)
    tags = {key: value for key, value in provenance(plain, hash_).items() if key != "fvl.seed"} | {
        "fvl.kind": "comparison",
        "fvl.comparison": config.name,
        "fvl.lineage": config.lineage,
        "fvl.seeds": ", ".join(map(str, config.seeds)),
        CURRENT_TAG: "true",
        METRIC_TAG: config.metric,
    }
    tracker = _started([tracking.uri, tracking.experiment, config.name], folder, tags, fresh)
    known = tracker.tags()
    if known.get(REPORTED_TAG) != hash_:
        verdicts = [name for name in known if name.startswith(VERDICT_TAG)]
        tracker.delete_tags([*verdicts, *({REPORTED_TAG, "fvl.seed"} & known.keys())])
        tracker.forget_results()
        tracker.set_tags({DESCRIPTION_TAG: "**In training.** The verdict follows when the cells are scored."})
    tracker.log_config(plain)
    try:
        yield tracker
    except (KeyboardInterrupt, Preempted):
        _end(tracker, "KILLED", "**Stopped.** The same `fvl compare` goes on from here.")
        raise
    except BaseException as error:
        _end(tracker, "FAILED", f"**Failed:** {markdown_text(first_line(error))}")
        raise
    tracker.finish("FINISHED")


def _end(tracker: Tracker, status: Status, why: str) -> None:
    """Ends the run; `why` is its description unless there are results. An error of the store hides no other one."""
    try:
        if REPORTED_TAG not in tracker.tags():
            tracker.set_tags({DESCRIPTION_TAG: why})
        tracker.finish(status)
    except DataError as error:
        logger.warning("%s; the comparison is still shown as running there", error)


def read_parent(folder: Path) -> dict[str, Any]:
    """Reads `store` (address and experiment) and `run_id` of a comparison's parent run; DataError where it has none."""
    try:
        parent = json.loads((folder / PARENT).read_text(encoding="utf-8"))
        uri, experiment = parent["store"]
        if all(isinstance(text, str) and text for text in (uri, experiment, parent["run_id"])):
            return {"store": [uri, experiment], "run_id": parent["run_id"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass
    raise DataError(f"{folder} is not the folder of a tracked comparison ({PARENT} is missing or damaged)")


def _started(place: Sequence[str], folder: Path, tags: dict[str, str], fresh: bool) -> Tracker:
    """Returns the parent run of an earlier start, under which earlier cells are tracked, or else a new one.

    Args:
        place: the store, the experiment in it, and the run's name.
        folder: the comparison's folder.
        tags: set on the run.
        fresh: whether to begin a new one in any case.
    """
    uri, experiment, name = place
    store = [uri, experiment]
    with contextlib.suppress(DataError):  # there is none, or its store has been replaced since
        earlier = read_parent(folder)
        if earlier["store"] == store:
            if not fresh:
                return Tracker.start(uri, experiment, name, tags, run_id=earlier["run_id"])
            retire(Tracker.of(uri, experiment, earlier["run_id"]))
    tracker = Tracker.start(uri, experiment, name, tags)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / PARENT, json.dumps({"store": store, "run_id": tracker.run_id}))
    return tracker


def retire(parent: Tracker) -> None:
    """Marks a comparison's run and all runs below it as earlier ones, since a new run takes its place."""
    for run in parent.children():
        if run.data.tags.get(CURRENT_TAG) != "false":
            parent.tag_child(run.info.run_id, CURRENT_TAG, "false")
    parent.set_tags({CURRENT_TAG: "false"})


def mark_current(parent: Tracker, cells: Sequence[Cell], encoders: Mapping[int, RunFolder | None]) -> None:
    """Marks the runs below a comparison's run: current are those of these cells and encoders, and no others.

    A store that is out of reach is a warning.

    Args:
        parent: the comparison's run.
        cells: every arm with every seed. The runs of a cell are those in its result; without a result they are those
            that its process has started.
        encoders: {seed: the encoder that the arms share}.
    """
    used = {cell.key: cell.result_runs() for cell in cells}
    runs = [RunFolder(Path(path)) for paths in used.values() for path in paths]
    runs += [encoder for encoder in encoders.values() if encoder is not None]
    current = {run.info.get("mlflow_run_id") for run in runs}
    keys = {key for key, paths in used.items() if not paths}
    named = {cell.spec.tags["fvl.comparison"] for cell in cells}
    try:
        for run in parent.children():
            tags = run.data.tags
            if tags.get("fvl.comparison") in named:
                mark = "true" if run.info.run_id in current or tags.get(CELL_TAG) in keys else "false"
                if tags.get(CURRENT_TAG) != mark:
                    parent.tag_child(run.info.run_id, CURRENT_TAG, mark)
    except DataError as error:
        logger.warning("%s; runs of an earlier configuration are not marked there", error)


def log_report(tracker: Tracker, comparison: Comparison, folder: Path, missing: Sequence[str] = ()) -> None:
    """Logs report and figures, the arms' scores, the verdicts as tags and as description, and the view of the cells.

    Args:
        tracker: the comparison's run.
        comparison: the results.
        folder: has the report's files.
        missing: what is not in the results, such as failed cells.
    """
    for name in FILES:
        if (folder / name).is_file():
            tracker.log_artifact(folder / name)
    scores = {name: value for name, value in arm_metrics(comparison).items() if isfinite(value)}
    tracker.forget_results(but=scores)
    tracker.log_results(scores)
    verdicts = {f"{VERDICT_TAG}{contrast.arm}": contrast.verdict for contrast in comparison.statistics.contrasts}
    verdicts |= {f"{VERDICT_TAG}{named}": contrast.verdict for named, contrast in task_contrasts(comparison).items()}
    known = tracker.tags()
    tracker.delete_tags([name for name in known if name.startswith(VERDICT_TAG) and name not in verdicts])
    pages = {name: address[address.index("#") :] for name, address in comparison.mlflow.pages.items()}
    tags = {DESCRIPTION_TAG: description(comparison, pages, missing), "fvl.baseline": comparison.statistics.baseline}
    tracker.set_tags(verdicts | tags | {REPORTED_TAG: known.get("fvl.config_hash", "")})


def arm_metrics(comparison: Comparison) -> dict[str, float]:
    """Returns the metrics of a comparison's run: `<what>/<arm>`, so that MLflow shows the arms side by side."""
    arms, contrasts = comparison.arms, comparison.statistics.contrasts
    return {
        **{f"score/{arm}": result.score(comparison.metric) for arm, result in arms.items()},
        **{f"sd/{summary.arm}": summary.sd for summary in comparison.statistics.arms},
        **{f"difference/{contrast.arm}": contrast.estimate for contrast in contrasts},
        **{f"p_holm/{contrast.arm}": contrast.p_holm for contrast in contrasts},
        **{f"standard_error/{contrast.arm}": contrast.standard_error for contrast in contrasts},
        **{f"same_start/{arm}": result.same_start for arm, result in arms.items()},
        **task_metrics(comparison),
    }


def task_metrics(comparison: Comparison) -> dict[str, float]:
    """Returns the scores on tasks, `tasks/<task>/<arm>` and `macro/<average>/<arm>`, and the family's contrasts."""
    names = comparison.evaluation.scores() if comparison.evaluation else []
    contrasts = task_contrasts(comparison)
    return {
        **{
            f"{without_number(name)}/{arm}": result.score(name)
            for name in names
            for arm, result in comparison.arms.items()
        },
        **{f"difference/{named}": contrast.estimate for named, contrast in contrasts.items()},
        **{f"p_adjusted/{named}": contrast.p_adjusted for named, contrast in contrasts.items()},
    }


def task_contrasts(comparison: Comparison) -> dict[str, TaskContrast]:
    """Returns {tasks/<task>/<arm>: contrast} of the family of tasks; of other pairs, <arm> - <other> for the arm."""
    tasks, baseline = comparison.statistics.tasks, comparison.statistics.baseline
    return {
        f"{without_number(one.score)}/{one.arm}" + ("" if one.against == baseline else f" - {one.against}"): one
        for one in (tasks.family.contrasts if tasks else ())
    }


def link_pages(tracker: Tracker, uri: str, metric: str) -> dict[str, str]:
    """Stores the view of a comparison's cells, and returns {what is shown: address} of its pages.

    Args:
        tracker: the comparison's run; without a run there are no pages.
        uri: its store.
        metric: the score that the arms are compared by.
    """
    if not tracker.run_id:
        return {}
    tracker.set_experiment_tag(*cells_view(tracker.run_id, metric))
    return comparison_pages(uri, tracker.run_id, pages_address(uri), metric)
