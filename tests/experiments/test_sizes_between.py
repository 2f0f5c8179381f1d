"""experiments/small and experiments/medium: real sizes without the hub, small ones that train, and a comparison."""

import json
import re
from pathlib import Path

import pytest

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments, plan_alike
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.doctor.model import shaped_stage
from fvl_lightning.doctor.resources import check_memory
from fvl_lightning.profiling.memory import estimate_memory
from fvl_lightning.profiling.published_sizes import published_config, without_hub
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.components import count_parameters
from tests.conftest import ROOT, TINY_DATA, Run
from tests.experiments.presets import ADAPTED, PRESETS, SIZES_BETWEEN, hardware, load, path_of

PAGE = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
FUSIONS = Path("experiments/small/fusions.yaml")
SAME = "〃"


def test_these_are_all_files() -> None:
    files = {path for size in ("small", "medium") for path in (ROOT / "experiments" / size).glob("*.yaml")}
    beside = {
        ROOT / "experiments" / size / name for size in ("small", "medium") for name in ("model.yaml", "fusions.yaml")
    }
    assert files - beside == set(map(path_of, SIZES_BETWEEN))


@pytest.mark.parametrize("preset", [*PRESETS, *ADAPTED, *SIZES_BETWEEN])
def test_the_sizes_of_its_models_are_in_the_kit(preset: str) -> None:
    config = load(preset)
    for choice in (config.encoder, config.language_model):
        folder = published_config(choice.config.pretrained)
        assert folder is not None
        assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        assert published_config(str(folder)) is None, "a folder is taken as it is"
    assert published_config("mine/model") is None
    assert published_config("../hub_configs") is None


def shown_parameters() -> dict[str, str]:
    """{preset: its parameters in the table}, where a mark repeats the row above."""
    rows = re.findall(r"^\| `(\S+)\.yaml` \| [^|]+ \| [^|]+ \| (\S+) \|", PAGE, re.MULTILINE)
    shown: dict[str, str] = {}
    for preset, cell in rows:
        shown[preset] = list(shown.values())[-1] if cell == SAME else cell
    return shown


@pytest.mark.parametrize(
    "preset",
    ["small/align", *(pytest.param(name, marks=pytest.mark.slow) for name in hardware() if name != "small/align")],
)
def test_the_table_has_the_parameters_and_what_trains(preset: str) -> None:
    with without_hub(load(preset)) as experiment:
        stage = shaped_stage(experiment)
        counts = count_parameters(stage.model)
        total = sum(count["parameters"] for count in counts.values())
        adapters = sum(parameter.numel() for name, parameter in stage.model.named_parameters() if "lora_" in name)
    assert f"{(total - adapters) / 1e9:.2f}B" == shown_parameters()[preset]
    trains = {"align": COMPONENTS[1:3], "pretrain": COMPONENTS}.get(Path(preset).name, COMPONENTS[1:])
    assert all((counts[name]["trainable"] > 0) == (name in trains) for name in COMPONENTS if counts[name]["parameters"])


@pytest.mark.slow
@pytest.mark.parametrize("preset", hardware())
def test_a_preset_fits_the_gpus_that_it_names(preset: str) -> None:
    """By the estimate of fvl doctor, with a tenth to spare."""
    _, size = hardware()[preset]
    experiment = load(preset)
    with without_hub(experiment) as offline:
        stage = shaped_stage(offline)
        estimate = estimate_memory(experiment, stage.model, stage.trainable)
    (finding,) = check_memory(experiment, estimate, int(size * 1e9))
    assert finding.status == "ok", finding.message


def test_the_arms_of_the_comparison(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its file has them; a choice of the file is made in every stage, whatever `set` adds."""
    monkeypatch.chdir(workspace)
    full = load_config(ComparisonConfig, FUSIONS)
    assert (full.chosen, full.output, full.seeds, full.feature_cache) == (
        {"scale": "full"},
        "runs/small-full",
        [0, 1, 2],
        False,
    )
    config = load_config(ComparisonConfig, FUSIONS, ["scale=tiny", "set=[trainer.max_steps=3]", "seeds=[0]"])
    arms = experiments(config, FUSIONS, Path("runs"))[0].arms
    assert list(arms) == ["concat", "davit_x4", "attention", "gated"]
    for stages in arms.values():
        assert [stage.name for stage in stages] == ["align", "finetune"]
        for stage in stages:
            assert (stage.chosen, stage.feature_cache, stage.trainer.max_steps) == ({"scale": "tiny"}, None, 3)
            assert (stage.normalize.sources, stage.normalize.output) == (True, True)
    built = plan_alike([arms])
    widths = {arm: stages[0].model.fusion.output.dim for arm, stages in built.items()}
    assert widths["davit_x4"] == widths["concat"]


@pytest.mark.slow
@pytest.mark.parametrize("preset", SIZES_BETWEEN)
def test_tiny_trains(preset: str, workspace: Path, fvl_here: Run) -> None:
    words = ("scale=tiny", *TINY_DATA, "trainer.max_steps=2", "tracking.enabled=false")
    done = fvl_here(workspace, "train", f"experiments/{preset}.yaml", *words)
    assert done.returncode == 0, done.stderr
    (run,) = (RunFolder(path.parent) for path in (workspace / "runs").rglob("run.json"))
    assert run.finished
    assert run.path == workspace / "runs" / f"{Path(preset).parent}-tiny" / Path(preset).name


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "medium"])
def test_the_comparison_runs_to_verdicts(size: str, workspace: Path, fvl: Run) -> None:
    words = ("scale=tiny", f"set=[{', '.join(('trainer.max_steps=2', *TINY_DATA))}]", "tracking.enabled=false")
    done = fvl(workspace, "compare", f"experiments/{size}/fusions.yaml", *words, timeout=1800)
    assert done.returncode == 0, done.stderr
    folder = workspace / "runs" / f"{size}-tiny" / "fusions"
    report = (folder / "report.md").read_text(encoding="utf-8")
    for arm in ("davit_x4", "attention", "gated"):
        assert re.search(rf"{arm}.*(better|worse|equivalent|not separated|not testable)", report), report[:2000]
    assert (folder / "comparison.json").is_file()
