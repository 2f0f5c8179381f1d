"""Where MLflow's pages show a comparison."""

from urllib.parse import quote, urlencode

from fvl_lightning.tracking.store import existing_store, store_client, store_errors

SCORED = "metrics.`accuracy/macro` >= 0"
"""Of a comparison's runs those that were scored: each cell's last stage."""

TRAINING = "workflowType=machine_learning"
"""Has MLflow show its pages for training, not those for conversations."""


def cells_search(parent_run_id: str) -> str:
    """What to type into MLflow's search box to see one run for each cell."""
    return f"tags.`mlflow.parentRunId` = '{parent_run_id}' and {SCORED}"


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
        experiment = store_client(uri).get_run(parent_run_id).info.experiment_id
    pages = f"{at}/#/experiments/{experiment}"
    search = urlencode({"searchFilter": cells_search(parent_run_id)}, quote_via=quote)
    return {
        "cells": f"{pages}/runs?{TRAINING}&{search}",
        "report and figures": f"{pages}/runs/{parent_run_id}/artifacts?{TRAINING}",
        "models": f"{pages}/models?{TRAINING}",
    }
