"""What training Florence-VL 3B costs on one GPU: speed, use of its operations, memory, and FSDP beside one device.

    python benchmarks/gpu.py [--rows 4] [--steps 8] [--peak-tflops 989] [--output FOLDER]
    python benchmarks/gpu.py --scale tiny --device cpu

The presets of experiments/florence_vl/3b at their real sizes with random weights, which are built of configurations in
this repository; nothing is downloaded. Both stages, then stage 2 under FSDP on the one device, with LoRA, with QLoRA;
bf16-mixed, activations of encoder and language model computed again. Batches are random tokens and pixels in the
presets' shapes: rows of 2048 tokens with an image of 768 px (576 of them); `--rows` at a time, since the presets' 32
are for several devices. What does not fit is told as that.

    tokens/s    tokens of the rows, image tokens included, by the median step; the first two steps are not counted
    MFU         operations of a step / (its seconds x the device's dense bfloat16 peak). The operations are those of
                forward and backward pass (matrix products, convolutions, attention with its masked half), two per
                multiply-add, counted on shapes; what is computed again counts once, frozen parts have no gradients
    peak        the most the allocator has given out from the first step on, beside `estimate_memory`
    difference  of the losses under FSDP from those of one device, the largest relative one over all steps

The table is also saved, with hardware and versions, in benchmarks/results/gpu.json. `--scale tiny` runs the very same
code on models a thousandth the size, in seconds; it measures nothing and is saved only where --output says.
"""

import argparse
import gc
import importlib.metadata
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from recording import RESULTS, record
from rich.console import Console
from rich.progress import track
from rich.table import Table

from datamodules.demo.tokenizer import save_tokenizer
from fvl_lightning import ConfigError, load_experiment
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import IGNORE_INDEX, Batch
from fvl_lightning.modeling.initialization import initialize
from fvl_lightning.profiling.batch_shape import BatchShape
from fvl_lightning.profiling.fake_step import fake_tensors, without_values
from fvl_lightning.profiling.flops import training_flops
from fvl_lightning.profiling.memory import estimate_memory
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.distributed.process_group import init_process_group
from fvl_lightning.training.lora import lora_components
from fvl_lightning.training.trainer import build_trainer

ROOT = Path(__file__).parents[1]
HUB = ROOT / "tests" / "fixtures" / "hub_configs"
CASES = {
    "pretrain": ("pretrain", ()),
    "finetune": ("finetune", ()),
    "finetune, FSDP": ("finetune", ("trainer.strategy=fsdp",)),
    "finetune, LoRA": ("finetune_lora", ()),
    "finetune, QLoRA": ("finetune_qlora", ()),
}
"""{case: (preset, words)}."""
WARM_UP = 2
"""Steps that are not timed."""
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362}
"""Dense bfloat16, by a part of the device's name, from the vendor's data sheets; the first that fits counts."""
PACKAGES = ("torch", "lightning", "transformers", "peft", "bitsandbytes")


@dataclass
class Row:
    """What was measured of a case; None where it was not, `note` says why."""

    case: str
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    step_flops: int | None = None
    mfu: float | None = None
    peak_bytes: int | None = None
    estimated_bytes: int | None = None
    losses: list[float] | None = None
    note: str = ""


class Measured(Checkpoint):
    """Seconds, losses and peak memory of the steps. As a checkpoint callback it keeps Lightning from adding its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self._started = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Building and sharding are not counted."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock once the device is idle."""
        self._started = self._now()

    def on_train_batch_end(self, trainer: Trainer, stage: Any, *_: Any) -> None:
        """A batch is a step."""
        self.seconds.append(self._now() - self._started)
        self.losses.append(stage.read_log()["train/loss"])

    @property
    def peak_bytes(self) -> int | None:
        """Since the first step; None where nobody counts."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class SyntheticBatches:
    """As many batches as steps, each other than the one before; the same ones in every case."""

    def __init__(self, stage: Stage, rows: int, steps: int) -> None:
        self.stage, self.rows, self.steps = stage, rows, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return (synthetic_batch(self.stage, self.rows, seed) for seed in range(self.steps))


def main(words: list[str] | None = None) -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, default=4, help="rows of a batch")
    parser.add_argument("--steps", type=int, default=8, help=f"of each case, {WARM_UP} of them not timed")
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16, of a device that is not known here")
    parser.add_argument("--output", type=Path, help="folder of gpu.json, benchmarks/results at full scale")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --scale tiny --device cpu runs the same code")
    if options.steps <= WARM_UP or options.rows < 1:
        parser.error(f"take at least one row and more than {WARM_UP} steps")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    console = Console(stderr=True)
    cases = track(CASES, "cases", console=console, disable=not console.is_terminal)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(Path(folder) / "tokenizer")
        rows = {case: measure(case, options, Path(folder)) for case in cases}
    difference = loss_difference(rows["finetune"], rows["finetune, FSDP"])
    show(rows, difference)
    if output := options.output or (RESULTS if options.scale == "full" else None):
        result = {key: value for key, value in vars(options).items() if key != "output"}
        result |= {"hardware": hardware(options), "versions": versions()}
        record(
            "gpu", {**result, "cases": [asdict(row) for row in rows.values()], "fsdp_difference": difference}, output
        )


def measure(case: str, options: argparse.Namespace, folder: Path) -> Row:
    """Counts a case on shapes, then trains some steps of it; what the device cannot do becomes the row's note."""
    row = Row(case)
    try:
        experiment = experiment_of(case, options, folder / "tokenizer")
        row.step_flops, row.estimated_bytes = count(experiment, options.rows)
        measured = train(experiment, options, folder)
    except ConfigError as error:
        row.note = str(error)
    except torch.OutOfMemoryError:
        row.note = "does not fit"
    else:
        row.step_seconds = statistics.median(measured.seconds[WARM_UP:])
        row.tokens_per_second = options.rows * experiment.data.config.sequence_length / row.step_seconds
        peak = peak_flops(options)
        row.mfu = row.step_flops / row.step_seconds / peak if peak else None
        row.peak_bytes, row.losses = measured.peak_bytes, measured.losses
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    return row


