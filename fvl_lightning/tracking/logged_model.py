"""The model that a run kept, as MLflow's own entity: a name for weights that stay where they are."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvl_lightning.tracking.limits import PARAMETER_LENGTH, clean_key

FOLDER_TAG = "fvl.model_folder"
"""Where the weights lie: MLflow gets no copy of them."""


def send_model(
    client: Any, mlflow_run: Any, folder: Path, tags: Mapping[str, str], params: Mapping[str, Any], step: int
) -> tuple[str, int]:
    """The LoggedModel of `folder`, created where the run has none.

    Args:
        client: an MlflowClient.
        mlflow_run: MLflow's run, as it was read a moment ago.
        folder: a saved model.
        tags: of the run, for the model too; `fvl.stage` is its type.
        params: likewise; the model has them from its creation on and keeps them.
        step: the last one of its training.

    Returns:
        MLflow's id of the model, and how many calls it took that were not made before.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.entities.logged_model_status import LoggedModelStatus
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

    run_id, experiment_id, sent = mlflow_run.info.run_id, mlflow_run.info.experiment_id, 0
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=1)
    if found:
        model = found[0]
    else:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        about = {FOLDER_TAG: str(folder.resolve()), "fvl.model_bytes": str(size), MLFLOW_MODEL_IS_EXTERNAL: "true"}
        model = client.create_logged_model(
            experiment_id,
            name=re.sub(r"[^\w -]+", "-", mlflow_run.info.run_name),
            source_run_id=run_id,
            tags={**tags, **about},
            params={clean_key(key): str(value)[:PARAMETER_LENGTH] for key, value in params.items()},
            model_type=tags["fvl.stage"],
        )
        sent += 1
    if model.status != LoggedModelStatus.READY:
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = mlflow_run.outputs.model_outputs if mlflow_run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        sent += 1
    return model.model_id, sent
