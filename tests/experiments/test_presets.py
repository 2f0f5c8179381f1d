"""Each preset says what paper or scripts say, has the released structure at its real size, and trains at a tiny one."""

import dataclasses
import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers.initialization import no_init_weights

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments
from fvl_lightning.core.config.fields import differences
from fvl_lightning.core.config.loading import as_plain, check_config, load_config
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig
from fvl_lightning.modeling.conversion.florence_vl_config import ImportOptions, imported_config
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.training.components import count_parameters
from tests.conftest import ROOT, TINY_DATA, Run
from tests.experiments.presets import (
    ADAPTED,
    CHOICES,
    FLORENCE_VL,
    HUB,
    PRESETS,
    SIZES_BETWEEN,
    at_real_size,
    load,
    path_of,
)

MILLION = 1e6
SHORT = ("scale=tiny", *TINY_DATA, "trainer.max_steps=2", "tracking.enabled=false")

CELLS: dict[tuple[str, str], tuple[int, float, float]] = {
    ("8b/pretrain", "paper"): (256, 2e-5, 16.9e6),
    ("8b/pretrain", "released"): (2048, 1e-5, 16.9e6),
    ("8b/finetune", "paper"): (256, 1e-5, 10e6),
    ("8b/finetune", "released"): (512, 1e-5, 10e6),
    ("3b/pretrain", "paper"): (4096, 1e-4, 16.9e6),
    ("3b/pretrain", "released"): (4096, 1e-5, 16.9e6),
    ("3b/finetune", "paper"): (2048, 9e-5, 30e6),
    ("3b/finetune", "released"): (4096, 9e-5, 30e6),
}
"""(preset, recipe): global batch, learning rate, samples over all epochs."""
BATCH = ["trainer.accumulate", "trainer.global_batch", "trainer.max_steps", "optimizer.warmup_steps"]
"""The keys of a global batch: for the same samples, another one takes other numbers of steps."""


def check_schedule(config: ExperimentConfig, batch: int, rate: float, samples: float) -> None:
    assert config.trainer.samples_per_step == config.trainer.global_batch == batch
    assert config.trainer.max_steps == ceil(samples / batch)
    assert config.optimizer.warmup_steps == ceil(0.03 * config.trainer.max_steps)
    assert config.optimizer.learning_rate == rate
    assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.final_fraction) == ("adamw", 0, 0)
    assert config.optimizer.learning_rates == {}


def test_these_are_all_presets() -> None:
    files = {path for folder in ("florence_vl", "llava15_7b") for path in (ROOT / "experiments" / folder).rglob("*")}
    parts = {path for path in files if path.is_dir() or path.parent.name == "base" or path.name == "model.yaml"}
    assert files - parts == {path_of(preset) for preset in (*PRESETS, *ADAPTED)}


@pytest.mark.parametrize(("name", "recipe"), CELLS, ids=lambda value: value)
def test_a_recipe_has_its_cells(name: str, recipe: str) -> None:
    check_schedule(load(f"florence_vl/{name}", f"recipe={recipe}"), *CELLS[name, recipe])


@pytest.mark.parametrize("name", FLORENCE_VL)
def test_the_recipes_differ_in_the_cells_that_disagree_and_in_nothing_else(name: str) -> None:
    paper, released = (as_plain(load(f"florence_vl/{name}", f"recipe={recipe}")) for recipe in ("paper", "released"))
    batches, rates = zip(*(CELLS[name, recipe][:2] for recipe in ("paper", "released")), strict=True)
    expected = ["chosen.recipe", "output"]
    expected += BATCH if batches[0] != batches[1] else []
    expected += ["optimizer.learning_rate"] if rates[0] != rates[1] else []
    assert differences(paper, released) == sorted(expected)


def test_five_cells_disagree() -> None:
    pairs = [zip(CELLS[name, "paper"], CELLS[name, "released"], strict=True) for name in FLORENCE_VL]
    assert sum(one != other for pair in pairs for one, other in pair) == 5


