"""Where MLflow's pages show a comparison: the search finds its cells, and a store that is not there stays away."""

import json
import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking.links import CURRENT_TAG, METRIC_TAG, cells_view, comparison_pages
from fvl_lightning.tracking.tracker import Tracker


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "of an earlier version"])
def test_the_address_leads_to_the_cells(marked: bool, tmp_path: Path, empty_store: Path) -> None:
    """One run for each cell of the newest configuration; an earlier version marked none and kept no view."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    parent = Tracker.start(uri, "shapes", "demo", {METRIC_TAG: "accuracy/macro"} if marked else {})
    children = [
        Tracker.start(uri, "shapes", name, {CURRENT_TAG: current} if marked else {}, parent_run_id=parent.run_id)
        for name, current in (("encoder", "true"), ("cell", "true"), ("earlier", "false"))
    ]
    children.append(Tracker.start(uri, "shapes", "another's", {CURRENT_TAG: "true"}))
    for child in children[1:]:
        child.log_results({"accuracy/macro": 0.0})
    if marked:
        parent.set_experiment_tag(*cells_view(parent.run_id, "accuracy/macro"))
    pages = comparison_pages(uri, parent.run_id, "http://127.0.0.1:5000", "accuracy/macro")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment(client.get_run(parent.run_id).info.experiment_id)
    parts = {name: urlsplit(urlsplit(page).fragment) for name, page in pages.items()}
    queries = {name: parse_qs(part.query) for name, part in parts.items()}
    runs, run = f"/experiments/{experiment.experiment_id}/runs", f"/runs/{parent.run_id}"
    assert {name: part.path.removeprefix(runs.removesuffix("/runs")) for name, part in parts.items()} == {
        "verdict": run,
        "report": f"{run}/artifacts/report.html" if marked else f"{run}/artifacts",
        "scores by arm": "/runs",
        "charts by arm": "/runs",
        "models": "/models",
    }
    assert queries["charts by arm"] == queries["scores by arm"] | {"compareRunsMode": ["CHART"]}
    if marked:
        [key] = queries["scores by arm"]["viewStateShareKey"]
        view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
        search = view["searchFilter"]
        assert view["groupBy"]["groupByKeys"] == [{"mode": "param", "groupByData": "arm"}]
        assert view["selectedColumns"][0] == "metrics.`accuracy/macro`"
    else:
        [search] = queries["scores by arm"]["searchFilter"]
    found = [run.info.run_name for run in client.search_runs([experiment.experiment_id], search)]
    assert found == ["cell"] if marked else sorted(found) == ["cell", "earlier"]


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no MLflow store at"):
        comparison_pages(f"sqlite:///{tmp_path / 'mlflow.db'}", "0123", "http://127.0.0.1:5000", "accuracy/macro")
    assert not list(tmp_path.iterdir())
