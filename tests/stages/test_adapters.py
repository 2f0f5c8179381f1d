"""Stages with adapters save a folder that peft loads, and checkpoints without frozen weights."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from lightning import Callback
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fvl_lightning.core.errors import DataError
from fvl_lightning.modeling.adapters.folders import (
    ADAPTER,
    attach_adapter,
    base_of,
    has_adapters,
    merge_adapter,
    modules_to_save,
    use_adapter,
)
from fvl_lightning.modeling.build import load_model
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.stages.language import LanguageStage
from fvl_lightning.training.components import component_of, is_trainable
from fvl_lightning.training.load_weights import load_components
from tests.stages.fitting import batches_of, build_stage, fit
from tests.tiny_models import named_tensors, rows, snapshot, tiny_model

PREFIX = "base_model.model."
SETTINGS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "language_model": ({"language_model": "lora"}, {"rank": 4, "dropout": 0.1}),
    "dora": ({"language_model": "lora"}, {"rank": 2, "dora": True}),
    "both": ({"language_model": "lora", "encoder": "lora"}, {"components": {}, "rank": 3, "rslora": True}),
    "encoder_in_full": ({"language_model": "lora", "encoder": "full"}, {"targets": ["q_proj", "v_proj"]}),
    "projector_frozen": ({"language_model": "lora", "projector": "frozen"}, {}),
}
FRESH = """
import sys
import fvl_lightning.auto
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base, adapter, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter).eval()
inputs = torch.load(adapter + "/inputs.pt", weights_only=True)
logits = model.requires_grad_(False)(**inputs).logits
expected = torch.load(adapter + "/logits.pt", weights_only=True)
# Where a process's memory happens to lie may decide which kernel runs, and so the last bits.
torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
"""


def trained(folder: Path, name: str, seed: int = 0, steps: int = 3) -> LanguageStage:
    """A stage with adapters after some steps, its base in folder/base and what it saved in folder/<name>."""
    trainable, lora = SETTINGS[name]
    stage = build_stage(
        "finetune",
        folder,
        trainable=trainable,
        lora=lora,
        optimizer={"learning_rate": 0.02},
        trainer={"max_steps": steps},
    )
    assert isinstance(stage, LanguageStage)
    if not (folder / "base").exists():
        stage.save_whole(folder / "base")
    stage.adapt(folder / "base")
    torch.manual_seed(seed)
    fit(stage, batches_of("finetune", steps, first=10 * seed), folder)
    stage.save_model(folder / f"{name}{seed or ''}")
    return stage


def logits(model: Any) -> Tensor:
    """Of two rows; for weights that want a gradient torch takes another kernel, with other last bits."""
    batch = rows(2)
    return model.eval().requires_grad_(False)(batch.token_ids, pixel_values=batch.images).logits


def plain_peft(base: Path, adapter: Path) -> Any:
    """The adapter by peft alone; every warning of it is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        return peft.PeftModel.from_pretrained(FlorenceVLForConditionalGeneration.from_pretrained(base), adapter)


def exported_name(key: str) -> str:
    """What peft's file calls a tensor of a checkpoint."""
    name = key.removeprefix("model.").replace(f".{ADAPTER}", "")
    return PREFIX + (name.removesuffix(".weight") if "lora_magnitude_vector" in name else name)


