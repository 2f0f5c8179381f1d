"""The experiments with adapters: how large they are at their real size, what their arms are, and that they train."""

from pathlib import Path

import pytest

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments
from fvl_lightning.core.config.fields import differences
from fvl_lightning.core.config.loading import as_plain, load_config
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.training.components import count_parameters
from fvl_lightning.training.lora import adapter_bytes
from tests.conftest import TINY_DATA, Run
from tests.experiments.presets import ADAPTED, at_real_size, load, path_of

RANKS = Path("experiments/demo/lora_ranks.yaml")
PARTS = 16 * 32
"""Rank and layers, which every adapted language model here has."""
WIDTHS = {
    "3b": (3072 + 9216) + (3072 + 3072) + (3072 + 16384) + (8192 + 3072),
    "8b": 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336),
}
"""Inputs and outputs of the linear layers of one layer: Phi-3.5-mini has q, k and v in one, and gate and up."""
PROJECTOR = {"3b": (4096 + 1 + 2 * (3072 + 1)) * 3072, "8b": 3 * (4096 + 1) * 4096}


@pytest.mark.parametrize("preset", [name for name in ADAPTED if name.endswith("_lora")])
def test_an_adapter_at_its_real_size(preset: str, tiny_data: Path) -> None:
    """The 3B's is under 300 MB: 101 of LoRA and 126 of the projector, in float32."""
    stage = build_stage(at_real_size(preset, tiny_data / "demo" / "tokenizer"), device="meta")
    stage.adapt(Path())
    size = path_of(preset).parent.name
    counts = count_parameters(stage.model)
    assert counts["language_model"]["trainable"] == PARTS * WIDTHS[size]
    assert counts["projector"]["trainable"] == PROJECTOR[size]
    assert counts["encoder"]["trainable"] == counts["fusion"]["trainable"] == 0
    found = adapter_bytes(stage.model, stage.trainable)
    assert found == 4 * (PARTS * WIDTHS[size] + PROJECTOR[size])
    assert size != "3b" or found < 300e6


@pytest.mark.parametrize("size", ["3b", "8b"])
def test_adapters_change_nothing_else_of_stage_2(size: str) -> None:
    names = [f"florence_vl/{size}/finetune{kind}" for kind in ("", "_lora", "_qlora")]
    full, lora, qlora = (as_plain(load(name)) for name in names)
    own = ["lora", "name", "optimizer.learning_rates.language_model", "trainable.language_model"]
    one_device = ["trainer.accumulate", "trainer.devices", "trainer.strategy"]
    assert sorted(differences(full, lora)) == sorted([*own, *one_device])
    smaller_batch = ["trainer.accumulate", "trainer.batch_size"]
    assert sorted(differences(lora, qlora)) == ["lora.quantization", "name", *smaller_batch]
    assert len({experiment["trainer"]["global_batch"] for experiment in (full, lora, qlora)}) == 1


@pytest.mark.parametrize("preset", ADAPTED)
def test_they_train_in_small_or_say_what_they_need(preset: str, workspace: Path, fvl_here: Run) -> None:
    words = ("scale=tiny", *TINY_DATA, "trainer.max_steps=2", "tracking.enabled=false", "output=runs")
    done = fvl_here(workspace, "train", str(path_of(preset)), *words)
    if preset.endswith("_qlora"):
        assert done.returncode == 2
        assert "lora.quantization: 4bit needs " in done.stderr
        return
    assert done.returncode == 0, done.stderr
    run = RunFolder(workspace / "runs" / "finetune_lora")
    assert (run.model / "adapter_config.json").is_file()
    assert run.info["adapter_bytes"] > 0


def test_the_arms_of_the_ranks(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ in their adapters at finetuning, and in nothing at pretraining."""
    monkeypatch.chdir(workspace)
    config = load_config(ComparisonConfig, RANKS)
    arms = experiments(config, RANKS, Path("runs"))[0].arms
    settings = {arm: stages[1].lora and (stages[1].lora.rank, stages[1].lora.dora) for arm, stages in arms.items()}
    assert settings == {
        "full": None, "rank_4": (4, False), "rank_16": (16, False), "rank_64": (64, False), "dora_16": (16, True)
    }  # fmt: skip
    for stages in arms.values():
        pretrain, finetune = stages
        assert pretrain.lora is None
        assert pretrain.trainable == {"encoder": "frozen"}
        assert finetune.trainable == ({} if finetune.lora is None else {"language_model": "lora"})


@pytest.mark.slow
def test_the_ranks_compare(workspace: Path, fvl: Run) -> None:
    steps = "trainer.max_steps=2", "trainer.batch_size=8", *TINY_DATA
    done = fvl(workspace, "compare", str(RANKS), f"set=[{', '.join(steps)}]", "tracking.enabled=false", timeout=900)
    assert done.returncode == 0, done.stderr
    for arm in ("full", "rank_4", "rank_16", "rank_64", "dora_16"):
        assert arm in done.stdout
    info = {arm: RunFolder(workspace / "runs" / "lora_ranks" / arm / "finetune").info for arm in ("rank_4", "rank_64")}
    assert info["rank_4"]["trainable"] < info["rank_64"]["trainable"]