def experiment_of(case: str, options: argparse.Namespace, tokenizer: Path) -> ExperimentConfig:
    """The preset, its sizes out of configurations in this repository."""
    preset, own = CASES[case]
    words = [
        f"scale={options.scale}", f"trainer.accelerator={options.device}", f"trainer.batch_size={options.rows}",
        f"trainer.max_steps={options.steps}", "trainer.accumulate=1", "trainer.precision=bf16-mixed",
        "trainer.checkpoint_activations=[encoder,language_model]", "tracking.enabled=false",
    ]  # fmt: skip
    for slot, name in (("encoder", "Florence-2-large-ft"), ("language_model", "Phi-3.5-mini-instruct")):
        words += [f"{slot}.tokenizer={tokenizer}", f"{slot}.revision=null"]
        words += [f"{slot}.pretrained={HUB / name}"] if options.scale == "full" else []
    return load_experiment(ROOT / f"experiments/florence_vl/3b/{preset}.yaml", *words, *own)


def count(experiment: ExperimentConfig, rows: int) -> tuple[int, int]:
    """Operations of a step, and the memory that is estimated for it; on shapes alone."""
    plain = experiment.lora and replace(experiment.lora, quantization=None)
    stage = build_stage(replace(experiment, lora=plain), "meta")
    stage.adapt(Path())
    batch = synthetic_batch(stage, 1, 0)
    assert batch.images is not None
    with fake_tensors(), without_values(stage.model):
        flops = rows * training_flops(stage, replace(batch, images=torch.empty(batch.images.shape)))
    shape = BatchShape(rows, batch.token_ids.shape[1], rows)
    return flops, estimate_memory(experiment, stage.model, stage.trainable, shape).peak


def train(experiment: ExperimentConfig, options: argparse.Namespace, folder: Path) -> Measured:
    """Some steps through the kit's own stage, strategy and trainer."""
    with init_process_group(experiment.trainer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        stage = with_random_weights(experiment)
        if lora_components(stage.trainable):
            stage.adapt(folder)
        measured = Measured(torch.device(options.device))
        trainer = build_trainer(experiment.trainer, folder, [], [measured])
        trainer.fit(stage, train_dataloaders=SyntheticBatches(stage, options.rows, options.steps))
    return measured


def with_random_weights(experiment: ExperimentConfig) -> Stage:
    """The stage with initial weights, also where the experiment names those of a hub model; in main memory."""
    stage = build_stage(experiment, "meta")
    stage.model.to_empty(device="cpu")
    initialize(stage.model, experiment.seed)
    stage.model.tie_weights()
    return stage


def synthetic_batch(stage: Stage, rows: int, seed: int) -> Batch:
    """Rows of random words behind one image each, all words supervised."""
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


def loss_difference(one: Row, other: Row) -> float | None:
    """The largest relative one over the steps."""
    if one.losses is None or other.losses is None:
        return None
    return max(abs(a - b) / abs(a) for a, b in zip(one.losses, other.losses, strict=True))


def peak_flops(options: argparse.Namespace) -> float | None:
    """Operations per second that the device can do at most; None where that is not known."""
    name = torch.cuda.get_device_name() if options.device == "cuda" else ""
    known = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
    tflops = options.peak_tflops or known
    return tflops * 1e12 if tflops else None


def hardware(options: argparse.Namespace) -> dict[str, Any]:
    """The device and what it can do."""
    found: dict[str, Any] = {"device": "cpu", "peak_flops": peak_flops(options)}
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def versions() -> dict[str, str]:
    """Of the packages that do the work, where they are installed."""
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def show(rows: dict[str, Row], difference: float | None) -> None:
    """The results as a table."""
    table = Table("case", "s per step", "tokens/s", "TFLOP per step", "MFU", "peak GB", "estimate GB")
    for name, row in rows.items():
        table.add_row(
            name, shown(row.step_seconds, 1, 3), shown(row.tokens_per_second, 1, 0), shown(row.step_flops, 1e12, 2),
            shown(row.mfu, 1, 3), shown(row.peak_bytes, 1e9, 2), shown(row.estimated_bytes, 1e9, 2),
        )  # fmt: skip
    Console().print(table)
    for row in rows.values():
        if row.note:
            Console().print(f"{row.case}: {row.note}", highlight=False, markup=False)
    Console().print(f"losses under FSDP differ by at most {shown(difference, 1, 7)} (relative)", highlight=False)


def shown(value: float | None, unit: float, digits: int) -> str:
    """A number in a unit, or a dash."""
    return "-" if value is None else f"{value / unit:,.{digits}f}"


if __name__ == "__main__":
    main()
