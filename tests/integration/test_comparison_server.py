"""A comparison that is tracked by an `mlflow server` over HTTP, report and models included."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import Run
from tests.integration.test_comparison import assert_in_mlflow, report_of, start, workplace
from tests.tracking.server import Server


@pytest.mark.slow
def test_every_number_of_the_report_is_on_the_server(
    tmp_path: Path, tiny_data: Path, empty_store: Path, fvl_here: Run
) -> None:
    (tmp_path / "server").mkdir()
    shutil.copy(empty_store, tmp_path / "server" / "mlflow.db")
    server = Server(tmp_path / "server")
    server.start()
    try:
        (tmp_path / "work").mkdir()
        tracking = {"uri": server.uri, "experiment": "shapes"}
        work = workplace(tmp_path / "work", tiny_data, empty_store, tracking=tracking)
        (work / "mlflow.db").unlink()
        done, _ = start(work, fvl_here)
        assert done.returncode == 0, done.stderr
        assert not (work / "mlflow.db").exists()
        assert not (work / "mlartifacts").exists()
        there = assert_in_mlflow(server.uri, report_of(work), tmp_path)
        models = MlflowClient(tracking_uri=server.uri).search_logged_models([there.parent.info.experiment_id])
        assert len(models) == 3 + len(there.cells), "one for each encoder, one for each cell"
        said = fvl_here(work, "ui", "runs/tiny")
        assert said.returncode == 0, said.stderr
        assert f"verdict: {server.uri}/#/experiments/{there.parent.info.experiment_id}/runs/" in said.stdout
    finally:
        server.stop()
