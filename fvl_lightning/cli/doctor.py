"""`fvl doctor`: what would end a training, or waste it, found on one CPU before any GPU waits."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Column, Table
from rich.text import Text

from fvl_lightning.cli.console import MISTAKE
from fvl_lightning.cli.shards.options import bytes_in_words
from fvl_lightning.cli.train import data_context
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError, UserError, first_line
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.core.terminal import terminal
from fvl_lightning.doctor import resources as checks
from fvl_lightning.doctor import supervision as data_checks
from fvl_lightning.doctor.resources import Finding, asked, skipped
from fvl_lightning.doctor.supervision import Looked
from fvl_lightning.profiling.batch_shape import worst_batch
from fvl_lightning.profiling.memory import MemoryEstimate, estimate_memory
from fvl_lightning.stages.base import Stage

LOG_WIDTH = 160
"""Columns where there is no terminal, or commands to copy would be broken in two."""
COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def doctor(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words, as for fvl train.")] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option("--memory-gb", min=0.1, help="Of a device (10^9 bytes); that of this machine's GPU if left out."),
    ] = None,
) -> None:
    """Check an experiment before it starts, on a CPU: data, masks, batches, memory, room, tracking, one batch.

    Exit code 2 where a check has failed.

    Example: `fvl doctor experiments/demo/finetune.yaml --memory-gb 80`
    """
    console = terminal()
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    with _progress() as doing:
        findings, estimate = examine(experiment, overrides or [], memory_gb, doing)
    console.print(table_of(findings))
    if estimate is not None:
        console.print(memory_table(estimate))
    if any(finding.verdict == "failed" for finding in findings):
        raise typer.Exit(MISTAKE)


def examine(
    path: Path, words: list[str], memory_gb: float | None, doing: Callable[[str], None]
) -> tuple[list[Finding], MemoryEstimate | None]:
    """Every check in order, those that can be done where others have failed."""
    doing("configuration")
    configs: list[ExperimentConfig] = []
    findings = asked("configuration", lambda: _configuration(path, words, configs))
    if not configs:
        return findings, None
    (config,) = configs
    data: Any = config.data.component(config.data.config)
    findings += asked("shards", lambda: data_checks.prepare(data, doing))
    doing("the model")
    stages: list[Stage] = []
    findings += asked("model", lambda: _model(config, stages))
    understood = findings[-1].verdict == "ok"
    stage = stages[0] if stages else None
    findings += asked("init_from", lambda: checks.start(config))
    doing("shards and what is supervised")
    readable, samples = _shards(config, data, findings)
    looked = Looked()
    if stage is not None and understood:
        findings += asked("supervision", lambda: _rows(config, data, stage, readable, looked))
    else:
        findings.append(skipped("supervision", "the model with its tokenizer"))
    findings += checks.schedule(config, samples, looked.mean_tokens if readable else None)
    doing("memory, by a step on shapes")
    estimates: list[MemoryEstimate] = []
    if stage is not None:
        findings += _memory(config, stage, looked, readable, _device_bytes(memory_gb), estimates)
    else:
        findings.append(skipped("memory", "the model's configuration"))
    findings += checks.room(config, stage)
    doing("the tracking store")
    findings += asked("tracking", lambda: checks.tracking(config))
    doing("one batch")
    findings += asked("one batch", lambda: checks.batch(path, words, config, stage))
    return findings, estimates[0] if estimates else None


def table_of(findings: Iterable[Finding]) -> Table:
    """A line per finding."""
    table = Table("check", "", Column("found", overflow="fold"), Column("what to do", overflow="fold"))
    for finding in findings:
        verdict = Text(finding.verdict, style=COLOURS[finding.verdict])
        table.add_row(finding.check, verdict, finding.found, finding.advice)
    return table


def memory_table(estimate: MemoryEstimate) -> Table:
    """Bytes per rank, by component and kind."""
    shape = estimate.shape
    title = f"memory per rank by arithmetic: {shape.rows} rows of {shape.tokens} tokens, {shape.images} images"
    kinds = {name: getattr(estimate, name) for name in ("parameters", "gradients", "optimizer", "activations")}
    table = Table("component", *(Column(name, justify="right") for name in kinds), title=title)
    for name in COMPONENTS:
        table.add_row(name, *(bytes_in_words(sizes[name]) for sizes in kinds.values()))
    table.add_row("all", *(bytes_in_words(sum(sizes.values())) for sizes in kinds.values()), end_section=True)
    table.add_row("communication", bytes_in_words(estimate.communication))
    table.add_row("peak", bytes_in_words(estimate.peak))
    return table


def _configuration(path: Path, words: list[str], configs: list[ExperimentConfig]) -> Iterator[Finding]:
    """Configuration and plugins, into `configs`."""
    config = load_config(ExperimentConfig, path, words)
    if config.data is None or config.stage is None:
        raise ConfigError("stage, data: the experiment has no training to look at, it must name both")
    plugins = f", plugins {', '.join(config.plugins)}" if config.plugins else ""
    yield Finding("configuration", "ok", f"stage {config.stage.name}{plugins}")
    configs.append(config)


def _model(config: ExperimentConfig, stages: list[Stage]) -> Iterator[Finding]:
    """The stage with the model's shapes, into `stages`; with another tokenizer where its own cannot be had."""
    try:
        stages.append(checks.shaped_stage(config))
    except UserError as error:
        yield Finding("model", "failed", str(error), checks.where_to_find(config))
        stages.extend(checks.stand_in(config))
        return
    yield from checks.model(stages[0])