@pytest.mark.parametrize(
    "name",
    [name if name in ("both", "projector_frozen") else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS],
)
def test_peft_the_kit_and_a_merge_give_the_logits_of_training(name: str, tmp_path: Path) -> None:
    stage = trained(tmp_path, name)
    folder, base = tmp_path / name, tmp_path / "base"
    ours, before = logits(stage.model), logits(load_model(base).model)
    assert float((ours - before).abs().max()) > 0.1
    assert torch.equal(logits(plain_peft(base, folder)), ours)
    loaded = load_model(folder).model
    assert torch.equal(logits(loaded), ours)
    use_adapter(loaded, None)
    assert torch.equal(logits(loaded), before)
    use_adapter(loaded, "default")
    assert torch.equal(logits(loaded), ours)
    merged = merge_adapter(load_model(base).model, folder)
    assert merged.state_dict().keys() == load_model(base).model.state_dict().keys()
    merged.save_pretrained(tmp_path / "merged")
    stored, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "base"))
    assert stored.keys() == wanted.keys()
    for whole in (merged, FlorenceVLForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()):
        language_model = whole.language_model.model
        assert language_model.lm_head.weight is language_model.model.embed_tokens.weight
        torch.testing.assert_close(logits(whole), ours, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_fresh_process_loads_it_with_peft_alone(tmp_path: Path) -> None:
    stage, batch = trained(tmp_path, "language_model"), rows(2)
    folder = tmp_path / "language_model"
    torch.save({"input_ids": batch.token_ids, "pixel_values": batch.images}, folder / "inputs.pt")
    torch.save(logits(stage.model), folder / "logits.pt")
    words = [str(tmp_path / "base"), str(folder), str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, "-c", FRESH, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SETTINGS)
def test_the_folder_holds_what_learnt_and_nothing_else(name: str, tmp_path: Path) -> None:
    stage = trained(tmp_path, name, steps=1)
    stored = load_file(tmp_path / name / "adapter_model.safetensors")
    names = {key.removeprefix(PREFIX) for key in stored}
    model = stage.model
    learnt = {
        key.replace(".default", "").removesuffix(".weight" if "magnitude" in key else "")
        for key, _ in model.named_parameters(remove_duplicate=False)
        if is_trainable(key, stage.trainable)
    }
    state = model.state_dict()
    learnt |= {key for key, _ in model.named_buffers() if key in state and stage.trainable[component_of(key)] == "full"}
    assert names == learnt
    config = json.loads((tmp_path / name / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str((tmp_path / "base").resolve())
    with safe_open(tmp_path / name / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["base_hash"] == stage.frozen_hash
    size = sum(value.nbytes for value in stored.values())
    assert size < (tmp_path / name / "adapter_model.safetensors").stat().st_size < size + 50_000


@pytest.mark.slow
def test_two_adapters_on_one_base_do_not_leak(tmp_path: Path) -> None:
    """Not in any order of use, though their ranks differ and one trained the projector; nor is the base touched."""
    folders = {"a": tmp_path / "language_model", "b": tmp_path / "projector_frozen", "c": tmp_path / "language_model1"}
    expected = {
        "a": logits(trained(tmp_path, "language_model").model),
        "b": logits(trained(tmp_path, "projector_frozen").model),
        "c": logits(trained(tmp_path, "language_model", seed=1).model),
    }
    model = load_model(tmp_path / "base").model
    expected[""] = logits(model)
    assert len({tuple(value.flatten().tolist()) for value in expected.values()}) == 4
    for name, folder in folders.items():
        attach_adapter(model, folder, name)
        assert torch.equal(logits(model), expected[name])
    for name in ["a", "c", "", "b", "a", "", "c", "b"]:
        use_adapter(model, name or None)
        assert torch.equal(logits(model), expected[name]), name


def test_a_further_stage_starts_from_the_merged_model(tmp_path: Path) -> None:
    stage = trained(tmp_path, "both")
    further = build_stage("finetune", tmp_path)
    assert load_components(further.model, tmp_path / "both") == ["encoder", "fusion", "language_model", "projector"]
    torch.testing.assert_close(logits(further.model), logits(stage.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["dora", "both"])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Bit for bit to the folder that is saved, and the checkpoint is the adapter and its optimiser."""
    trainable, lora = SETTINGS[name]
    how: dict[str, Any] = {
        "trainable": trainable,
        "lora": lora | {"dropout": 0.2},
        "optimizer": {"name": "muon", "learning_rate": 0.01, "warmup_steps": 3, "weight_decay": 0.1},
        "trainer": {"max_steps": 4, "checkpoint_every": 2},
    }

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    def run(folder: Path, first: int, count: int, callbacks: list[Callback], resume: Path | None = None) -> Any:
        stage = build_stage("finetune", folder, **how)
        stage.adapt(folder / "base")
        torch.manual_seed(0 if resume is None else 99)
        fit(stage, batches_of("finetune", count, first=first), folder, callbacks, resume=resume)
        return stage

    whole = run(tmp_path / "whole", 0, 4, [])
    parts = tmp_path / "parts"
    run(parts, 0, 4, [Stop()])
    again = run(parts, 2, 2, [], resume=parts / "last.ckpt")
    wanted = snapshot(whole.model)
    assert [key for key, tensor in named_tensors(again.model) if not torch.equal(tensor, wanted[key])] == []
    whole.save_model(tmp_path / "one")
    again.save_model(tmp_path / "other")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "other"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    checkpoint = torch.load(parts / "last.ckpt", weights_only=True)
    kept = {exported_name(key): value for key, value in checkpoint["state_dict"].items()}
    assert kept.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in kept.items())
    learning = [p for p in again.model.parameters() if p.requires_grad]
    (optimizer,) = checkpoint["optimizer_states"]
    assert len(optimizer["state"]) == len(learning)


def test_activations_that_are_computed_again_change_nothing(tmp_path: Path) -> None:
    """Neither the update nor the names under which adapters are saved."""
    found = []
    for blocks in ([], ["encoder", "language_model"]):
        trainer = {"max_steps": 2, "checkpoint_activations": blocks}
        stage = build_stage("finetune", tmp_path, trainable=SETTINGS["both"][0], lora={"dropout": 0.2}, trainer=trainer)
        stage.adapt(tmp_path / "base")
        torch.manual_seed(0)
        fit(stage, batches_of("finetune", 2), tmp_path)
        stage.save_model(tmp_path / "adapter")
        found.append(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


@pytest.mark.parametrize("name", ["finetune", "align"])
def test_a_checkpoint_leaves_out_what_is_frozen(name: str, tmp_path: Path) -> None:
    stage = build_stage(name, tmp_path, trainer={"max_steps": 1})
    fit(stage, batches_of(name, 1), tmp_path)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    state = {f"model.{key}": value for key, value in stage.model.state_dict().items()}
    assert all(torch.equal(value, state[key]) for key, value in kept.items())
    frozen = {"encoder"} | ({"language_model"} if name == "align" else set())
    assert {key.split(".")[1] for key in state.keys() - kept.keys()} == frozen
    assert {key.split(".")[1] for key in kept} & frozen == set()


def test_resuming_on_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    fit(build_stage("finetune", tmp_path, trainer={"max_steps": 1}), batches_of("finetune", 1), tmp_path)
    other = build_stage("finetune", tmp_path, seed=1, trainer={"max_steps": 2})
    with pytest.raises(DataError, match=r"^--resume: the frozen weights are not those that the run had"):
        fit(other, batches_of("finetune", 1, first=1), tmp_path, resume=tmp_path / "last.ckpt")


def test_resuming_what_learns_otherwise_is_refused(tmp_path: Path) -> None:
    fit(build_stage("finetune", tmp_path, trainer={"max_steps": 1}), batches_of("finetune", 1), tmp_path)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint["state_dict"]["model.projector.layers.0.weight"]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 2})
    with pytest.raises(DataError, match=r"trainable parameters differ, e\.g\. model\.projector\.layers\.0\.weight$"):
        fit(stage, batches_of("finetune", 1, first=1), tmp_path, resume=tmp_path / "last.ckpt")


def test_parts_trained_in_full_are_named_so_that_peft_finds_nothing_else() -> None:
    """It takes whatever ends like them: `projector` would be the encoder's image_projector too."""
    model = tiny_model(fusion="gated", normalize=True)
    assert model.encoder.image_projector is not None
    names = modules_to_save(model, ["alignment", "fusion", "output_norm", "projector"])
    assert names == ["alignment", "fusion", "output_norm", "projector.layers"]
    assert modules_to_save(tiny_model(), ["alignment", "output_norm"]) == [], "nothing in them learns"
    encoder = modules_to_save(model, ["encoder"])
    covered = {key for key in model.state_dict() if any(key.startswith(f"{name}.") for name in encoder)}
    assert covered == {key for key in model.state_dict() if key.startswith("encoder.")}


def test_parts_that_end_like_others_are_saved_with_them(tmp_path: Path) -> None:
    """A projector with a parameter of its own cannot be named by its parts; peft wants the namesake's values too."""
    stage = build_stage("finetune", tmp_path, trainable={"language_model": "lora"})
    assert isinstance(stage, LanguageStage)
    stage.model.projector.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
    stage.adapt(tmp_path / "base")
    stage.save_model(tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert "projector" in config["modules_to_save"]
    assert PREFIX + "projector.scale" in stored
    namesakes = {key for key in stage.model.state_dict() if key.startswith("encoder.image_projector.")}
    assert namesakes
    assert {PREFIX + key for key in namesakes} <= stored.keys()


# What is refused.


def test_another_base_is_refused(tmp_path: Path) -> None:
    """By the weights that the adapter stands on; those that it brings itself may be any."""
    trained(tmp_path, "language_model", steps=1)
    other = build_stage("finetune", tmp_path, seed=1)
    assert isinstance(other, LanguageStage)
    other.save_whole(tmp_path / "other")
    says = r"^the adapter \S+ was trained on another base than \S+other \(its weights are not [0-9a-f]{12}\); name"
    with pytest.raises(DataError, match=says):
        load_model(tmp_path / "language_model", tmp_path / "other")
    with pytest.raises(DataError, match=says):
        merge_adapter(load_model(tmp_path / "other").model, tmp_path / "language_model")
    model = load_model(tmp_path / "base").model
    with torch.no_grad():
        model.projector.layers[0].weight.zero_()
    model.save_pretrained(tmp_path / "projected")
    shutil.copy(tmp_path / "base" / "processor_config.json", tmp_path / "projected")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "base" / file, tmp_path / "projected")
    wanted = logits(load_model(tmp_path / "language_model").model)
    assert torch.equal(logits(load_model(tmp_path / "language_model", tmp_path / "projected").model), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_is_known_by_its_values_whatever_type_holds_them(dtype: torch.dtype, tmp_path: Path) -> None:
    """Training holds a float32 copy of a folder in half precision; the folder is its base. A rounded base is not."""
    stage = build_stage("finetune", tmp_path, trainable={"language_model": "lora"})
    assert isinstance(stage, LanguageStage)
    stage.save_whole(tmp_path / "whole")
    stage.model.to(dtype)
    stage.save_whole(tmp_path / "half")
    stage.model.float()
    stage.adapt(tmp_path / "half")
    stage.save_model(tmp_path / "adapter")
    loaded = load_model(tmp_path / "adapter").model
    assert loaded.dtype == dtype
    assert has_adapters(loaded)
    merge_adapter(load_model(tmp_path / "half").model, tmp_path / "adapter")
    with pytest.raises(DataError, match=r"was trained on another base than \S+whole \(its weights are not \w+\); name"):
        load_model(tmp_path / "adapter", tmp_path / "whole")
    other = build_stage("finetune", tmp_path, trainable={"language_model": "lora"})
    other.adapt(tmp_path / "whole")
    other.save_model(tmp_path / "other")
    with pytest.raises(DataError, match=f"; it holds {dtype}: a rounded copy of the base has other values"):
        load_model(tmp_path / "other", tmp_path / "half")


def test_a_base_that_is_gone_is_named_or_found_beside(tmp_path: Path) -> None:
    trained(tmp_path, "language_model", steps=1)
    adapter = tmp_path / "run" / "model"
    shutil.copytree(tmp_path / "language_model", adapter)
    assert base_of(adapter) == (tmp_path / "base").resolve()
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"^the base of the adapter \S+ is not in \S+/base; give its folder as the mod"):
        load_model(adapter)
    assert base_of(adapter, tmp_path / "elsewhere") == tmp_path / "elsewhere"
    with pytest.raises(DataError, match="is an adapter itself; name a whole model"):
        base_of(adapter, tmp_path / "language_model")
    for place in (adapter / "base", adapter.parent / "base"):
        shutil.copytree(tmp_path / "elsewhere", place)
        assert base_of(adapter) == place
        shutil.rmtree(place)


def test_broken_adapters_are_one_sentence(tmp_path: Path) -> None:
    trained(tmp_path, "language_model", steps=1)
    folder = tmp_path / "language_model"
    weights = folder / "adapter_model.safetensors"
    stored = load_file(weights)

    def refused(says: str) -> None:
        with pytest.raises(DataError, match=says) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)

    lacking = dict(stored)
    del lacking[PREFIX + "projector.layers.0.weight"]
    save_file(lacking, weights)
    refused("lacks 'projector.layers.0.weight'; its file was cut")
    first = next(key for key in stored if "lora_A" in key)
    save_file(stored | {first: torch.zeros(3, 3)}, weights)
    refused("does not fit its base")
    save_file(stored | {first: stored[first] * torch.nan}, weights)
    refused(f"the adapter {folder} holds NaN or infinite numbers, in {first}; ")
    save_file({key: value for key, value in stored.items() if key != first}, weights)
    refused(f"the adapter {folder} lacks 1 of its tensors, such as .*; its file was cut")
    save_file(stored | {PREFIX + "language_model.odd": torch.zeros(1)}, weights)
    refused("has tensors without a place in its base, such as language_model.odd")
    weights.write_bytes(b"nothing of that kind")
    refused("is not a readable safetensors file")
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    refused("adapter_config.json could not be read")
