"""Addresses of a comparison on MLflow's pages, and the view of its cells that MLflow opens there."""

import json
from typing import Any
from urllib.parse import quote, urlencode

from fvl_lightning.tracking.limits import clean_key
from fvl_lightning.tracking.store import existing_store, is_server, store_client, store_errors

METRIC_TAG = "fvl.metric"
"""The tag of a comparison's parent run that names its metric, such as accuracy/macro."""
CURRENT_TAG = "fvl.current"
"""The tag of a comparison's child runs: true where a run belongs to the newest configuration, else false. The parent's
process alone changes it."""
LOCAL_PAGES = "http://127.0.0.1:5000"
"""Where `fvl ui` serves the pages of an sqlite store by default."""
TRAINING = "workflowType=machine_learning"
"""Has MLflow show its pages for training, not those for conversations."""
VIEW_TAG = "mlflow.sharedViewState."
"""Beginning of an experiment's tag in which MLflow's pages look for a view; the rest is the view's key."""
COLUMNS = ("metrics.`{metric}`", "metrics.`parameters`", "metrics.`seconds`")
"""Columns of the view, in MLflow's spelling."""


def pages_address(uri: str) -> str:
    """Returns where a store's pages are: a server's own address, else that of `fvl ui`."""
    return uri.rstrip("/") if is_server(uri) else LOCAL_PAGES


def cells_search(parent_run_id: str, metric: str, marked: bool = True) -> str:
    """Returns what to type into MLflow's search box to see one run for each cell: the one with a score.

    Args:
        parent_run_id: the MLflow run of the comparison.
        metric: the metric that every cell's last stage has.
        marked: whether the runs have CURRENT_TAG, so that those of an earlier configuration are left out.
    """
    current = f" and tags.`{CURRENT_TAG}` = 'true'" if marked else ""
    return f"tags.`mlflow.parentRunId` = '{parent_run_id}'{current} and metrics.`{clean_key(metric)}` >= 0"


def cells_view(parent_run_id: str, metric: str) -> tuple[str, str]:
    """Returns an experiment's tag (key, value) that holds the view of a comparison's cells.

    MLflow reads it when a page's address has `viewStateShareKey`: cells grouped by arm with the groups open, score
    columns, and charts of the metric and the losses, in which a group is the mean over seeds.
    """
    metric = clean_key(metric)
    charts = [("BAR", metric), ("LINE", "train/loss"), ("LINE", "validation/loss")]
    view: dict[str, Any] = {
        "searchFilter": cells_search(parent_run_id, metric),
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [column.format(metric=metric) for column in COLUMNS],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "arm"}]},
        "useGroupedValuesInCharts": True,
        "isAccordionReordered": True,
        "compareRunSections": [{"uuid": "arms", "name": "arms, mean over seeds", "display": True, "isReordered": True}],
        "compareRunCharts": [_chart(kind, name) for kind, name in charts],
    }
    return VIEW_TAG + parent_run_id, json.dumps(view)


def _chart(kind: str, metric: str) -> dict[str, Any]:
    """Returns a card of MLflow's chart view."""
    card: dict[str, Any] = {"type": kind, "uuid": f"arms-{metric}", "metricSectionId": "arms", "metricKey": metric}
    card |= {"displayName": metric, "runsCountToCompare": 20, "deleted": False, "isGenerated": True}
    if kind == "LINE":
        card |= {"xAxisKey": "step", "yAxisKey": "metric", "scaleType": "linear", "xAxisScaleType": "linear"}
        card |= {"lineSmoothness": 0, "selectedXAxisMetricKey": "", "range": {}, "yAxisExpressions": []}
        card |= {"ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}
    return card


def comparison_pages(uri: str, parent_run_id: str, at: str, default_metric: str) -> dict[str, str]:
    """Returns {what is shown: address} of a comparison, the verdict first.

    Args:
        uri: the store.
        parent_run_id: of the comparison.
        at: where the pages are served, such as http://127.0.0.1:5000.
        default_metric: the metric of a comparison whose run does not name one, as in earlier versions.

    Raises:
        DataError: the store cannot be used, or has no such run.
    """
    uri = existing_store(uri)
    with store_errors(uri):
        client = store_client(uri)
        parent = client.get_run(parent_run_id)
        experiment = client.get_experiment(parent.info.experiment_id)
    pages = f"{at}/#/experiments/{experiment.experiment_id}"
    run = f"{pages}/runs/{parent_run_id}"
    if VIEW_TAG + parent_run_id in experiment.tags:
        report, cells = f"{run}/artifacts/report.html?{TRAINING}", f"viewStateShareKey={parent_run_id}"
    else:  # made by an earlier version
        metric = parent.data.tags.get(METRIC_TAG, default_metric)
        search = {"searchFilter": cells_search(parent_run_id, metric, marked=False)}
        report, cells = f"{run}/artifacts?{TRAINING}", urlencode(search, quote_via=quote)
    return {
        "verdict": f"{run}?{TRAINING}",
        "report": report,
        "scores by arm": f"{pages}/runs?{TRAINING}&{cells}",
        "charts by arm": f"{pages}/runs?{TRAINING}&compareRunsMode=CHART&{cells}",
        "models": f"{pages}/models?{TRAINING}",
    }
