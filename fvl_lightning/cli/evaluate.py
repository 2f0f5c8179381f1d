"""`fvl evaluate`: models answer questions of a split or of benchmarks, and the answers are scored."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from fvl_lightning.cli.options import Adapter, Plugins
from fvl_lightning.core.component_sources.components import source_check
from fvl_lightning.core.config.loading import read_config
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import own_rank, progress, say, started_ranks, terminal
from fvl_lightning.launchers.ranks import run_ranks

if TYPE_CHECKING:
    from fvl_lightning.evaluation.answers import Scoring
    from fvl_lightning.evaluation.metrics.base import KindScores
    from fvl_lightning.evaluation.tasks.request import EvaluationRequest
    from fvl_lightning.runs.folder import RunFolder

CONTROLS = ("image_zeroed", "image_shuffled", "prior")
"""The controls of an evaluation, in the order of their columns."""
NONE, ALL = "none", "all"
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
"""Values of --accelerator, those of `trainer.accelerator`."""


Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL...", help="Run (folder or MLflow id), or a model folder; several of them with --tasks."
    ),
]
Tasks = Annotated[
    str | None, typer.Option(help="Benchmarks, by name or YAML file, separated by commas; see `fvl list task`.")
]
Suite = Annotated[str | None, typer.Option(help="Benchmarks of a suite, such as florence_vl.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value for every task, such as data.files=mine/*.parquet; may be repeated."),
]
Split = Annotated[str, typer.Option(help="Without tasks: split whose questions are answered.")]
Level = Annotated[str | None, typer.Option(help="Another level of its dataset, where that has levels.")]
Data = Annotated[Path | None, typer.Option(help="Experiment file whose data is used instead of the run's.")]
Sources = Annotated[
    str | None, typer.Option(help="Without tasks: sources that the fusion sees, such as davit,ocr; others are zero.")
]
Limit = Annotated[
    int | None, typer.Option(min=1, help="Answer this many questions, spread evenly over the split or task.")
]
Controls = Annotated[
    str | None,
    typer.Option(
        help="Columns to compare with: all, none, or some of image_zeroed,image_shuffled,prior. With tasks: none "
        "(the default), controls, corruptions, or names such as blind,shuffled,paraphrase,blur,noise-3."
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="With tasks: folder of samples, scores and report; a restart goes on there.")
]
Samples = Annotated[
    list[str] | None,
    typer.Option("--from", help="With tasks: NAME=FILE, samples of a model that lmms-eval or this kit has asked."),
]
PrintCommand = Annotated[
    bool, typer.Option("--print", help="With tasks: print the command of lmms-eval for the same, and ask nothing.")
]
Devices = Annotated[int, typer.Option(min=1, help="With tasks: devices that share the questions.")]
Precision = Annotated[
    Literal["32-true", "bf16-mixed"], typer.Option(help="Compute in the type of the weights, or in bfloat16.")
]
Device = Annotated[
    Accelerator | None, typer.Option(help="Device to compute on; by default that of the run's training.")
]


def evaluate(
    models: Models = None,
    tasks: Tasks = None,
    suite: Suite = None,
    change: Changes = None,
    split: Split = "test",
    level: Level = None,
    data: Data = None,
    adapter: Adapter = None,
    plugins: Plugins = None,
    limit: Limit = None,
    sources: Sources = None,
    controls: Controls = None,
    output: Output = None,
    samples: Samples = None,
    print_command: PrintCommand = False,
    devices: Devices = 1,
    precision: Precision = "32-true",
    accelerator: Device = None,
) -> None:
    """Score models: they answer the questions of a split, or of benchmarks, and the answers are scored.

    Without tasks, one model answers the questions of its own data. Controls show what it scores without seeing.
    image_zeroed: the image is blank. image_shuffled: the image is another sample's. prior: the most frequent answer of
    each kind in the split train. `--controls none` takes a third of the time.

    With tasks, all models are asked the same questions; the report has their paired differences.

    Example: `fvl evaluate runs/demo/concat/finetune --limit 100 --controls none`
    Example: `fvl evaluate runs/a/finetune runs/b/finetune --tasks textvqa,mine.yaml --limit 500`
    """
    models = models or []
    if not models and not samples:
        raise ConfigError("MODEL: name a run or a model folder")
    if tasks is not None or suite is not None:
        _refuse({"--level": level, "--data": data, "--sources": sources}, "it is for the data of a run, not for tasks")
        names = [name for name in (tasks or "").split(",") if name] or _suite(suite)
        request = _request(models, names, change or (), samples or (), output, plugins or ())
        request = replace(
            request, limit=limit, variations=_names(controls or NONE), precision=precision,
            accelerator=accelerator or "auto", adapter=adapter, plugins=plugins or (),
        )  # fmt: skip
        if print_command:
            _print_command(request)
        elif devices > 1 and started_ranks() == 1:
            raise typer.Exit(run_ranks(devices, sys.argv[1:]))
        else:
            _evaluate_on_tasks(request)
        return
    given = {"--set": change, "--output": output, "--from": samples, "--print": print_command or None}
    _refuse({**given, "--devices": devices if devices > 1 else None}, "it is for --tasks or --suite")
    if len(models) > 1:
        raise ConfigError(f"{len(models)} models are given; several are compared on --tasks or a --suite")
    shown = (controls or ALL, precision, accelerator, sources)
    _evaluate_on_split(models[0], split, level, data, adapter, plugins, limit, *shown)


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Raises ConfigError for the first of these options that has a value."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option}: {why}")


def _names(controls: str) -> list[str]:
    names = [name.strip() for name in controls.split(",") if name.strip()]
    return [] if names == [NONE] else ["controls", "corruptions"] if names == [ALL] else names


def _suite(name: str | None) -> list[str]:
    from fvl_lightning.evaluation.tasks.lookup import suite

    return suite(name or "")


def _request(
    models: Sequence[str], names: Sequence[str], changes: Sequence[str], samples: Sequence[str],
    output: Path | None, plugins: Sequence[str],
) -> "EvaluationRequest":  # fmt: skip
    """Returns what is asked, once the names of tasks and files are right; nothing heavy has been imported then."""
    from fvl_lightning.evaluation.tasks.lookup import find_task
    from fvl_lightning.evaluation.tasks.request import EvaluationRequest, default_output, named_files

    tasks = [find_task(name, changes, plugins=plugins) for name in names]
    if len({task.name for task in tasks}) < len(tasks):
        raise ConfigError(f"--tasks: one is named twice in {', '.join(task.name for task in tasks)}")
    return EvaluationRequest(models, tasks, output or default_output(tasks), files=named_files(samples))


def _print_command(request: "EvaluationRequest") -> None:
    from fvl_lightning.evaluation.tasks.lmms_command import lmms_eval_command

    for model in request.models:
        adapter, precision = request.adapter, request.precision
        say(lmms_eval_command(model, request.tasks, request.limit, adapter=adapter, precision=precision))


def _evaluate_on_tasks(request: "EvaluationRequest") -> None:
    """Asks all questions, writes the report and prints its table; rank 0 alone writes and prints."""
    from fvl_lightning.evaluation.tasks.run import run_evaluation, write_results

    with progress(BarColumn(), TaskProgressColumn(), TimeRemainingColumn()) as bar:
        shown = bar.add_task("reading questions", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(shown, description=what, completed=done, total=total)

        results = run_evaluation(request, show)
    if own_rank() == 0:
        tables, report = write_results(request, results)
        for table in tables:
            terminal().print(table)
        say(f"report: {report}")


def _evaluate_on_split(
    model: str, split: str, level: str | None, data: Path | None, adapter: str | None, plugins: Sequence[str] | None,
    limit: int | None, controls: str, precision: str, accelerator: str | None, sources: str | None,
) -> None:  # fmt: skip
    """Shows the scores of a model on a split of its own data, or of other data."""
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
        given = {"--data": data, "--adapter": adapter, "--limit": limit, "--sources": sources or None}
        _score_encoder(folder, split, given | {"--controls": controls != ALL or None}, precision, accelerator)
        return
    if folder is not None and data is None:
        built, connected = open_model(folder, level, split, accelerator)
        say_what_it_has_seen(built, model)
    else:
        built, connected = open_with_data(model, data, level, split, accelerator)
    attach_adapters(built, adapter and [adapter])
    kept = [name.strip() for name in (sources or "").split(",") if name.strip()]
    if kept:
        built.model.alignment.keep(kept)
    columns, count = _scores(Scoring(built, connected, split, limit=limit, precision=precision), chosen)
    if "prior" in chosen and "prior" not in columns:
        say("prior: the data has no split train with questions, in which answers could be counted", stderr=True)
    named = f"{folder.path if folder else model}{f' with {adapter}' if adapter else ''}"
    seen = f" with {', '.join(kept)} only" if kept else ""
    asked = f", {count} questions" if limit else ""
    _show(columns, f"{named} on {split}{seen}{asked}{in_precision(precision)}")


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
