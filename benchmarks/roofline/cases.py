"""The presets that are predicted, and the changes in the order in which they are made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.roofline.device import Ceilings
from benchmarks.roofline.step import Predicted, Prediction, Switches
from fvl_lightning import load_experiment
from fvl_lightning.profiling.published_sizes import without_hub

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PRESETS = (
    *(f"florence_vl/{size}/{name}" for size in ("3b", "8b")
      for name in ("pretrain", "finetune", "finetune_lora", "finetune_qlora")),
    "llava15_7b/align", "llava15_7b/finetune",
)  # fmt: skip
ONE = ("trainer.strategy=single", "trainer.devices=1", "trainer.global_batch=null", "trainer.accumulate=1")
EIGHT_NODES = (
    "trainer.strategy=fsdp",
    "trainer.devices=8",
    "trainer.nodes=8",
    "trainer.global_batch=null",
    "trainer.accumulate=1",
    "trainer.batch_size=4",
)
MOST_KEPT_ROWS = 8
"""With more rows of 2048 tokens than these, the activations of no preset fit a GPU; their memory is not estimated."""
MOST_PRODUCT_ROWS = 4
"""The same for the results of products. More rows of the small models would fit; they are not estimated."""


@dataclass(frozen=True)
class Case:
    """A preset with overrides of its hardware, on one rank of it."""

    name: str
    preset: str
    overrides: tuple[str, ...] = ()
    packed: bool = False


CASES = (
    *(Case(preset, preset) for preset in PRESETS),
    *(Case(f"{name}, one GPU, 4 rows", f"florence_vl/3b/{name}", (*ONE, "trainer.batch_size=4"))
      for name in ("pretrain", "finetune")),
    *(Case(f"finetune, one GPU, {rows} packed rows of {length}", "florence_vl/3b/finetune",
           (*ONE, f"trainer.batch_size={rows}", f"data.sequence_length={length}"), packed=True)
      for rows, length in ((4, 2048), (2, 4096), (1, 8192))),
    *(Case(f"{size} finetune, 8 machines of 8, 4 rows", f"florence_vl/{size}/finetune", EIGHT_NODES)
      for size in ("3b", "8b")),
)  # fmt: skip
"""The presets as they are written, and some as docs/scale.md and benchmarks/gpu have them."""


@dataclass(frozen=True)
class Change:
    """A switch, and for which cases it is one."""

    switch: str
    title: str
    applies: Callable[[Predicted], bool] = lambda predicted: True


def _adapted(predicted: Predicted) -> bool:
    return "lora" in predicted.stage.trainable.values()


def _trained_whole(predicted: Predicted) -> bool:
    return not _adapted(predicted)


def _fits(predicted: Predicted) -> bool:
    return predicted.rows <= MOST_KEPT_ROWS and predicted.fits(checkpoint_activations=[])


def _fits_with_products(predicted: Predicted) -> bool:
    few = predicted.rows <= MOST_PRODUCT_ROWS
    return few and predicted.fits(checkpoint_keep="products") and not _fits(predicted)


def _sharded(predicted: Predicted) -> bool:
    return predicted.experiment.trainer.sharded


CHANGES = (
    Change("by_document", "attention by document instead of a dense mask", lambda predicted: predicted.packed),
    Change(
        "bfloat16_parameters",
        "parameters gathered in bfloat16 (FSDP2, also on one device) instead of cast at each use",
        _trained_whole,
    ),
    Change("narrow_frozen", "frozen weights held in bfloat16", _adapted),
    Change("own_units", "table, head and norms gathered once", _sharded),
    Change("fused_update", "fused AdamW"),
    Change("head_once", "gradients of the loss in its forward pass"),
    Change("keep_products", "results of products kept, the rest recomputed", _fits_with_products),
    Change("keep_activations", "no recomputation", _fits),
    Change("compiled", "compiled blocks of the language model"),
    Change("cudnn", "cuDNN's attention", lambda predicted: not predicted.packed),
)
"""In the order in which they are made; the share of a change depends on those before it."""


def predict(case: Case, device: Ceilings, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns a step of a case before all changes, after each and after all, as it is saved."""
    words = ("trainer.accelerator=cpu", *case.overrides, *overrides)
    experiment = load_experiment(EXPERIMENTS / f"{case.preset}.yaml", *words)
    settings = experiment.trainer
    with without_hub(experiment) as known:
        predicted = Predicted(known, device, case.packed)
        before, changes, after = changed(predicted)
        return {
            "case": case.name, "preset": case.preset, "overrides": list(case.overrides), "packed": case.packed,
            "rows": settings.batch_size, "length": predicted.length, "accumulate": settings.accumulate,
            "ranks": settings.world_size, "before": _summary(predicted, before), "changes": changes,
            "after": _summary(predicted, after),
        }  # fmt: skip


def changed(predicted: Predicted) -> tuple[Prediction, list[dict[str, Any]], Prediction]:
    """Returns the step before all changes, the time after each with the share that it saves, and the step after all."""
    switches = Switches()
    before = now = predicted.predict(switches)
    changes = []
    for change in CHANGES:
        if change.applies(predicted):
            switches = replace(switches, **{change.switch: True})
            earlier, now = now, predicted.predict(switches)
            share = (earlier.step - now.step) / before.step
            changes.append({"change": change.switch, "step_seconds": now.step, "share": share})
    return before, changes, now


def _summary(predicted: Predicted, step: Prediction) -> dict[str, Any]:
    mfu = None if predicted.packed else predicted.flops / step.step / predicted.device.peak
    return {
        "step_seconds": step.step, "tokens_per_second": predicted.tokens / step.step, "mfu": mfu,
        "compute_seconds": step.compute, "waiting_seconds": step.waiting, "update_seconds": step.update,
        "kinds": step.kinds,
    }  # fmt: skip
