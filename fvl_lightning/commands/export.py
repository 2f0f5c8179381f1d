"""`fvl export`: a run's model as a folder that others load with transformers, or its adapter for peft."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fvl_lightning.commands.models import model_folder
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.adapters import is_adapter_folder
from fvl_lightning.modeling.export import export_adapter, export_merged, export_model


def export(
    model: Annotated[str, typer.Argument(help="Run folder, MLflow run id, or the folder of a model or an adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    file_megabytes: Annotated[int, typer.Option(min=1, help="Largest weight file, unless a tensor is larger.")] = 5000,
    merge: Annotated[bool, typer.Option("--merge", help="An adapter and its base as one whole model.")] = False,
    base: Annotated[Path | None, typer.Option(help="With --merge: the base, where it was moved.")] = None,
) -> None:
    """Write a model as a Hugging Face folder: safetensors, configuration, processor and a card.

    What was trained with LoRA becomes an adapter's folder, as peft has them.

    Example: `fvl export runs/demo/concat/finetune models/florence-demo`
    """
    folder, file_bytes, console = model_folder(model), file_megabytes * 10**6, Console()
    if base is not None and not merge:
        raise ConfigError("--base: only --merge reads the base of an adapter")
    if is_adapter_folder(folder) and not merge:
        parameters, under = export_adapter(folder, out, file_bytes)
        said = f"{out}: adapter of {parameters:,} parameters on {under}"
    elif merge and not is_adapter_folder(folder):
        raise ConfigError(f"--merge: {folder} is a whole model, there is no adapter to merge")
    else:
        parameters = export_merged(folder, base, out, file_bytes) if merge else export_model(folder, out, file_bytes)
        said = f"{out}: {parameters:,} parameters"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
