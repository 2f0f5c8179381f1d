"""`fvl export`: a run's model as a folder that others load with transformers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fvl_lightning.modeling.export import export_model
from fvl_lightning.training.run_folder import model_folder


def export(
    model: Annotated[str, typer.Argument(help="Run folder, MLflow run id, or model folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    file_megabytes: Annotated[int, typer.Option(min=1, help="Largest weight file, unless a tensor is larger.")] = 5000,
) -> None:
    """Write a model as a Hugging Face folder: safetensors, configuration, processor and a card.

    Example: `fvl export runs/demo/concat/finetune models/florence-demo`
    """
    parameters = export_model(model_folder(model), out, file_megabytes * 10**6)
    Console().print(f"{out}: {parameters:,} parameters", highlight=False, markup=False, soft_wrap=True)
