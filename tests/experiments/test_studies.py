"""The comparisons of experiments/paper and experiments/studies: every one resolves at its scales, and runs tiny."""

import json
from pathlib import Path

import pytest

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments
from fvl_lightning.core.config.loading import load_config
from tests.conftest import ROOT, Run
from tests.integration.test_comparison import Here

FILES = sorted(
    path.relative_to(ROOT) for folder in ("paper", "studies") for path in (ROOT / "experiments" / folder).glob("*.yaml")
)
SCALES = {"demo": 5, "small": 3}
"""{scale: seeds}; tiny has one, and the arms of demo."""
MAP = 16
"""Places of the demo's map."""


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_study_resolves_at_every_scale(
    path: Path, scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    config = load_config(ComparisonConfig, path, [f"scale={scale}"])
    assert config.output == f"runs/{scale}"
    assert len(config.seeds) == SCALES[scale]
    config.seeds = config.seeds[:1]  # the others differ in nothing but their number
    if scale == "demo" and config.arms:  # whose arms run tiny
        config.arms = dict([*config.arms.items()][:: len(config.arms) - 1])
    (plan,) = experiments(config, path, workspace / "runs").values()
    assert (plan.encoder is None) == (scale == "small")
    for stages in plan.arms.values():
        assert {stage.chosen["scale"] for stage in stages} == {scale}
        assert (stages[-1].data.name == "demo") == (scale != "small")


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_study_runs_tiny(path: Path, workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvl_lightning.comparison.run.LocalLauncher", lambda jobs: Here())
    done = fvl_here(workspace, "compare", str(path), "scale=tiny", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    folder = workspace / "runs" / "tiny" / path.stem
    assert (folder / "report.md").is_file()
    arms = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["arms"]
    if path.stem == "budget":
        share = {"all": MAP, "9": MAP * 9 // 16, "4th": MAP // 4, "16th": MAP // 16}
        assert {arm: result["image_tokens"] for arm, result in arms.items()} == {
            arm: share[arm.rpartition("_")[2]] for arm in arms
        }
