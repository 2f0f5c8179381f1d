"""Three steps of every stage of the demo, as `fvl train` makes them, with each option that a GPU computes otherwise.

A case that fails does not end the others. The last ones show whether deterministic trainings give the same bits, and
how far the losses of a GPU are from those of a CPU in float32.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Generator
from contextlib import chdir
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import Findings, Settings
from fvl_lightning import load_experiment
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.run import run_training
from fvl_lightning.training.torch_settings import CUBLAS, DETERMINISTIC_WORKSPACES

DEMO = Path(__file__).parents[2] / "experiments" / "demo"
COMMON = (
    "data.train_images=64", "data.validation_images=16", "data.test_images=16", "data.unseen_images=8",
    "trainer.batch_size=8", "trainer.max_steps=3", "trainer.log_every=1", "tracking.enabled=false",
)  # fmt: skip
BF16 = "trainer.precision=bf16-mixed"
VARIANTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("finetune, packed, bf16", "finetune", (BF16, "data.packing=best_fit")),
    ("everything trains, recomputed, bf16", "finetune", (
        BF16, "trainable.encoder=full", "trainer.checkpoint_activations=[encoder,language_model]",
    )),
    ("LoRA, bf16", "finetune_lora", (BF16,)),
    ("accumulated, bf16", "finetune", (BF16, "trainer.accumulate=2", "trainer.batch_size=4")),
    ("DDP of one, bf16", "finetune", (BF16, "trainer.strategy=ddp")),
    ("FSDP of one, bf16", "finetune", (BF16, "trainer.strategy=fsdp")),
    ("AdamW", "finetune", ("optimizer.name=adamw",)),
    ("checkpoint in background", "finetune", ("trainer.checkpoint_in_background=true",)),
)  # fmt: skip
"""(case, experiment, overrides); all begin from the same pretraining."""
ON_A_GPU: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("offloaded, bf16", "finetune", (BF16, "trainer.strategy=fsdp", "trainer.cpu_offload=true")),
    ("compiled, bf16", "finetune", (BF16, "trainer.compile=[language_model]")),
)
"""Cases that a CPU refuses, or that take it minutes."""


def findings(settings: Settings) -> Findings:
    """Yields the losses of every case, or its error; and what the last cases show together."""
    os.environ.setdefault(CUBLAS, DETERMINISTIC_WORKSPACES[0])  # before CUDA starts
    with tempfile.TemporaryDirectory() as name, chdir(name):  # where the demo's images are made
        folder = Path(name)
        encoder = yield from _try(folder, settings.device, "encoder_pretrain", "encoder_pretrain")
        yield from _try(folder, settings.device, "encoder_pretrain, bf16", "encoder_pretrain", BF16)
        captions = yield from _try(folder, settings.device, "pretrain, bf16", "pretrain", BF16, *_after(encoder))
        after = _after(captions)
        yield from _try(folder, settings.device, "align", "pretrain", "stage=align", "name=align", *_after(encoder))
        cache = f"feature_cache={folder / 'features'}"
        yield from _try(folder, settings.device, "finetune, cached features", "finetune", cache, *after)
        for case, experiment, overrides in (*VARIANTS, *(() if settings.tiny else ON_A_GPU)):
            yield from _try(folder, settings.device, case, experiment, *overrides, *after)
        same = []
        for number in ("once", "twice"):
            words = (f"name={number}", "trainer.deterministic=true", *after)
            same.append((yield from _try(folder, settings.device, f"deterministic, {number}", "finetune", *words)))
        if all(same):
            yield {"case": "two deterministic trainings", "same_bits": _weights(same[0]) == _weights(same[1])}
        pair = []
        for device in (settings.device, "cpu"):
            pair.append((yield from _try(folder, device, f"finetune in float32 on {device}", "finetune", *after)))
        if all(pair):
            losses = zip(*map(_losses, pair), strict=True)
            difference = max(abs(here - there) / abs(there) for here, there in losses)
            yield {"case": f"finetune in float32, {settings.device} beside cpu", "difference": difference}


def _after(run: RunFolder | None) -> tuple[str, ...]:
    """Returns the override that begins from a run, if there is one."""
    return (f"init_from=[{run.path}]",) if run else ()


def _try(
    folder: Path, device: str, case: str, experiment: str, *overrides: str
) -> Generator[dict[str, Any], None, RunFolder | None]:
    """Yields the losses of a training, or its error; returns the run, None where it failed."""
    words = (*COMMON, f"output={folder / 'runs'}", f"trainer.accelerator={device}", *overrides)
    started = time.perf_counter()
    try:
        run = run_training(load_experiment(DEMO / f"{experiment}.yaml", *words))
    except Exception as error:
        traceback.print_exc()
        yield {"case": case, "error": f"{type(error).__name__}: {str(error)[:300]}"}
        return None
    yield {"case": case, "losses": _losses(run), "seconds": round(time.perf_counter() - started, 1)}
    return run


def _losses(run: RunFolder) -> list[float]:
    return [loss for _, loss in run.curve("train/loss")]


def _weights(run: RunFolder) -> list[str]:
    """Returns the hashes of the files with the model's weights."""
    return [content for name, content in sorted(run.info["files"].items()) if name.endswith(".safetensors")]
