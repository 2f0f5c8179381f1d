"""Where models compute: the encoder that fills the feature cache, and the model that `fvl evaluate` scores."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.gpu.runner import Findings, Settings
from benchmarks.gpu.smoke import COMMON, DEMO
from fvl_lightning import load_experiment
from fvl_lightning.evaluation.answers import Scoring
from fvl_lightning.evaluation.scoring import open_model, score
from fvl_lightning.runs import setup
from fvl_lightning.runs.run import run_training


def findings(settings: Settings) -> Findings:
    """Yields the devices of the parameters with which each has computed, and how fast the demo's questions come."""
    with tempfile.TemporaryDirectory() as name, chdir(name):  # where the demo's images are made
        folder = Path(name)
        words = (
            f"output={folder / 'runs'}", f"feature_cache={folder / 'features'}",
            f"trainer.accelerator={settings.device}",
        )  # fmt: skip
        with _watched(setup, "build_feature_cache") as found:
            run = run_training(load_experiment(DEMO / "finetune.yaml", *COMMON, *words))
        yield finding("encoder of the feature cache", found, settings)
        with devices_used() as found:
            started = time.perf_counter()
            built, data = open_model(run, split="test")
            _, answers = score(Scoring(built, data))
        seconds = time.perf_counter() - started
        yield finding("fvl evaluate", found, settings) | {"seconds": seconds, "questions": len(answers)}


def finding(case: str, found: set[str], settings: Settings) -> dict[str, Any]:
    """Returns the finding, an error if another device has computed, or none."""
    wrong = {} if found == {settings.device} else {"error": f"computed on {', '.join(sorted(found)) or 'nothing'}"}
    return {"case": case, "devices": sorted(found), **wrong}


@contextmanager
def devices_used() -> Iterator[set[str]]:
    """Yields a set that gets the type of device of all parameters of modules that are called."""
    found: set[str] = set()

    def note(module: nn.Module, inputs: Any) -> None:
        found.update(parameter.device.type for parameter in module.parameters(recurse=False))

    handle = register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def _watched(module: Any, name: str) -> Iterator[set[str]]:
    """Yields the devices that are used during the calls of a function of a module."""
    call: Callable[..., Any] = getattr(module, name)
    found: set[str] = set()

    def watched(*args: Any, **how: Any) -> Any:
        with devices_used() as used:
            result = call(*args, **how)
        found.update(used)
        return result

    with mock.patch.object(module, name, watched):
        yield found
