"""`fvl ui` and `fvl sync`: the MLflow UI on the right store, and results sent to a store that could not be reached."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fvl_lightning.cli.options import Host
from fvl_lightning.core.experiment import TrackingConfig
from fvl_lightning.core.terminal import say
from fvl_lightning.tracking.links import TRAINING, comparison_pages
from fvl_lightning.tracking.store import is_server, serve_ui


def ui(
    comparison: Annotated[
        Path | None, typer.Argument(help="Folder of a comparison, such as runs/demo: its store, and its addresses.")
    ] = None,
    uri: Annotated[str, typer.Option(help="MLflow store.")] = TrackingConfig.uri,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Open the MLflow UI on the runs of this folder, or say where a server shows a comparison.

    Example: `fvl ui runs/demo --port 5001`
    """
    if comparison is not None:
        from fvl_lightning.comparison.tracking import read_parent
        from fvl_lightning.evaluation.metrics.lookup import DEFAULT_SCORE

        parent = read_parent(comparison)
        uri = parent["store"][0]
        at = uri.rstrip("/") if is_server(uri) else f"http://{host}:{port}"
        pages = comparison_pages(uri, parent["run_id"], at, DEFAULT_SCORE)
        if is_server(uri):
            _say_pages(pages)
            return
    else:
        pages = {"experiments": f"http://{host}:{port}/#/experiments?{TRAINING}"}
    serve_ui(uri, host, port, lambda: _say_pages(pages))


def _say_pages(pages: Mapping[str, str]) -> None:
    for what, page in pages.items():
        say(f"{what}: {page}")


def sync(
    runs: Annotated[list[str], typer.Argument(help="Run folders, such as runs/finetune, or MLflow run ids.")],
) -> None:
    """Send to MLflow what it lacks of runs: metrics, scores, configuration and status.

    It may be repeated: what MLflow has is not sent again.

    Example: `fvl sync runs/finetune`
    """
    from fvl_lightning.runs.folder import RunFolder
    from fvl_lightning.runs.tracking import sync_run

    for reference in runs:
        run = RunFolder.open(reference)
        report = sync_run(run)
        missing = f"{report.points} points and {report.others} other entries sent"
        result = missing if report.points or report.others else "nothing was missing"
        say(f"{run.path}: {result}")
