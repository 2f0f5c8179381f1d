"""All checks of `fvl doctor`, in their order."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError, UserError, first_line
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.finding import Finding, findings_of, skipped
from fvl_lightning.doctor.model import (
    advice_for_missing,
    check_initial_weights,
    check_model,
    shaped_stage,
    stage_with_demo_tokenizer,
)
from fvl_lightning.doctor.one_batch import check_one_batch
from fvl_lightning.doctor.resources import check_disk_space, check_memory, check_schedule, check_tracking
from fvl_lightning.doctor.shards import check_shards, count_samples, prepare_data
from fvl_lightning.doctor.supervision import (
    Looked,
    check_chat_template,
    check_question_form,
    check_supervision,
    has_conversations,
    look_at_examples,
    look_at_rows,
)
from fvl_lightning.profiling.batch_shape import worst_batch
from fvl_lightning.profiling.memory import MemoryEstimate, estimate_memory
from fvl_lightning.runs.setup import data_context
from fvl_lightning.stages.base import Stage


def examine(
    path: Path, words: list[str], memory_gb: float | None, doing: Callable[[str], None]
) -> tuple[list[Finding], MemoryEstimate | None]:
    """Every check in order, those that can be done where others have failed."""
    doing("configuration")
    configs: list[ExperimentConfig] = []
    findings = findings_of("configuration", lambda: _configuration(path, words, configs))
    if not configs:
        return findings, None
    (config,) = configs
    data: Any = config.data.component(config.data.config)
    findings += findings_of("shards", lambda: prepare_data(data, doing))
    doing("the model")
    stages: list[Stage] = []
    findings += findings_of("model", lambda: _model(config, stages))
    understood = findings[-1].verdict == "ok"
    stage = stages[0] if stages else None
    findings += findings_of("init_from", lambda: check_initial_weights(config))
    doing("shards and what is supervised")
    readable, samples = _shards(config, data, findings)
    looked = Looked()
    if stage is not None and understood:
        findings += findings_of("supervision", lambda: _rows(config, data, stage, readable, looked))
    else:
        findings.append(skipped("supervision", "the model with its tokenizer"))
    findings += check_schedule(config, samples, looked.mean_tokens if readable else None)
    doing("memory, by a step on shapes")
    estimates: list[MemoryEstimate] = []
    if stage is not None:
        findings += _memory(config, stage, looked, readable, _device_bytes(memory_gb), estimates)
    else:
        findings.append(skipped("memory", "the model's configuration"))
    findings += check_disk_space(config, stage)
    doing("the tracking store")
    findings += findings_of("tracking", lambda: check_tracking(config))
    doing("one batch")
    findings += findings_of("one batch", lambda: check_one_batch(path, words, config, stage))
    return findings, estimates[0] if estimates else None


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
        stages.append(shaped_stage(config))
    except UserError as error:
        yield Finding("model", "failed", str(error), advice_for_missing(config))
        stages.extend(stage_with_demo_tokenizer(config))
        return
    yield from check_model(stages[0])


def _shards(config: ExperimentConfig, data: Any, findings: list[Finding]) -> tuple[bool, int | None]:
    """Whether shards can be read, and how many samples of the split train there are, where that is known."""
    found = findings_of("shards", lambda: check_shards(config, data))
    findings += found
    readable = not any(finding.verdict == "failed" for finding in found)
    return readable, count_samples(data) if readable else None


def _rows(config: ExperimentConfig, data: Any, stage: Stage, readable: bool, looked: Looked) -> Iterator[Finding]:
    """What is supervised of rows, real ones where there are any, into `looked`."""
    data.connect(data_context(stage.model, stage.tokenizer, config))
    if readable:
        look_at_rows(data, looked)
    elif config.data.config.view != "tasks":
        look_at_examples(data.encoder, config.data.config.view, looked)
    yield from check_supervision(config, looked, readable)
    if has_conversations(data, config, readable):
        day = getattr(config.language_model.config, "chat_date", None) if config.language_model else None
        yield from check_chat_template(data.encoder, day)
        if readable:
            yield from check_question_form(data)


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
    return check_memory(config, estimates[0], device_bytes, looked.longest if readable else None)


def _device_bytes(memory_gb: float | None) -> int | None:
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
