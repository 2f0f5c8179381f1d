"""`fvl export`: a run's model as a folder that others load with transformers, or its adapter for peft."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import say


def export(
    model: Annotated[str, typer.Argument(help="Run folder, MLflow run id, or the folder of a model or an adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    file_megabytes: Annotated[int, typer.Option(min=1, help="Size of the largest weight file.")] = 5000,
    merge: Annotated[bool, typer.Option("--merge", help="Merge an adapter into its base: one whole model.")] = False,
    base: Annotated[
        Path | None, typer.Option(help="With --merge: the base (a run or a model folder), if it was moved.")
    ] = None,
    checkpoint: Annotated[
        Literal["last", "best"] | None,
        typer.Option(help="A run's last checkpoint, finished or not, or its best (trainer.keep_best)."),
    ] = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            help="Copy the code of the model's plugins into OUT, too. A value names a file or module to import first."
        ),
    ] = None,
) -> None:
    """Write a model as a Hugging Face folder: safetensors, configuration, processor and a card.

    A run with LoRA becomes an adapter folder in the format of peft.

    Example: `fvl export runs/demo/concat/finetune models/florence-demo`
    """
    if base is not None and not merge:
        raise ConfigError("--base: only --merge reads the base of an adapter")
    from fvl_lightning.runs.checkpoint_model import checkpoint_model
    from fvl_lightning.runs.plugins import import_plugins_for
    from fvl_lightning.runs.references import model_folder

    import_plugins_for(model, plugins)
    with checkpoint_model(model, checkpoint) if checkpoint else nullcontext(model_folder(model)) as folder:
        line = _export(folder, out, file_megabytes * 10**6, merge, base, plugins is not None)
    say(line)


def _export(folder: Path, out: Path, file_bytes: int, merge: bool, base: Path | None, with_plugins: bool) -> str:
    """Writes `out`, and returns a line that describes it."""
    from fvl_lightning.modeling.adapters.folders import is_adapter_folder
    from fvl_lightning.modeling.conversion.export import export_adapter, export_merged, export_model
    from fvl_lightning.runs.references import model_folder

    if is_adapter_folder(folder) and not merge:
        parameters, under = export_adapter(folder, out, file_bytes, with_plugins)
        return f"{out}: adapter of {parameters:,} parameters on {under}"
    if merge and not is_adapter_folder(folder):
        raise ConfigError(f"--merge: {folder} is a whole model, there is no adapter to merge")
    beneath = model_folder(str(base)) if base else None
    if merge:
        parameters = export_merged(folder, beneath, out, file_bytes, with_plugins)
    else:
        parameters = export_model(folder, out, file_bytes, with_plugins)
    return f"{out}: {parameters:,} parameters"
