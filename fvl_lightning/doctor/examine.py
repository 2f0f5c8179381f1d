"""Runs all checks of `fvl doctor`, in order."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from datamodules.base import BatchData
from fvl_lightning.core.errors import UserError, first_line
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.configuration import check_configuration
from fvl_lightning.doctor.finding import Finding, run_check, skipped
from fvl_lightning.doctor.model import (
    advice_for_missing,
    check_initial_weights,
    check_model,
    shaped_stage,
    stage_with_stand_in_tokenizer,
)
from fvl_lightning.doctor.one_batch import check_one_batch
from fvl_lightning.doctor.resources import (
    check_disk_space,
    check_evaluation,
    check_memory,
    check_recomputation,
    check_schedule,
    check_tracking,
)
from fvl_lightning.doctor.shards import check_shards, count_samples, prepare_data
from fvl_lightning.doctor.supervision import (
    RowStatistics,
    check_chat_template,
    check_question_form,
    check_supervision,
    has_conversations,
    inspect_example,
    inspect_rows,
)
from fvl_lightning.profiling.batch_shape import worst_batch
from fvl_lightning.profiling.memory import MemoryEstimate, estimate_memory
from fvl_lightning.runs.extensions import OpenEvaluation
from fvl_lightning.runs.setup import data_context
from fvl_lightning.stages.base import Stage


def examine(
    path: Path,
    overrides: list[str],
    memory_gb: float | None,
    report_progress: Callable[[str], None],
    open_evaluation: OpenEvaluation | None = None,
) -> tuple[list[Finding], MemoryEstimate | None]:
    """Runs every check in order; a failed check only skips the checks that need its result.

    Args:
        path: the experiment file.
        overrides: `key=value` from the command line.
        memory_gb: memory of the target device in 10^9 bytes; None for this machine's GPU, if it has one.
        report_progress: called with the name of each step before it starts.
        open_evaluation: opens the tasks of `trainer.evaluate`; None leaves them out.

    Returns:
        The findings, and the memory estimate where one could be made.
    """
    report_progress("configuration")
    configs: list[ExperimentConfig] = []
    findings = run_check("configuration", lambda: check_configuration(path, overrides, configs))
    if not configs:
        return findings, None
    (config,) = configs
    data: BatchData = config.data.component(config.data.config)
    findings += run_check("shards", lambda: prepare_data(data, report_progress))
    report_progress("the model")
    stages: list[Stage] = []
    of_model = run_check("model", lambda: _model(config, stages))
    model_is_built = of_model[0].status == "ok"
    findings += of_model
    stage = stages[0] if stages else None
    findings += run_check("init_from", lambda: check_initial_weights(config))
    report_progress("shards and supervised tokens")
    readable, samples = _shards(config, data, findings)
    stats = RowStatistics()
    if stage is not None and model_is_built:
        findings += run_check("supervision", lambda: _rows(config, data, stage, readable, stats))
    else:
        findings.append(skipped("supervision", "the model with its tokenizer"))
    findings += check_schedule(config, samples, stats.mean_tokens if readable else None)
    findings += run_check("evaluation", lambda: check_evaluation(config, open_evaluation))
    report_progress("memory, by a fake step")
    estimates: list[MemoryEstimate] = []
    if stage is not None:
        findings += _memory(config, stage, stats, readable, _device_bytes(memory_gb), estimates)
    else:
        findings.append(skipped("memory", "the model's configuration"))
    findings += check_disk_space(config, stage)
    report_progress("the tracking store")
    findings += run_check("tracking", lambda: check_tracking(config))
    report_progress("one batch")
    findings += run_check("one batch", lambda: check_one_batch(path, overrides, config, stage))
    return findings, estimates[0] if estimates else None


def _model(config: ExperimentConfig, stages: list[Stage]) -> Iterator[Finding]:
    """Builds the stage on the meta device and appends it to `stages`.

    Where the tokenizer cannot be read, a stand-in tokenizer still allows the memory estimate.
    """
    try:
        stages.append(shaped_stage(config))
    except UserError as error:
        yield Finding("model", "failed", str(error), advice_for_missing(config))
        stages.extend(stage_with_stand_in_tokenizer(config))
        return
    yield from check_model(stages[0])


def _shards(config: ExperimentConfig, data: BatchData, findings: list[Finding]) -> tuple[bool, int | None]:
    """Returns whether the shards can be read, and the number of training samples where it is known."""
    shard_findings = run_check("shards", lambda: check_shards(config, data))
    findings += shard_findings
    readable = not any(finding.status == "failed" for finding in shard_findings)
    return readable, count_samples(data) if readable else None


def _rows(
    config: ExperimentConfig, data: BatchData, stage: Stage, readable: bool, stats: RowStatistics
) -> Iterator[Finding]:
    """Checks which tokens of a row are supervised, on real rows where shards can be read; fills `stats`."""
    data.connect(data_context(stage.model, stage.tokenizer, config))
    if readable:
        inspect_rows(data, stats)
    elif config.data.config.view != "tasks":
        inspect_example(data.encoder, config.data.config.view, stats)
    yield from check_supervision(config, stats, readable)
    if has_conversations(data, config, readable):
        day = getattr(config.language_model.config, "chat_date", None) if config.language_model else None
        yield from check_chat_template(data.encoder, day)
        if readable:
            yield from check_question_form(data)


def _memory(
    config: ExperimentConfig,
    stage: Stage,
    stats: RowStatistics,
    readable: bool,
    device_bytes: int | None,
    estimates: list[MemoryEstimate],
) -> list[Finding]:
    """Estimates the memory, appends the estimate to `estimates` and compares it with the device."""
    shape = worst_batch(config, stage.model, stats.images_per_row(config.data.config))
    try:
        estimates.append(estimate_memory(config, stage.model, stage.trainable, shape))
    except Exception as error:  # a component may read tensor values, which fake tensors do not have
        message = f"no estimate: a fake step ended with {type(error).__name__}: {first_line(error)}"
        return [Finding("memory", "warning", message, "measure it: `fvl train` for a few steps on one device")]
    findings = check_memory(config, estimates[0], device_bytes, stats.longest if readable else None)
    if config.trainer.checkpoint_activations and device_bytes is not None and findings[0].status == "ok":
        keeping = replace(config, trainer=replace(config.trainer, checkpoint_activations=[]))
        kept = estimate_memory(keeping, stage.model, stage.trainable, shape)
        findings += check_recomputation(kept.peak, device_bytes)
    return findings


def _device_bytes(memory_gb: float | None) -> int | None:
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