def _shards(config: ExperimentConfig, data: Any, findings: list[Finding]) -> tuple[bool, int | None]:
    """Whether shards can be read, and how many samples of the split train there are, where that is known."""
    found = asked("shards", lambda: data_checks.shards(config, data))
    findings += found
    readable = not any(finding.verdict == "failed" for finding in found)
    return readable, data_checks.samples_of(data) if readable else None


def _rows(config: ExperimentConfig, data: Any, stage: Stage, readable: bool, looked: Looked) -> Iterator[Finding]:
    """What is supervised of rows, real ones where there are any, into `looked`."""
    data.connect(data_context(stage.model, stage.tokenizer, config))
    if readable:
        data_checks.look(data, looked)
    elif config.data.config.view != "tasks":
        data_checks.look_at_made_up(data.encoder, config.data.config.view, looked)
    yield from data_checks.rows(config, looked, readable)
    if data_checks.has_conversations(data, config, readable):
        day = getattr(config.language_model.config, "chat_date", None) if config.language_model else None
        yield from data_checks.template(data.encoder, day)
        if readable:
            yield from data_checks.asking(data)


def _memory(
    config: ExperimentConfig,
    stage: Stage,
    looked: Looked,
    readable: bool,
    device_bytes: int | None,
    estimates: list[MemoryEstimate],
) -> list[Finding]:
    """The verdict on the estimate, which goes into `estimates`."""
    shape = worst_batch(config, stage.model, looked.images_per_row(config.data.config))
    try:
        estimates.append(estimate_memory(config, stage.model, stage.trainable, shape))
    except Exception as error:  # a component may ask for values, which shapes do not have
        said = f"no estimate: a step on shapes ended with {type(error).__name__}: {first_line(error)}"
        return [Finding("memory", "warning", said, "measure it: `fvl train` for a few steps on one device")]
    return checks.memory(config, estimates[0], device_bytes, looked.longest if readable else None)


def _device_bytes(memory_gb: float | None) -> int | None:
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being done, on a terminal only; call what it gives with words."""
    console = terminal(stderr=True)
    if not console.is_terminal:
        yield lambda words: None
        return
    with console.status("") as status:
        yield lambda words: status.update(Text(words))
