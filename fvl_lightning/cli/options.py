"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="Run (folder or MLflow id), or a model folder, as `fvl import` makes it.")
]
Adapter = Annotated[str | None, typer.Option(help="Adapter on the model: a run or a folder, or NAME=FOLDER.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="Adapter on the model: a run or a folder, or NAME=FOLDER; repeat it for several, the first is active."
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")]
Experiment = Annotated[Path, typer.Argument(help="Experiment file, such as experiments/demo/finetune.yaml.")]
