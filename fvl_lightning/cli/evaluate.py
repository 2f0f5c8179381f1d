"""`fvl evaluate`: a finished run answers questions about images it has never seen."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from fvl_lightning.cli.options import Adapter, Model
from fvl_lightning.core.component_sources.components import source_check
from fvl_lightning.core.config.loading import read_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import progress, terminal


def evaluate(
    model: Model,
    split: Annotated[str, typer.Option(help="Split to answer.")] = "test",
    level: Annotated[str | None, typer.Option(help="Another level of its data set, if it has levels.")] = None,
    data: Annotated[Path | None, typer.Option(help="Experiment file with the data, in place of the run's.")] = None,
    adapter: Adapter = None,
) -> None:
    """Score a model: generated answers by kind, without the image, with another image, and the most frequent answer.

    Example: `fvl evaluate runs/demo/concat/finetune`
    """
    if data is not None:
        with source_check():
            read_config(ExperimentConfig, data)
    from fvl_lightning.evaluation.metrics.names import DEFAULT_METRIC, build_metric
    from fvl_lightning.evaluation.scoring import open_model, open_with_data, score, score_controls, score_encoder
    from fvl_lightning.inference.adapters import attach_adapters
    from fvl_lightning.modeling.adapters.folders import is_model_folder
    from fvl_lightning.runs.references import finished_run, say_what_it_has_seen

    folder = None if is_model_folder(Path(model)) else finished_run(model)
    if folder is not None and folder.info["stage"] == "encoder_pretrain":
        if data is not None or adapter is not None:
            option = "--data" if data else "--adapter"
            raise ConfigError(f"{option}: {folder.path} is an encoder, which is scored as it is on the data of its run")
        scores = score_encoder(folder, split)
        table = Table("score", "value", title=f"{folder.path} on {split}")
        for name, value in scores.items():
            table.add_row(name, f"{value:.3f}")
        terminal().print(table)
        return
    if folder is not None and data is None:
        built, connected = open_model(folder, level)
        say_what_it_has_seen(built, model)
    else:
        built, connected = open_with_data(model, data, level)
    attach_adapters(built, adapter and [adapter])
    with progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("answering", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"answering, {what}", completed=done, total=total)

        answered, _ = score(built, connected, split, show)
        controls = score_controls(built, connected, split, show)
    named = f"{folder.path if folder else model}{f' with {adapter}' if adapter else ''}"
    columns = {"answers": answered} | {name.replace("_", " "): column for name, column in vars(controls).items()}
    table = Table("kind", *columns, title=f"{named} on {split}: {DEFAULT_METRIC}")
    for kind in answered.by_kind:
        cells = [column.by_kind.get(kind) for column in columns.values()]
        table.add_row(kind, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    for average in build_metric(DEFAULT_METRIC).averages:
        table.add_row(average, *(f"{column.average(average):.3f}" for column in columns.values()))
    terminal().print(table)


