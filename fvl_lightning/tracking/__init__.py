"""Runs in MLflow: the store they live in, and the tracker that writes one of them."""

import os

# MLflow reports its usage to its makers unless told otherwise; a kit that works offline should not. Before its import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
