"""Addresses of a comparison on MLflow's pages."""

from urllib.parse import quote, urlencode

from fvl_lightning.tracking.store import existing_store, store_client, store_errors

METRIC_TAG = "fvl.metric"
"""The tag of a comparison's parent run that names its metric, such as accuracy/macro."""

TRAINING = "workflowType=machine_learning"
"""Has MLflow show its pages for training, not those for conversations."""


def cells_search(parent_run_id: str, metric: str) -> str:
    """Returns what to type into MLflow's search box to see one run for each cell: the one with a score.

    Args:
        parent_run_id: the MLflow run of the comparison.
        metric: the metric that every cell's last stage has.
    """
    return f"tags.`mlflow.parentRunId` = '{parent_run_id}' and metrics.`{metric}` >= 0"


def comparison_pages(uri: str, parent_run_id: str, at: str, default_metric: str) -> dict[str, str]:
    """Returns {what is shown: address} of a comparison.

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
        parent = store_client(uri).get_run(parent_run_id)
    pages = f"{at}/#/experiments/{parent.info.experiment_id}"
    metric = parent.data.tags.get(METRIC_TAG, default_metric)
    search = urlencode({"searchFilter": cells_search(parent_run_id, metric)}, quote_via=quote)
    return {
        "cells": f"{pages}/runs?{TRAINING}&{search}",
        "report and figures": f"{pages}/runs/{parent_run_id}/artifacts?{TRAINING}",
        "models": f"{pages}/models?{TRAINING}",
    }
