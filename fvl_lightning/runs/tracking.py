"""A training in MLflow: the store is synchronised with the run's folder, during the training and later."""

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from datamodules.base import BatchData
from fvl_lightning.core.config.loading import as_plain, config_hash
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.experiment import ExperimentConfig, LoraConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.stages.base import Stage
from fvl_lightning.tracking.limits import Status
from fvl_lightning.tracking.metrics_log import JsonlLogger, read_metrics
from fvl_lightning.tracking.mlflow_live_sync import LiveSync
from fvl_lightning.tracking.mlflow_sync import RunDescription, SyncReport, send_run
from fvl_lightning.tracking.provenance import provenance
from fvl_lightning.training.fault_tolerance.hang_detection import LostRankError, PeerError
from fvl_lightning.training.fault_tolerance.signals import Preempted

logger = logging.getLogger(__name__)

ENDED: dict[str, Status] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
"""MLflow's status for that of run.json; a run whose process was killed stays `running` in both."""


@contextmanager
def tracked(
    experiment: ExperimentConfig,
    run: RunFolder,
    stage: Stage,
    data: BatchData,
    parent_run_id: str | None,
    tags: Mapping[str, str],
) -> Iterator[JsonlLogger]:
    """Yields the logger of a training loop, whose run ends in MLflow and in run.json as finished, killed or failed."""
    run.record(status="running")
    sync = None
    if experiment.tracked:
        describe(experiment, run, stage, data, parent_run_id, tags)
        sync = live_sync(run)
    try:
        yield JsonlLogger(run.metrics, sync)
    except (KeyboardInterrupt, Preempted, LostRankError):
        end(run, "interrupted", in_mlflow=sync is not None)
        raise
    except BaseException as error:
        end(run, "failed", in_mlflow=sync is not None, error=f"{type(error).__name__}: {error}")
        raise
    end(run, "finished", in_mlflow=sync is not None)


def describe(
    experiment: ExperimentConfig,
    run: RunFolder,
    stage: Stage,
    data: BatchData,
    parent_run_id: str | None,
    tags: Mapping[str, str],
) -> None:
    """Writes tracking.json, which has everything for MLflow but the curves."""
    config, hash_, info = as_plain(experiment), config_hash(experiment), run.info
    every_tag = provenance(config, hash_) | {
        "fvl.stage": experiment.stage.name,
        "fvl.run_folder": str(run.path),
        "fvl.encoder_hash": info["encoder_hash"],
        "fvl.manifest_hash": data.manifest_hash(),
        "fvl.init_from": ", ".join(parent["run_id"] or parent["run"] for parent in info["init_from"]) or "none",
        **tags,
    }
    description = {
        "experiment": experiment.tracking.experiment,
        "run_name": run_name(experiment, run, tags),
        "key": _key(run),
        "parent_run_id": parent_run_id,
        "tags": every_tag,
        "params": curated_params(experiment, stage, run) | cell_params(tags),
        "config": config,
        "dataset": {
            "name": experiment.data.name,
            "digest": data.manifest_hash(),
            "source": str(experiment.data.config.root),
        },
    }
    run.write_tracking(RunDescription.of(experiment.tracking.uri, description))


def _key(run: RunFolder) -> str:
    """Returns the key of a run that is resumed, or a new one; a damaged tracking.json is written anew."""
    if not run.tracking.is_file():
        return uuid.uuid4().hex
    try:
        return run.read_tracking().key
    except DataError as error:
        logger.warning("%s; it is written again", error)
        return uuid.uuid4().hex


def run_name(experiment: ExperimentConfig, run: RunFolder, tags: Mapping[str, str]) -> str:
    """Returns the name in MLflow: the arm, or else the fusion, then the seed, the output folder and the run's own.

    A comparison's output folders have the names of arms and seeds, and `runs` is every experiment's by default, so
    these are left out: gated/seed 0/finetune, or gated/seed 0/ablation/finetune for output=runs/ablation.
    """
    compared, fusion = "fvl.comparison" in tags, experiment.fusion
    what = tags.get("fvl.arm") or ("encoder" if fusion is None else fusion.name)
    output = run.path.parent.name
    inside = [] if compared or output in ("", ExperimentConfig.output) else [output]
    return "/".join([what, f"seed {experiment.seed}", *inside, run.path.name])