@pytest.mark.parametrize(
    ("name", "batch", "rate", "samples"), [("align", 256, 1e-3, 558_128), ("finetune", 128, 2e-5, 665_298)]
)
def test_the_ablation_setting_is_that_of_llava(name: str, batch: int, rate: float, samples: int) -> None:
    check_schedule(load(f"llava15_7b/{name}"), batch, rate, samples)


@pytest.mark.parametrize(("preset", "words"), CHOICES, ids=str)
def test_a_preset_says_what_is_published(preset: str, words: tuple[str, ...]) -> None:
    config = load(preset, *words)
    encoder, language_model, data = config.encoder.config, config.language_model.config, config.data.config
    assert encoder.pretrained == "florence-community/Florence-2-large-ft"
    expected = {"3b": "microsoft/Phi-3.5-mini-instruct", "8b": "meta-llama/Llama-3.1-8B-Instruct"}
    assert language_model.pretrained == expected.get(path_of(preset).parent.name, "lmsys/vicuna-7b-v1.5")
    assert (encoder.pooled_token, encoder.prompt_pads, encoder.prompts) == ("drop", "mask", {})
    assert (config.stage.name, data.view, data.image_fit, data.group_by_length) == {
        "pretrain": ("pretrain", "caption", "stretch", False),
        "align": ("align", "caption", "stretch", False),
        "finetune": ("finetune", "conversation", "pad", True),
    }[config.name]
    assert (config.data.name, data.sequence_length, data.packing) == ("shards", 2048, "none")
    roots = [data.root] if data.root else [dataset.root for dataset in data.datasets.values()]
    for root in roots:
        recipe = ROOT / "experiments" / "data" / f"{Path(root).name}.yaml"
        assert f"output={root}\n" in recipe.read_text(encoding="utf-8"), root


@pytest.mark.parametrize(
    ("preset", "projector", "language_model", "released"),
    [("florence_vl/3b/pretrain", 31.47, 3821.08, 4790), ("florence_vl/8b/pretrain", 50.34, 8030.26, 9010),
     ("llava15_7b/align", 50.34, 6738.42, 7720)],
)  # fmt: skip
def test_real_sizes_are_the_published_ones(
    preset: str, projector: float, language_model: float, released: float, tiny_data: Path
) -> None:
    """The hub's 9.01 B (8B) hold Florence-2's decoder, and its token table four times."""
    experiment = at_real_size(preset, tiny_data / "demo" / "tokenizer", "encoder.decoder=keep")
    model = build_stage(experiment, device="meta").model
    assert model.image_spec.tokens_per_image == 576
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    counts = {name: count["parameters"] / MILLION for name, count in count_parameters(model).items()}
    assert counts["projector"] == pytest.approx(projector, abs=0.01)
    assert counts["language_model"] == pytest.approx(language_model, abs=0.01)
    assert counts["encoder"] == pytest.approx(777, abs=1)
    assert counts["fusion"] == 0
    copies = 3 * model.encoder.text_encoder.embed_tokens.weight.numel() / MILLION
    assert sum(counts.values()) + copies == pytest.approx(released, abs=10)


@pytest.mark.parametrize("preset", PRESETS)
def test_components_train_as_published(preset: str, tiny_data: Path) -> None:
    stage = build_stage(at_real_size(preset, tiny_data / "demo" / "tokenizer"), device="meta")
    trains = {"pretrain": COMPONENTS, "align": COMPONENTS[1:3], "finetune": COMPONENTS[1:]}[stage.experiment.name]
    assert stage.trainable == {name: "full" if name in trains else "frozen" for name in COMPONENTS}
    for name, count in count_parameters(stage.model).items():
        assert count["trainable"] == (count["parameters"] if name in trains else 0)


