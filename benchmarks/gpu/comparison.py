"""A small comparison end to end: encoder, feature cache, cells, scoring and report, all on the device."""

import json
import tempfile
import time
from contextlib import chdir
from pathlib import Path

from benchmarks.gpu.runner import Findings, Settings
from fvl_lightning.comparison.run import run_comparison

DEMO = Path(__file__).parents[2] / "experiments" / "demo" / "quick" / "comparison.yaml"
TINY = (
    "trainer.max_steps=2", "trainer.validate_every=2", "trainer.batch_size=8", "optimizer.warmup_steps=0",
    "data.train_images=48", "data.validation_images=16", "data.test_images=12", "data.unseen_images=6",
)  # fmt: skip
"""Overrides of the experiments with which it takes seconds a cell, and learns nothing."""


def findings(settings: Settings) -> Findings:
    """Yields the seconds of the whole, and for each cell its score, speed, memory and seconds of training."""
    with tempfile.TemporaryDirectory() as name, chdir(name):  # where the demo's images are made
        folder = Path(name)
        experiments = [
            f"trainer.accelerator={settings.device}", "tracking.enabled=false",
            *(TINY if settings.tiny else ("trainer.precision=bf16-mixed",)),
        ]  # fmt: skip
        words = [f"output={folder / 'comparison'}", "jobs=1", f"set=[{','.join(experiments)}]"]
        started = time.perf_counter()
        report = run_comparison(DEMO, words)
        yield {"case": "the whole comparison", "seconds": round(time.perf_counter() - started, 1)}
        for file in sorted(report.rglob("result.json")):
            cell = json.loads(file.read_text(encoding="utf-8"))
            yield {
                "case": str(file.parent.relative_to(report)),
                "accuracy": cell["accuracy"]["macro"],
                **{key: cell[key] for key in ("tokens_per_second", "peak_memory_bytes", "seconds")},
            }
