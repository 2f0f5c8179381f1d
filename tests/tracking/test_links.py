"""Where MLflow's pages show a comparison: the search finds its cells, and a store that is not there stays away."""

import shutil
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking.links import METRIC_TAG, comparison_pages
from fvl_lightning.tracking.tracker import Tracker


@pytest.mark.parametrize("tags", [{METRIC_TAG: "accuracy/macro"}, {}], ids=["named", "of an earlier version"])
def test_the_address_searches_for_the_cells(tags: dict[str, str], tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    parent = Tracker.start(uri, "shapes", "demo", tags)
    children = [Tracker.start(uri, "shapes", name, {}, parent_run_id=parent.run_id) for name in ("encoder", "cell")]
    children.append(Tracker.start(uri, "shapes", "another's", {}))
    for child in children[1:]:
        child.log_results({"accuracy/macro": 0.0})
    pages = comparison_pages(uri, parent.run_id, "http://127.0.0.1:5000", "accuracy/macro")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(parent.run_id).info.experiment_id
    page = urlsplit(urlsplit(pages["cells"]).fragment)
    assert page.path == f"/experiments/{experiment}/runs"
    [search] = parse_qs(page.query)["searchFilter"]
    assert [run.info.run_id for run in client.search_runs([experiment], search)] == [children[1].run_id]
    report, models = (urlsplit(urlsplit(pages[name]).fragment).path for name in ("report and figures", "models"))
    assert report == f"/experiments/{experiment}/runs/{parent.run_id}/artifacts"
    assert models == f"/experiments/{experiment}/models"


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no MLflow store at"):
        comparison_pages(f"sqlite:///{tmp_path / 'mlflow.db'}", "0123", "http://127.0.0.1:5000", "accuracy/macro")
    assert not list(tmp_path.iterdir())
