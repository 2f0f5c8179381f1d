"""Walks a path of the kit on a device that is not the CPU: `python device_paths.py PATH [FAULT]` in a working folder.

The GPU that core/device.py finds is the pretended one of tests/pretend_device.py. FAULT puts a fault back first.
"""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from rich.console import Console
from torch import Tensor, nn

from fvl_lightning.cli.main import run as fvl
from fvl_lightning.comparison import runner, worker
from fvl_lightning.comparison.matching import sizes
from fvl_lightning.comparison.plan import SeedPlan
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.core import device
from fvl_lightning.core.config.loading import as_plain
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import Batch, PromptedBatch
from fvl_lightning.evaluation import cost, scoring
from fvl_lightning.evaluation.answers import Scoring
from fvl_lightning.inference import encoder as inference_encoder
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.runs import references, setup
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training import trainer
from tests import pretend_device

RUN, ENCODER = "runs/tiny", "runs/encoder"
"""A run of finetune and one of encoder_pretrain, trained on the CPU."""


class PretendAccelerator(Accelerator):
    """The accelerator of Lightning that has the device."""

    def setup_device(self, device: torch.device) -> None:
        """Has nothing to do."""

    def teardown(self) -> None:
        """Has nothing to do."""

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return 1

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [pretend_device.device()]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return pretend_device.NAME


def experiment(**changes: Any) -> ExperimentConfig:
    return RunFolder(Path(RUN)).experiment().with_overrides(
        {"output": "runs/device", "init_from": [], "trainer.max_steps": 1, **changes}
    )


def opened() -> Scoring:
    built, data = scoring.open_model(RunFolder(Path(RUN)))
    return Scoring(built, data, limit=4)


def train() -> None:
    """One step of training with validation, then the model is saved."""
    run = worker.run_training(experiment())
    assert run.finished


def score() -> None:
    """Answers, controls and cost of a run."""
    asked = opened()
    scoring.score(asked)
    scoring.score_controls(asked)
    found = cost.count_cost(RunFolder(Path(RUN)), asked.built, asked.data)
    assert found["training_flops"] > 0


def cell() -> None:
    """A whole cell with another level, and a trial of learning rates."""
    spec = CellSpec(stages=[as_plain(experiment())], transfer_levels=["medium"])
    for split in ("test", "validation"):
        worker.run_cell(replace(spec, split=split), "key", Path(mkdtemp(dir=".")))


def encoder() -> None:
    """What an encoder writes: its scores, and `fvl encoder`."""
    scoring.score_encoder(RunFolder(Path(ENCODER)))
    assert fvl(["encoder", ENCODER, "--image", "picture.png", "--task", "grounding", "--max-tokens", "8"]) == 0


def flops() -> None:
    """The size of an arm for `match: flops`."""
    assert sizes.Operations(experiment()).own() > 0


def features() -> None:
    """The feature cache of a comparison, in both types of file."""
    for dtype in ("float32", "bfloat16"):
        cached = experiment(feature_cache=mkdtemp(dir="."), feature_cache_dtype=dtype)
        runner.warm_feature_cache(None, SeedPlan(None, {"a": [cached]}, {}), Console(file=io.StringIO()))


def answers() -> None:
    """`fvl generate`, and a conversation as in `fvl chat` and `fvl serve`."""
    assert fvl(["generate", RUN, "--image", "picture.png", "--prompt", "What is this?", "--max-tokens", "4"]) == 0
    sys.stdin = io.StringIO("What is this?\n/quit\n")
    assert fvl(["chat", RUN, "--image", "picture.png", "--max-tokens", "4"]) == 0


def tasks() -> None:
    """Two tasks by `fvl evaluate`: texts that are cut, and choices; a corruption, and no images at all."""
    row = {"question": "What is this?", "image": "picture.png", "choices": ["red", "blue"], "answer": "A"}
    Path("rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    for by, more in (("generation", ", tokens: 4, stop: [x]"), ("likelihood", "")):
        Path(f"{by}.yaml").write_text(
            f"title: {by}\ndata: {{files: rows.jsonl, images: .}}\nfields: {{choices: [choices]}}\n"
            f"answer: {{by: {by}{more}}}\n",
            encoding="utf-8",
        )
    words = ["--tasks", "generation.yaml,likelihood.yaml", "--controls", "blind,noise-1", "--output", mkdtemp(dir=".")]
    assert fvl(["evaluate", RUN, *words]) == 0


PATHS: dict[str, Callable[[], None]] = {
    path.__name__: path for path in (train, score, cell, encoder, flops, features, answers, tasks)
}


def stays(*modules: Any) -> Callable[[], None]:
    """A fault: what these modules move to the device stays on the CPU."""

    def put_back() -> None:
        for module in modules:
            module.compute_device = lambda accelerator="auto": torch.device("cpu")

    return put_back


def batches_stay() -> None:
    """A fault: batches are not moved."""
    for kind in (Batch, PromptedBatch):
        kind.to = lambda self, device: self


FAULTS: dict[str, tuple[str, Callable[[], None]]] = {
    "the model of a run is not moved": ("score", stays(scoring)),
    "the model of a cell is not moved": ("cell", stays(scoring)),
    "the batch of the cost is not moved": ("score", batches_stay),
    "the encoder that is scored is not moved": ("encoder", stays(scoring)),
    "the targets of the encoder are not moved": ("encoder", batches_stay),
    "the encoder of fvl encoder is not moved": ("encoder", stays(inference_encoder)),
    "the encoder of the feature cache is not moved": ("features", stays(setup)),
    "the model of match: flops is not moved": ("flops", stays(sizes)),
    "the batch of match: flops is not moved": ("flops", batches_stay),
    "the model of fvl generate is not moved": ("answers", stays(references)),
}
"""{fault: (the path on which it is found, what puts it back)}."""


def refuse_the_cpu(module: nn.Module, inputs: Any) -> None:
    """Fails where an encoder or a whole model computes on the CPU; a hook of all modules."""
    if isinstance(module, nn.Conv2d | FlorenceVLForConditionalGeneration):
        tensors = [*inputs, *module.parameters()]
        if any(isinstance(one, Tensor) and one.device.type == "cpu" for one in tensors):
            raise AssertionError(f"{type(module).__name__} computes on the CPU")


def main(path: str, fault: str = "") -> None:
    """Walks a path, or the path of a fault with that fault."""
    pretend_device.register()
    device._gpu = pretend_device.device
    trainer.build_strategy = lambda config: SingleDeviceStrategy(pretend_device.device(), PretendAccelerator())
    nn.modules.module.register_module_forward_pre_hook(refuse_the_cpu)
    if fault:
        FAULTS[fault][1]()
    PATHS[path]()


if __name__ == "__main__":
    main(*sys.argv[1:])
