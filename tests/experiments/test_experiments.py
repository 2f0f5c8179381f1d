"""Every file under experiments/ is a comparison or an experiment, loads, and builds without memory."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments, plan_alike
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.training.components import count_parameters
from tests.conftest import ROOT

FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "experiments").rglob("*") if path.is_file())
ARMS = {"arms", "axes"}


def is_comparison(path: Path) -> bool:
    """Whether a file, or one that it is based on, has arms, or axes to make some of."""
    values = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
    bases = values.get("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    return bool(ARMS & set(values)) or any(is_comparison(path.parent / base) for base in bases)


ELSEWHERE = (
    "data", "easy_vqa", "florence_vl", "llava15_7b", "medium", "paper", "scales", "small", "stages", "studies",
)  # fmt: skip
"""Recipes of shards and a task, which are no experiments, presets that name the hub, and studies: they have tests of
their own."""
COMPARISONS = [
    path for path in FILES if path.suffix == ".yaml" and path.parts[1] not in ELSEWHERE and is_comparison(path)
]
EXPERIMENTS = [
    path for path in FILES if path.suffix == ".yaml" and path.parts[1] not in ELSEWHERE and not is_comparison(path)
]


def test_there_are_yaml_files_and_one_script() -> None:
    assert [str(path) for path in FILES if path.suffix != ".yaml"] == ["experiments/easy_vqa/prepare.py"]
    assert len(COMPARISONS) >= 2
    assert len(EXPERIMENTS) >= 4


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".yaml"], ids=str)
def test_a_file_says_what_it_is_for(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_an_experiment_builds_on_the_meta_device(path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    config = load_config(ExperimentConfig, path)
    if config.stage is None:
        assert any(path.name in other.read_text(encoding="utf-8") for other in path.parent.glob("*.yaml")), "unused"
        return
    stage = build_stage(config, device="meta")
    stage.adapt(Path())
    assert all(parameter.is_meta for parameter in stage.model.parameters())
    counts = count_parameters(stage.model)
    assert counts["encoder"]["parameters"] > 0
    assert sum(count["trainable"] for count in counts.values()) > 0
    for component in COMPONENTS:
        frozen = stage.trainable.get(component, "frozen") == "frozen"
        assert frozen == (counts[component]["trainable"] == 0) or counts[component]["parameters"] == 0


@pytest.mark.parametrize("path", COMPARISONS, ids=str)
def test_a_comparison_resolves_all_its_arms(path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    config = load_config(ComparisonConfig, path)
    config.seeds = config.seeds[:2]  # the others differ in nothing but their number
    plans = experiments(config, path, Path("runs") / config.name)
    assert list(plans) == config.seeds
    outputs = [stages[-1].output for plan in plans.values() for stages in plan.arms.values()]
    assert len(set(outputs)) == len(config.seeds) * len(plans[config.seeds[0]].arms)
    tracking = next(iter(plans[config.seeds[0]].arms.values()))[-1].tracking
    assert tracking.experiment == (config.tracking.experiment or "fvl")
    for seed, plan in plans.items():
        encoder = plan.encoder
        assert encoder is not None
        assert encoder.stage.name == "encoder_pretrain"
        assert encoder.seed == seed
        for stages in plan.arms.values():
            assert [stage.stage.name for stage in stages] == ["pretrain", "finetune"]
            for experiment in stages:
                assert (experiment.seed, experiment.tracking) == (seed, tracking)
                assert experiment.data.config.level == encoder.data.config.level
                theirs = dataclasses.replace(experiment.encoder.config, sources=encoder.encoder.config.sources)
                assert theirs == encoder.encoder.config, "the arms read the one encoder, if not all that it offers"
    plan_alike([plan.arms for plan in plans.values()], config.lineage)  # builds them all, and checks the lineage
    if path.parts[-1] == "comparison.yaml":
        fusions = {arm: stages[-1].fusion.name for arm, stages in plans[0].arms.items()}
        assert fusions == {"concat": "concat", "attention": "attention", "gated": "gated"}