def original(size: str) -> dict[str, Any]:
    """A released checkpoint's config.json: that of its language model, under the original's name, and the projector."""
    name, kind = {
        "3b": ("microsoft/Phi-3.5-mini-instruct", "llava_phi"),
        "8b": ("meta-llama/Llama-3.1-8B-Instruct", "llava_llama"),
    }[size]
    config = json.loads((HUB / name / "config.json").read_text(encoding="utf-8"))
    grown = {"vocab_size": config["vocab_size"] + 1} if size == "8b" else {}  # by a pad token
    return {**config, **grown, "model_type": kind, "mm_hidden_size": 1024, "mm_projector_type": "mlp3x_gelu"}


def original_tower() -> dict[str, Any]:
    """The tower's config.json in Microsoft's layout."""
    path = HUB / "florence-community" / "Florence-2-large-ft" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    vision = config["vision_config"]
    renamed = {
        "dim_embed": vision["embed_dim"],
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": vision["max_position_embeddings"]},
        "visual_temporal_embedding": {
            "type": "COSINE", "max_temporal_embeddings": vision["max_temporal_embeddings"]
        },
    }  # fmt: skip
    return {**config, "vision_config": vision | renamed}


@pytest.mark.parametrize("size", ["3b", "8b"])
def test_the_structure_is_that_of_an_imported_checkpoint(size: str, tiny_data: Path) -> None:
    """Same tensors under the same names, same prompts in the same order: what was released can be trained on."""
    preset = build_stage(at_real_size(f"florence_vl/{size}/finetune", tiny_data / "demo" / "tokenizer"), "meta").model
    with torch.device("meta"), no_init_weights():
        released = FlorenceVLForConditionalGeneration(
            imported_config(original(size), original_tower(), 768, 40000, ImportOptions())
        )
    ours, theirs = ({k: v.shape for k, v in model.state_dict().items()} for model in (preset, released))
    assert set(ours) == set(theirs)
    tables = {"language_model.model.model.embed_tokens.weight", "language_model.model.lm_head.weight"}
    assert {name for name in ours if ours[name] != theirs[name]} == (tables if size == "8b" else set())
    configs = preset.config, released.config
    for slot in ("fusion", "projector"):
        assert configs[0].choice(slot) == configs[1].choice(slot)
    assert len({(config.normalize_sources, config.normalize_output) for config in configs}) == 1
    chosen, kept = (config.encoder for config in configs)
    different = {key for key in chosen if chosen[key] != kept[key]}
    assert different == {"pretrained", "tokenizer", "model", "prompt_ids", "pooled_token", "prompt_pads"}
    assert list(chosen["prompt_ids"]) == list(kept["prompt_ids"])