def live_sync(run: RunFolder) -> LiveSync:
    """Returns the sync of a run that trains, after a first one; a store that is out of reach is a warning."""
    sync = LiveSync(run.metrics, run.read_tracking().uri, lambda: sync_run(run))
    try:
        sync.sync()
    except DataError as error:
        logger.warning("%s; the run goes on, and what it logs is kept in %s", error, run.path)
    return sync


def end(run: RunFolder, status: str, in_mlflow: bool, **facts: Any) -> None:
    """Records how the run ended, in run.json and in the store; a store that is out of reach is a warning.

    So is a full disk where the run has not finished: the error that ended it is the one to be seen.
    """
    try:
        run.record(status=status, **facts)
    except DataError as error:
        if status == "finished":
            raise
        logger.warning("%s", error)
    try:
        if in_mlflow:
            sync_run(run, ended=time.time_ns() // 1_000_000)
    except DataError as error:
        logger.warning("%s; what it lacks is in %s, and `fvl sync %s` sends it", error, run.path, run.path)


def note_trouble(run: RunFolder, error: PeerError) -> None:
    """Records in the run's folder which ranks end the training, and why."""
    JsonlLogger(run.metrics).note(error.step, ranks=error.ranks, error=str(error))
    if isinstance(error, LostRankError):
        run.record(status="interrupted", error=str(error))


def sync_run(run: RunFolder, ended: int | None = None) -> SyncReport:
    """Sends the parts of the run's folder that the store lacks.

    Args:
        ended: when the run ended, in milliseconds since 1970; by default, when its last metrics were logged.

    Raises:
        DataError: the run was not tracked, or its store cannot be used.
    """
    description = run.read_tracking()
    entries = read_metrics(run.metrics)
    ended = ended or (entries[-1].get("time") if entries else None)
    model = run.model if run.finished else None
    report = send_run(description, run.info.get("mlflow_run_id"), entries, ENDED.get(run.info["status"]), ended, model)
    run.record(mlflow_run_id=report.run_id)
    return report


def track_results(
    run: RunFolder,
    results: dict[str, float],
    tables: dict[str, list[dict[str, Any]]],
    data: BatchData | None = None,
    metric: str | None = None,
) -> None:
    """Adds results and tables to a tracked run; if the store is out of reach, `fvl sync` sends them later.

    Args:
        data: the data module whose test split was scored; MLflow shows it as the dataset of the scores.
        metric: first part of the names of the scores on that split, `<metric>/...`; None without such scores.
    """
    description = replace(run.read_tracking(), results=results, tables=tables)
    if data is not None:
        asked = {"name": f"{description.dataset['name']}/test", "digest": data.store("test").manifest_hash()}
        description.evaluated = description.dataset | asked | ({} if metric is None else {"metric": metric})
    run.write_tracking(description)
    try:
        sync_run(run)
    except DataError as error:
        logger.warning("%s; `fvl sync %s` sends the scores", error, run.path)


def cell_params(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns `arm` and `axis.<key>` from a cell's tags as parameters, by which MLflow draws and groups."""
    return {key.removeprefix("fvl."): tags[key] for key in tags if key == "fvl.arm" or key.startswith("fvl.axis.")}


def curated_params(experiment: ExperimentConfig, stage: Stage, run: RunFolder) -> dict[str, Any]:
    """Returns the few parameters by which runs are sorted and grouped; the whole configuration is an artifact."""
    info = run.info
    adapter = {}
    if info["adapter_bytes"] is not None:
        adapter = {"adapter_bytes": info["adapter_bytes"], "lora_rank": (experiment.lora or LoraConfig()).rank}
    slots = {
        slot: getattr(experiment, slot).name
        for slot in ("stage", "encoder", "fusion", "projector", "language_model", "data")
        if getattr(experiment, slot) is not None
    }
    return slots | {
        "sources": ", ".join(stage.model.encoder.specs),
        "trainable": ", ".join(f"{name}: {mode}" for name, mode in stage.trainable.items()),
        "max_steps": experiment.trainer.max_steps,
        "batch_size": experiment.trainer.batch_size * experiment.trainer.accumulate,
        "learning_rate": experiment.optimizer.learning_rate,
        "optimizer": experiment.optimizer.name,
        "attention": stage.attention.name,
        "seed": experiment.seed,
        "parameters": info["parameters"],
        "trainable_parameters": info["trainable"],
        "trainable_share": round(info["trainable"] / info["parameters"], 4),
        **adapter,
    }
