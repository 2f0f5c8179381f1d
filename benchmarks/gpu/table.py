"""The table of what checks have found, with what is counted without a device: operations of a step and its memory."""

import importlib.metadata
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.gpu.runner import Settings
from benchmarks.gpu.training import experiment_of, synthetic_batch
from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.batch_shape import BatchShape
from fvl_lightning.profiling.fake_step import fake_tensors, without_values
from fvl_lightning.profiling.flops import training_flops
from fvl_lightning.profiling.memory import estimate_memory
from fvl_lightning.runs.setup import build_stage

PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362}
"""Dense bfloat16 by a part of the device's name, from the vendor's data sheets; the first that fits counts."""
PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes")
BYTES, TFLOP = 1e9, 1e12
UNITS = {
    "milliseconds": ("ms", 1.0), "host_milliseconds": ("ms of the host", 1.0), "seconds": ("s", 1.0),
    "step_seconds": ("s a step", 1.0), "tokens_per_second": ("tokens/s", 1.0), "mfu": ("MFU", 1.0),
    "logged_tokens_per_second": ("tokens/s logged", 1.0), "questions_per_second": ("questions/s", 1.0),
    "step_flops": ("TFLOP a step", TFLOP), "peak_bytes": ("GB peak", BYTES), "estimated_bytes": ("GB estimated", BYTES),
    "peak_memory_bytes": ("GB peak", BYTES), "extra_bytes": ("GB more", BYTES), "length": ("tokens a row", 1.0),
    "difference": ("difference", 1.0), "accuracy": ("accuracy", 1.0),
}  # fmt: skip
"""{key of a finding: (its unit in the table, that unit in the finding's)}."""


def with_counts(lines: Sequence[dict[str, Any]], settings: Settings, device: str) -> list[dict[str, Any]]:
    """Returns the lines; those of 3B trainings with speed, operations, the share of the device's peak, and estimates.

    Args:
        lines: of checks.jsonl.
        settings: of the checks.
        device: the device's name.
    """
    return [_counted(line, settings, device) if "step_seconds" in line else line for line in lines]


def _counted(line: dict[str, Any], settings: Settings, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        save_tokenizer(Path(name) / "tokenizer")
        experiment = experiment_of(settings, line["preset"], line["overrides"], Path(name))
        flops, memory = count(experiment, line["rows"])
    peak = peak_flops(device)
    return line | {
        "tokens_per_second": line["rows"] * experiment.data.config.sequence_length / line["step_seconds"],
        "step_flops": flops,
        "mfu": flops / line["step_seconds"] / peak if peak else None,
        "estimated_bytes": memory,
    }


def count(experiment: ExperimentConfig, rows: int) -> tuple[int, int]:
    """Returns the operations of a step and the bytes that are estimated for it, from shapes alone.

    The operations are those of forward and backward pass (matrix products, convolutions, attention with its masked
    half), two per multiply-add. What is computed again counts once; frozen parts have no gradients.
    """
    plain = experiment.lora and replace(experiment.lora, quantization=None)
    stage = build_stage(replace(experiment, lora=plain), "meta")
    stage.adapt(Path())
    batch = synthetic_batch(stage, 1, 0)
    assert batch.images is not None
    with fake_tensors(), without_values(stage.model):
        flops = rows * training_flops(stage, replace(batch, images=torch.empty(batch.images.shape)))
    shape = BatchShape(rows, batch.token_ids.shape[1], rows)
    return flops, estimate_memory(experiment, stage.model, stage.trainable, shape).peak


def peak_flops(device: str) -> float | None:
    """Returns the operations per second of a device by its name; None where the name is not known."""
    return next((tflops * TFLOP for part, tflops in PEAK_TFLOPS.items() if part in device), None)


def hardware(settings: Settings) -> dict[str, Any]:
    """Returns the device that this process sees."""
    if settings.tiny:
        return {"device": "cpu"}
    properties = torch.cuda.get_device_properties(0)
    return {"device": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that do the work."""
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def table_of(lines: Sequence[dict[str, Any]]) -> Table:
    """Returns a row for each finding, and for each check that did not end well."""
    table = Table("check", "case", "found")
    for line in lines:
        if "case" in line:
            table.add_row(line["check"], line["case"], line.get("error") or _in_units(line))
        elif line["end"] != "ok":
            table.add_row(line["check"], "", " | ".join([line["end"], *line.get("last_lines", [])]))
    return table


def _in_units(line: dict[str, Any]) -> str:
    found = [f"{line[key] / size:,.4g} {unit}" for key, (unit, size) in UNITS.items() if line.get(key) is not None]
    if "losses" in line:
        found.append("losses " + " ".join(f"{loss:.4f}" for loss in line["losses"]))
    if "devices" in line:
        found.append("on " + " and ".join(line["devices"]))
    if "same_bits" in line:
        found.append("the same bits" if line["same_bits"] else "other bits")
    return ", ".join(found)
