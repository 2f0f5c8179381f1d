"""`fvl ui`: the MLflow UI over the right store."""

from typing import Annotated

import typer

from fvl_lightning.core.experiment import TrackingConfig
from fvl_lightning.tracking.store import serve_ui


def ui(
    uri: Annotated[str, typer.Option(help="MLflow store.")] = TrackingConfig.uri,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 5000,
) -> None:
    """Open the MLflow UI on the runs of this folder.

    Example: `fvl ui --port 5001`
    """
    serve_ui(uri, host, port)
