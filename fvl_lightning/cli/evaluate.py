"""`fvl evaluate`: a finished run answers questions about images it has never seen."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from fvl_lightning.cli.options import Adapter, Model, Plugins
from fvl_lightning.core.component_sources.components import source_check
from fvl_lightning.core.config.loading import read_config
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import progress, say, terminal

if TYPE_CHECKING:
    from fvl_lightning.evaluation.answers import Scoring
    from fvl_lightning.evaluation.metrics.base import KindScores
    from fvl_lightning.runs.folder import RunFolder

CONTROLS = ("image_zeroed", "image_shuffled", "prior")
"""The controls of an evaluation, in the order of their columns."""
NONE, ALL = "none", "all"
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
"""Values of --accelerator, those of `trainer.accelerator`."""


def evaluate(
    model: Model,
    split: Annotated[str, typer.Option(help="Split whose questions are answered.")] = "test",
    level: Annotated[str | None, typer.Option(help="Another level of its dataset, where that has levels.")] = None,
    data: Annotated[Path | None, typer.Option(help="Experiment file whose data is used instead of the run's.")] = None,
    adapter: Adapter = None,
    plugins: Plugins = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Answer this many questions, spread evenly over the split.")
    ] = None,
    controls: Annotated[
        str, typer.Option(help="Columns to compare with: all, none, or some of image_zeroed,image_shuffled,prior.")
    ] = ALL,
    precision: Annotated[
        Literal["32-true", "bf16-mixed"], typer.Option(help="Compute in the type of the weights, or in bfloat16.")
    ] = "32-true",
    accelerator: Annotated[
        Accelerator | None, typer.Option(help="Device to compute on; by default that of the run's training.")
    ] = None,
) -> None:
    """Score a model: it answers the questions of a split, and the answers are scored by kind of question.

    Controls show what a model scores without seeing. image_zeroed: the image is blank. image_shuffled: the image is
    another sample's. prior: the most frequent answer of each kind in the split train. `--controls none` takes a third
    of the time.

    Example: `fvl evaluate runs/demo/concat/finetune --limit 100 --controls none`
    """
    chosen = _chosen(controls)
    _check(data)
    from fvl_lightning.evaluation.answers import Scoring
    from fvl_lightning.evaluation.scoring import open_model, open_with_data
    from fvl_lightning.inference.adapters import attach_adapters
    from fvl_lightning.modeling.adapters.folders import is_model_folder
    from fvl_lightning.runs.plugins import import_plugins_for
    from fvl_lightning.runs.references import finished_run, say_what_it_has_seen

    import_plugins_for(model, plugins)
    folder = None if is_model_folder(Path(model)) else finished_run(model)
    if folder is not None and folder.info["stage"] == "encoder_pretrain":
        given = {"--data": data, "--adapter": adapter, "--limit": limit, "--controls": controls != ALL or None}
        _score_encoder(folder, split, given, precision, accelerator)
        return
    if folder is not None and data is None:
        built, connected = open_model(folder, level, split, accelerator)
        say_what_it_has_seen(built, model)
    else:
        built, connected = open_with_data(model, data, level, split, accelerator)
    attach_adapters(built, adapter and [adapter])
    columns, count = _scores(Scoring(built, connected, split, limit=limit, precision=precision), chosen)
    if "prior" in chosen and "prior" not in columns:
        say("prior: the data has no split train with questions, in which answers could be counted", stderr=True)
    named = f"{folder.path if folder else model}{f' with {adapter}' if adapter else ''}"
    asked = f", {count} questions" if limit else ""
    _show(columns, f"{named} on {split}{asked}{in_precision(precision)}")


def _scores(scoring: "Scoring", controls: Sequence[str]) -> "tuple[dict[str, KindScores], int]":
    """Returns {column: scores} without controls that have nothing to score, and the number of questions."""
    from fvl_lightning.evaluation.scoring import score, score_control

    with progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("answering", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"answering, {what}", completed=done, total=total)

        scoring = replace(scoring, progress=show)
        answered, answers = score(scoring)
        found = {name: score_control(scoring, name) for name in controls}
    columns = {"answers": answered} | {name: scores for name, scores in found.items() if scores is not None}
    return columns, len(answers)


def _check(data: Path | None) -> None:
    """Raises ConfigError for a mistake in an experiment file, before seconds of imports."""
    if data is not None:
        with source_check():
            read_config(ExperimentConfig, data)


def _chosen(controls: str) -> Sequence[str]:
    """Returns the names of the controls; ConfigError for an unknown one."""
    names = {ALL: list(CONTROLS), NONE: []}.get(controls)
    names = [name.strip() for name in controls.split(",")] if names is None else names
    for name in names:
        if name not in CONTROLS:
            raise unknown_name("control", name, (*CONTROLS, ALL, NONE), "--controls")
    return [name for name in CONTROLS if name in names]


def in_precision(precision: str) -> str:
    """Returns the end of a title, which names another precision than the default."""
    return "" if precision == "32-true" else f", computed in {precision}"


def _score_encoder(
    folder: "RunFolder", split: str, given: Mapping[str, Any], precision: str, accelerator: str | None
) -> None:
    """Shows the scores of an encoder; ConfigError for options that are for models with answers."""
    from fvl_lightning.evaluation.scoring import score_encoder

    if options := [name for name, value in given.items() if value is not None]:
        raise ConfigError(f"{options[0]}: {folder.path} is an encoder, scored as it is on all data of its run")
    table = Table("score", "value", title=f"{folder.path} on {split}{in_precision(precision)}")
    for name, value in score_encoder(folder, split, accelerator, precision).items():
        table.add_row(name, f"{value:.3f}")
    terminal().print(table)


def _show(columns: "dict[str, KindScores]", title: str) -> None:
    from fvl_lightning.evaluation.metrics.lookup import DEFAULT_METRIC, build_metric

    names = [name.replace("_", " ") for name in columns]
    table = Table("kind", *names, title=f"{title}: {DEFAULT_METRIC}")
    for kind in columns["answers"].by_kind:
        cells = [column.by_kind.get(kind) for column in columns.values()]
        table.add_row(kind, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    for average in build_metric(DEFAULT_METRIC).averages:
        table.add_row(average, *(f"{column.average(average):.3f}" for column in columns.values()))
    terminal().print(table)
