"""Addresses of a comparison on MLflow's pages."""

from urllib.parse import quote, urlencode

from fvl_lightning.core.errors import DataError
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


def comparison_pages(uri: str, parent_run_id: str, at: str) -> dict[str, str]:
    """{what is shown: address} of a comparison.

    Args:
        uri: the store.
        parent_run_id: of the comparison.
        at: where the pages are served, such as http://127.0.0.1:5000.

    Raises:
        DataError: the store cannot be used, or has no such run.
    """
    uri = existing_store(uri)
    with store_errors(uri):
        parent = store_client(uri).get_run(parent_run_id)
    if METRIC_TAG not in parent.data.tags:
        raise DataError(f"{parent_run_id} in {uri} is not the run of a comparison (it has no tag {METRIC_TAG})")
    pages = f"{at}/#/experiments/{parent.info.experiment_id}"
    search = urlencode({"searchFilter": cells_search(parent_run_id, parent.data.tags[METRIC_TAG])}, quote_via=quote)
    return {
        "cells": f"{pages}/runs?{TRAINING}&{search}",
        "report and figures": f"{pages}/runs/{parent_run_id}/artifacts?{TRAINING}",
        "models": f"{pages}/models?{TRAINING}",
    }
