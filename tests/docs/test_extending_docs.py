"""The files of docs/extending.md are what a training takes."""

import re
from pathlib import Path

import pytest

from fvl_lightning.core import registry
from fvl_lightning.core.component_sources.components import summaries
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.metrics.lookup import metric_of
from tests.conftest import ROOT, TINY_DATA, Run
from tests.docs.readme import blocks
from tests.integration.runs import FINETUNE, UNTRACKED

PAGE = ROOT / "docs" / "extending.md"


def test_a_callback_and_a_logger_of_ones_own(workspace: Path, fvl_here: Run) -> None:
    files = {match[1]: block for block in blocks("python", PAGE) if (match := re.match(r"# (\w+\.py)\n", block))}
    assert files.keys() >= {"norms.py", "lines.py"}
    for name in ("norms.py", "lines.py"):
        (workspace / name).write_text(files[name], encoding="utf-8")
    words = ("plugins=[norms.py, lines.py]", "trainer.loggers=[lines]", "trainer.callbacks=[norms: {every: 1}]")
    short = ("trainer.max_steps=2", "trainer.batch_size=4", "trainer.log_every=1")
    done = fvl_here(workspace, "train", *FINETUNE, *TINY_DATA, *short, UNTRACKED, *words, "name=own")
    assert done.returncode == 0, done.stderr
    lines = (workspace / "runs" / "own" / "lines.txt").read_text(encoding="utf-8")
    assert re.search(r"^2: .*train/loss \d+\.\d{3}\b", lines, re.MULTILINE)
    assert re.search(r"norm/projector \d", lines)


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._components, "metric", dict(registry._components["metric"]))
    (text,) = [block for block in blocks("python", PAGE) if block.startswith("# brief.py\n")]
    (tmp_path / "brief.py").write_text(text, encoding="utf-8")
    assert "brief" in summaries("metric", [str(tmp_path / "brief.py")])
    import_plugin(str(tmp_path / "brief.py"), tmp_path)
    component = metric_of("brief/length")
    assert component.describe("length") == "Words per answer"
    halves = [component(component.Config(words=2), ["all"]) for _ in range(2)]
    halves[0].update("all", "a dog", Reference(("cat", "dog")))
    halves[1].update("all", "it is a dog", Reference(("dog",)))
    halves[0].merge_state(halves[1])
    scores = halves[0].compute()
    assert (scores.macro, scores.average("length")) == (0.5, 3.0)