def test_the_released_8b_can_be_started_from(tmp_path: Path, tiny_data: Path) -> None:
    """As docs/presets.md says: its own text_config makes the table that is one row longer."""
    imported_config(original("8b"), original_tower(), 768, 40000, ImportOptions()).save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["text_config"]
    del text["dtype"]
    mine = {"base": str(path_of("florence_vl/8b/finetune")), "language_model": {"pretrained": None, "model": text}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    tokenizer = tiny_data / "demo" / "tokenizer"
    words = [f"encoder.pretrained={HUB}/florence-community/Florence-2-large-ft"]
    words += [f"{slot}.tokenizer={tokenizer}" for slot in ("encoder", "language_model")]
    model = build_stage(load_config(ExperimentConfig, tmp_path / "mine.yaml", words), device="meta").model
    assert model.get_input_embeddings().weight.shape == (128257, 4096)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def structure(experiment: ExperimentConfig) -> dict[str, Any]:
    """What `scale=tiny` must leave as it is."""
    stage = build_stage(experiment, device="meta")
    model, data = stage.model, experiment.data.config
    vision = model.encoder.model_config.vision_config
    return {
        "components": {slot: getattr(experiment, slot).name for slot in ("stage", *COMPONENTS)},
        "sources": list(model.encoder.specs),
        "prompts": (model.encoder.tasks, len(model.encoder.prompts.rows)),
        "tower": (len(vision.embed_dim), vision.patch_size, vision.patch_stride),
        "projector": [type(layer).__name__ for layer in model.projector.layers],
        "normalize": experiment.normalize,
        "language_model": model.config.get_text_config().model_type,
        "tied": model.config.get_text_config().tie_word_embeddings,
        "chat_template": experiment.language_model.config.chat_template,
        "trainable": stage.trainable,
        "data": (data.view, data.layout, data.image_fit, data.over_long),
        "learning_rate": experiment.optimizer.learning_rate,
        "accumulated": experiment.trainer.accumulate > 1,
        "grouped queries": _grouped(model),
    }


def _grouped(model: Any) -> bool:
    text = model.config.get_text_config()
    return text.num_key_value_heads < text.num_attention_heads


@pytest.mark.parametrize(
    ("preset", "words"), [*CHOICES, *(pytest.param(one, (), marks=pytest.mark.slow) for one in SIZES_BETWEEN)], ids=str
)
def test_tiny_has_the_structure_of_full(
    preset: str, words: tuple[str, ...], workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    tiny = load(preset, *words, "scale=tiny")
    assert structure(tiny) == structure(at_real_size(preset, Path("data/demo/tokenizer"), *words))
    model = build_stage(tiny, device="meta").model
    assert sum(parameter.numel() for parameter in model.parameters()) < 2 * MILLION
    assert tiny.encoder.config.pretrained is None
    assert tiny.language_model.config.pretrained is None


@pytest.mark.parametrize("preset", PRESETS)
def test_tiny_trains(preset: str, workspace: Path, fvl_here: Run) -> None:
    done = fvl_here(workspace, "train", f"experiments/{preset}.yaml", *SHORT)
    assert done.returncode == 0, done.stderr
    (run,) = (RunFolder(path.parent) for path in (workspace / "runs").rglob("run.json"))
    assert run.finished
    assert len(run.curve("train/loss")) == 2
    assert run.config["chosen"]["scale"] == "tiny"
    assert run.path.parent.name.endswith("-tiny")
    assert (run.model / "model.safetensors").is_file()


def test_a_stopped_preset_goes_on_with_its_choices_only(workspace: Path, fvl_here: Run) -> None:
    words = ("train", "experiments/florence_vl/3b/finetune.yaml", *SHORT, "output=runs", "trainer.checkpoint_every=1")
    assert fvl_here(workspace, *words).returncode == 0
    run = RunFolder(workspace / "runs" / "finetune")
    run.record(status="interrupted")
    refused = fvl_here(workspace, *words, "recipe=released", "--resume")
    assert refused.returncode == 2
    assert "was started with another configuration, at chosen.recipe" in refused.stderr
    resumed = fvl_here(workspace, *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert run.finished
    stored = check_config(ExperimentConfig, run.config)
    assert as_plain(stored) == run.config


def test_arms_of_a_comparison_may_take_choices(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    stages = [f"experiments/florence_vl/3b/{stage}.yaml" for stage in ("pretrain", "finetune")]
    arms = {
        "paper": {"set": ["scale=tiny", "recipe=paper"]},
        "gated": {"set": ["recipe=released", "scale=tiny", "fusion=gated", "trainer.max_steps=3"]},
    }
    values = {"encoder_stage": "experiments/demo/encoder_pretrain.yaml", "stages": stages, "arms": arms}
    Path("mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    config = load_config(ComparisonConfig, Path("mine.yaml"))
    resolved = experiments(config, Path("mine.yaml"), Path("runs"))[0].arms
    assert [stage.chosen["recipe"] for stage in resolved["paper"]] == ["paper"] * 2
    for stage in resolved["gated"]:
        assert stage.chosen == {"recipe": "released", "scale": "tiny"}
        assert (stage.fusion.name, stage.trainer.max_steps, stage.output) == ("gated", 3, "runs/gated")
        again = check_config(ExperimentConfig, {**as_plain(stage), "init_from": ["elsewhere"]})
        assert again == dataclasses.replace(stage, init_from=["elsewhere"])
