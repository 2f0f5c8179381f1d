"""The comparisons of experiments/paper and experiments/studies: every one resolves at its scales, and runs tiny."""

import json
import re
from math import isnan
from pathlib import Path

import pytest

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.views.prompts import prompts_sections
from fvl_lightning.comparison.checks.models import build_checked
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.matching.tokens import match_tokens
from fvl_lightning.comparison.plan import experiments, plan_alike
from fvl_lightning.comparison.result_files.comparison import read_comparison
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.published_sizes import without_hub
from fvl_lightning.stages.base import Stage
from tests.conftest import ROOT, Run
from tests.integration.test_comparison import Here

FILES = sorted(
    path.relative_to(ROOT) for folder in ("paper", "studies") for path in (ROOT / "experiments" / folder).glob("*.yaml")
)
SCALES = {"demo": 5, "small": 3}
"""{scale: seeds}; tiny has one, and the arms of demo."""
OWN_SMALL = [path for path in FILES if "    small:" in (ROOT / path).read_text(encoding="utf-8")]
"""Those with arms of their own at scale small."""
MAP = 16
"""Places of the demo's map."""


@pytest.mark.parametrize(
    ("path", "scale"),
    [
        pytest.param(path, scale, marks=pytest.mark.slow if scale == "small" and path not in OWN_SMALL else ())
        for path in FILES
        for scale in SCALES
    ],
    ids=str,
)
def test_a_study_resolves_at_every_scale(
    path: Path, scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    config = load_config(ComparisonConfig, path, [f"scale={scale}"])
    assert config.output == f"runs/studies-{scale}"
    assert len(config.seeds) == SCALES[scale]
    config.seeds = config.seeds[:1]  # the others differ in nothing but their number
    config.arms = dict([*config.arms.items()][:: len(config.arms) - 1])  # slow tests have the others
    config.baseline = config.reference = None
    (plan,) = experiments(config, path, workspace / "runs").values()
    assert (plan.encoder is None) == (scale == "small" or path.stem != "resolution")
    for stages in plan.arms.values():
        assert {stage.chosen["scale"] for stage in stages} == {scale}
        assert (stages[-1].data.name == "demo") == (scale != "small")


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("path", FILES, ids=str)
def test_all_its_arms_are_built(path: Path, scale: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    config = load_config(ComparisonConfig, path, [f"scale={scale}"])
    config.seeds = config.seeds[:1]
    plan = experiments(config, path, workspace / "runs")[config.seeds[0]]
    match_tokens([plan.arms], config.baseline or next(iter(plan.arms)), config, without_weights)
    built = plan_alike([plan.arms], config.lineage, without_weights)
    assert built.keys() == config.arms.keys()
    if config.match == "tokens":
        assert len({stages[-1].model.image_spec.tokens_per_image for stages in built.values()}) == 1


def without_weights(experiment: ExperimentConfig) -> Stage:
    with without_hub(experiment) as sized:
        return build_checked(sized)


def test_every_study_is_on_the_page() -> None:
    page = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `((?:paper|studies)/\w+)\.yaml` \| .+ \| (.+?) \|$", page, re.MULTILINE))
    files = {str(path.relative_to("experiments").with_suffix("")): (ROOT / path).read_text() for path in FILES}
    assert rows.keys() == files.keys()
    for name, text in files.items():
        assert ("reference:" in text) == (rows[name] != "none"), name
        assert f"#   fvl compare experiments/{name}.yaml scale=tiny" in text


def published(name: str) -> dict[str, dict[str, float]]:
    reference = load_config(ComparisonConfig, ROOT / "experiments" / "paper" / f"{name}.yaml").reference
    assert reference is not None
    return reference.scores


@pytest.mark.parametrize(("name", "count"), [("table1_fusion", 14), ("table5_breadth", 12)])
def test_the_averages_of_the_paper_are_those_of_its_scores(name: str, count: int) -> None:
    """So that no number is misspelt, as far as the average of the table's scores shows it; the paper rounds."""
    divided = {"mme_perception": 20, "mme_cognition": 8}
    for scores in published(name).values():
        values = [score / divided.get(task, 1) for task, score in scores.items() if task != "average"][:count]
        assert sum(values) / count == pytest.approx(scores["average"], abs=0.075)


def test_the_full_model_has_the_same_scores_in_all_tables() -> None:
    full: dict[str, float] = {}
    arms = {"table1_fusion": "channels", "table3_same_data": "florence2", "table4_depth": "all"}
    for name, arm in {**arms, "table5_breadth": "all"}.items():
        scores = {task: score for task, score in published(name)[arm].items() if task != "average"}
        assert all(full.setdefault(task, score) == score for task, score in scores.items()), name


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_study_runs_tiny(path: Path, workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvl_lightning.comparison.run.LocalLauncher", lambda jobs: Here())
    done = fvl_here(workspace, "compare", str(path), "scale=tiny", "tracking.enabled=false")
    assert done.returncode == 0, done.stderr
    folder = workspace / "runs" / "studies-tiny" / path.stem
    assert (folder / "report.md").is_file()
    arms = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["arms"]
    if path.stem == "prompts":
        monkeypatch.chdir(workspace)  # the paths of a comparison's runs are relative
        opened = OpenedComparison(folder, read_comparison(folder), lambda *_: {})
        (section,) = prompts_sections(opened, accelerator="cpu")
        features = section.values["arms"]
        assert features.keys() == arms.keys()
        assert features["three"]["cka"] == pytest.approx(1)
        assert 0 < features["as_printed"]["cka"] < 1
        assert {arm for arm, one in features.items() if isnan(one["cka"])} == {"none", "davit_x4"}
    if path.stem == "budget":
        share = {"all": MAP, "9": MAP * 9 // 16, "4th": MAP // 4, "16th": MAP // 16}
        assert {arm: result["image_tokens"] for arm, result in arms.items()} == {
            arm: share[arm.rpartition("_")[2]] for arm in arms
        }
