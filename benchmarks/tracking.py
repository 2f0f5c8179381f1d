"""Measures the cost of logging per optimiser step: a line of the metrics log, and its share of every sync to MLflow.

    python benchmarks/tracking.py [--steps 400]

A step is 90 ms of sleep (about the demo's step on two cores with cached features) and then what a stage logs: twelve
metrics. Compared are the demo's setting (every tenth step), every step, and every step through MLflow's own log_metric,
one call per metric. The store is a new sqlite file. Takes about a minute and a half; the table is also saved, with the
machine it was measured on, in benchmarks/results/tracking.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mlflow import MlflowClient
from recording import record
from rich.console import Console
from rich.table import Table

from fvl_lightning.tracking.metrics_log import JsonlLogger, read_metrics
from fvl_lightning.tracking.mlflow_live_sync import LiveSync
from fvl_lightning.tracking.mlflow_sync import RunDescription, send_run
from fvl_lightning.tracking.store import resolve_uri
from fvl_lightning.tracking.tracker import Tracker

STEP_SECONDS = 0.09
STEPS = 400
UNBUFFERED_STEPS = 20
METRICS = [f"train/metric_{number}" for number in range(12)]


def main() -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps; of log_metric at most {UNBUFFERED_STEPS}")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        rows = {
            "metrics log and sync, every 10th step": measure_log(uri, steps, every=10),
            "metrics log and sync, every step": measure_log(uri, steps, every=1),
            "one log_metric each, every step": measure_unbuffered(uri, min(steps, UNBUFFERED_STEPS)),
        }
    table = Table(title=f"Cost of logging {len(METRICS)} metrics, in a step of {STEP_SECONDS * 1e3:.0f} ms")
    for column in ("", "ms per step", "% of step", "median us", "longest ms"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        cells = (row["per_step_ms"], row["percent_of_step"], row["median_call_us"], row["longest_call_ms"])
        table.add_row(name, *(f"{cell:.2f}" for cell in cells))
    Console().print(table)
    record("tracking", {"step_ms": STEP_SECONDS * 1e3, "metrics": len(METRICS), "rows": rows})


def measure_log(uri: str, steps: int, every: int) -> dict[str, float]:
    """Logs on every `every`-th step, as a training does; the last sync counts too."""
    path = Path(resolve_uri(uri).removeprefix("sqlite:///")).with_name(f"every-{every}.jsonl")
    dataset = {"name": "none", "digest": "none", "source": "none"}
    description = RunDescription(
        resolve_uri(uri), "benchmark", path.stem, path.stem, None, {"fvl.stage": "none"}, {}, {}, dataset
    )
    sync = LiveSync(path, description.uri, lambda: send_run(description, None, read_metrics(path)))
    sync.sync()
    log = JsonlLogger(path, sync)
    calls = []
    for step in range(1, steps + 1):
        time.sleep(STEP_SECONDS)
        if step % every == 0:
            calls.append(timed(log.log_metrics, dict.fromkeys(METRICS, 1.0 / step), step))
    return summary(calls, (sum(calls) + timed(sync.sync)) / steps)


def measure_unbuffered(uri: str, steps: int) -> dict[str, float]:
    """Logs each metric with a call of its own, as a plain MLflow script does."""
    tracker = Tracker.start(uri, "benchmark", "unbuffered", {})
    client = MlflowClient(tracking_uri=uri)
    calls = []
    for step in range(steps):
        calls += [timed(client.log_metric, tracker.run_id, key, 1.0, 0, step) for key in METRICS]
    tracker.finish("FINISHED")
    return summary(calls, sum(calls) / steps)


def timed(call: Callable[..., object], *arguments: object) -> float:
    """Seconds that `call` takes."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def summary(calls: list[float], per_step: float) -> dict[str, float]:
    """The row of the table, from seconds per call and per step."""
    return {
        "per_step_ms": per_step * 1e3,
        "percent_of_step": 100 * per_step / STEP_SECONDS,
        "median_call_us": statistics.median(calls) * 1e6,
        "longest_call_ms": max(calls) * 1e3,
    }


if __name__ == "__main__":
    main()
