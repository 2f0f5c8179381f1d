"""Steps of a Florence-VL 3B preset at its real size, with random weights: speed, memory, losses and kernels.

The presets of experiments/florence_vl/3b are built from configurations in this repository, so nothing is downloaded.
Batches are random tokens and pixels in the presets' shapes: rows of 2048 tokens with an image of 768 px (576 of them).
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from benchmarks.gpu.runner import Findings, Settings
from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning import ConfigError, load_experiment
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import IGNORE_INDEX, Batch
from fvl_lightning.modeling.initialization import initialize
from fvl_lightning.profiling.published_sizes import FOLDER as HUB
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.distributed.process_group import init_process_group
from fvl_lightning.training.lora import lora_components
from fvl_lightning.training.memory_peak import peak_memory_bytes, reset_peak_memory
from fvl_lightning.training.trainer import build_trainer

ROOT = Path(__file__).parents[2]
MODELS = (("encoder", "florence-community/Florence-2-large-ft"), ("language_model", "microsoft/Phi-3.5-mini-instruct"))
WARM_UP = 2
"""Steps that are not timed."""
KERNELS = 25
"""Kernels that a profile lists, the slowest first."""


def findings(settings: Settings, preset: str, overrides: Sequence[str] = (), profiled: bool = False) -> Findings:
    """Yields one finding: a step's seconds (median), peak memory, losses and, if profiled, its kernels."""
    case = " ".join([preset, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder) / "tokenizer")
        try:
            measured = train(experiment_of(settings, preset, overrides, Path(folder)), settings, Path(folder), profiled)
        except (ConfigError, torch.OutOfMemoryError) as error:
            yield {"case": case, "error": "does not fit" if isinstance(error, torch.OutOfMemoryError) else str(error)}
            return
    yield {
        "case": case, "preset": preset, "overrides": list(overrides), "rows": settings.rows,
        "step_seconds": statistics.median(measured.seconds[WARM_UP : settings.steps - profiled]),
        "first_step_seconds": measured.seconds[0], "losses": measured.losses, "peak_bytes": measured.peak_bytes,
        **({"kernels": measured.kernels} if profiled else {}),
    }  # fmt: skip


def experiment_of(settings: Settings, preset: str, overrides: Sequence[str], folder: Path) -> ExperimentConfig:
    """Returns the preset, its sizes from configurations in this repository; `folder` has a tokenizer."""
    words = [
        f"scale={'tiny' if settings.tiny else 'full'}", f"trainer.accelerator={settings.device}",
        f"trainer.batch_size={settings.rows}", f"trainer.max_steps={settings.steps}", "trainer.accumulate=1",
        "trainer.strategy=single", "trainer.devices=1", "trainer.nodes=1", "trainer.precision=bf16-mixed",
        "trainer.checkpoint_activations=[encoder,language_model]", "tracking.enabled=false",
    ]  # fmt: skip
    for slot, name in MODELS:
        words += [f"{slot}.tokenizer={folder / 'tokenizer'}", f"{slot}.revision=null"]
        words += [] if settings.tiny else [f"{slot}.pretrained={HUB / name}"]
    return load_experiment(ROOT / f"experiments/florence_vl/3b/{preset}.yaml", *words, *overrides)


class Measured(Checkpoint):
    """Seconds, losses and peak memory of the steps. As a checkpoint callback it keeps Lightning from adding its own."""

    def __init__(self, steps: int, profiled: bool = False) -> None:
        self.steps, self.profiled = steps, profiled
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.kernels: list[dict[str, Any]] = []
        self.peak_bytes: int | None = None
        self._started = 0.0
        self._profile: Any = None

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Leaves out what building and sharding have taken."""
        reset_peak_memory(trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the clock once the device is idle, and in the last step the profile."""
        if self.profiled and len(self.seconds) == self.steps - 1:
            self._profile = torch.profiler.profile()
            self._profile.__enter__()
        self._started = self._now(trainer)

    def on_train_batch_end(self, trainer: Trainer, stage: Any, *_: Any) -> None:
        """Ends a step, which is one batch."""
        self.seconds.append(self._now(trainer) - self._started)
        self.losses.append(stage.read_log()["train/loss"])
        self.peak_bytes = peak_memory_bytes(trainer.strategy.root_device)
        if self._profile is not None:
            self._profile.__exit__(None, None, None)
            self.kernels = slowest(self._profile)

    @staticmethod
    def _now(trainer: Trainer) -> float:
        torch.get_device_module(trainer.strategy.root_device).synchronize()
        return time.perf_counter()


def slowest(profile: Any) -> list[dict[str, Any]]:
    """Returns the kernels (on a CPU, the operations) that took longest, with their shares of the time."""
    events = [(event, event.self_device_time_total or event.self_cpu_time_total) for event in profile.key_averages()]
    if any(event.self_device_time_total for event, _ in events):
        events = [(event, event.self_device_time_total) for event, _ in events]
    total = sum(microseconds for _, microseconds in events) or 1
    ranked = sorted(events, key=lambda pair: -pair[1])[:KERNELS]
    return [
        {"kernel": event.key[:110], "calls": event.count, "share": round(microseconds / total, 4)}
        for event, microseconds in ranked
    ]


class SyntheticBatches:
    """As many unlike batches as steps; the same ones in every check."""

    def __init__(self, stage: Stage, rows: int, steps: int) -> None:
        self.stage, self.rows, self.steps = stage, rows, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (synthetic_batch(self.stage, self.rows, seed) for seed in range(self.steps))


def train(experiment: ExperimentConfig, settings: Settings, folder: Path, profiled: bool = False) -> Measured:
    """Makes some steps with the kit's own stage, strategy and trainer."""
    with init_process_group(experiment.trainer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        stage = with_random_weights(experiment, settings.device)
        if lora_components(stage.trainable):
            stage.adapt(folder)
        measured = Measured(settings.steps, profiled)
        trainer = build_trainer(experiment.trainer, folder, [], [measured])
        # Lightning would now move the model and the optimiser's state to main memory, which takes as long as the steps.
        trainer.strategy.teardown = lambda: None  # type: ignore[method-assign]
        trainer.fit(stage, train_dataloaders=SyntheticBatches(stage, settings.rows, settings.steps))
    return measured


def with_random_weights(experiment: ExperimentConfig, device: str) -> Stage:
    """Returns the stage with initial weights, drawn on the device, also where the experiment names those of the hub."""
    stage = build_stage(experiment, "meta")
    stage.model.to_empty(device=device)
    initialize(stage.model, experiment.seed)
    stage.model.tie_weights()
    return stage


def synthetic_batch(stage: Stage, rows: int, seed: int) -> Batch:
    """Returns rows of random tokens behind one image each, all tokens supervised."""
    generator = torch.Generator().manual_seed(seed)
    spec, config = stage.model.image_spec, stage.model.config
    shape = rows, stage.experiment.data.config.sequence_length
    token_ids = torch.randint(config.get_text_config().vocab_size, shape, generator=generator)
    token_ids[token_ids == config.image_token_id] = int(config.image_token_id == 0)
    token_ids[:, 1 : 1 + spec.tokens_per_image] = config.image_token_id
    labels = token_ids.clone()
    labels[:, : 1 + spec.tokens_per_image] = IGNORE_INDEX
    images = torch.randn(rows, 3, spec.size, spec.size, generator=generator)
    return Batch(token_ids, labels, images, None, tuple(f"{seed}-{row}" for row in range(rows)), (seed + 1) * rows)
