"""MLflow in the list of loggers; tracking/mlflow_live_sync.py sends it what metrics.jsonl has."""

from dataclasses import dataclass

from lightning.pytorch.loggers.logger import DummyLogger

from fvl_lightning.core.registry import register


@register("logger", "mlflow")
class MlflowLogger(DummyLogger):
    """The MLflow store that `tracking` names, with tags, parameters, scores and curves.

    It is sent what the run folder has, also after the training (`fvl sync`). `tracking.enabled: false` turns it off.
    """

    @dataclass
    class Config:
        """Nothing to set here: `tracking` has the store and the experiment."""
