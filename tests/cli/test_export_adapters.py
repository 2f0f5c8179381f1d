"""LoRA through the command line: trained on a run or on hub weights, exported, merged, and opened again."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, pipeline

from fvl_lightning.inference.adapters import attach_adapters
from fvl_lightning.modeling.build import LoadedModel, load_model
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run, furnish

FINETUNE, LORA = "experiments/demo/finetune.yaml", "experiments/demo/finetune_lora.yaml"
CODE = "```python\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with a run, one with adapters on it, one with adapters on pieces, and their exports."""
    folder = furnish(tmp_path_factory.mktemp("adapters"), tiny_data)
    # A learning rate at which three steps are seen.
    for words in (
        ("train", FINETUNE, *TINY, "name=whole"),
        ("train", LORA, *TINY, "name=on_run", "init_from=[runs/whole]", "optimizer.learning_rate=0.05"),
        ("train", LORA, *TINY, "name=on_pieces", "optimizer.learning_rate=0.05"),
        ("export", "runs/on_run", "models/adapter"),
        ("export", "runs/on_pieces", "models/pieces"),
        ("export", "runs/on_run", "models/merged", "--merge", "--file-megabytes", "1"),
    ):
        done = fvl_here(folder, *words)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, "neither peft's nor torch's"
        (folder / f"{words[0]}-{words[-1].replace('/', '-')}.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def logits(folder: Path) -> Any:
    """Of one made-up row with a picture."""
    return logits_of(load_model(folder))


def logits_of(loaded: LoadedModel) -> Any:
    """Those of a loaded model."""
    image = torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    tokens = [5, *[loaded.model.config.image_token_id] * loaded.model.image_spec.tokens_per_image, 7, 8, 9]
    return loaded.model.requires_grad_(False)(torch.tensor([tokens]), pixel_values=image).logits


def test_the_run_names_its_base_and_keeps_none(folder: Path) -> None:
    run = RunFolder(folder / "runs" / "on_run")
    config = json.loads((run.model / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str((folder / "runs" / "whole" / "model").resolve())
    assert not (run.path / "base").exists()
    assert [file.name for file in run.model.glob("*.safetensors")] == ["adapter_model.safetensors"]
    info = run.info
    stored = load_file(run.model / "adapter_model.safetensors")
    assert info["adapter_bytes"] == sum(value.nbytes for value in stored.values())
    assert info["trainable"] == sum(value.numel() for value in stored.values())
    assert RunFolder(folder / "runs" / "whole").info["adapter_bytes"] is None
    assert info["components"]["language_model"]["trainable"] == 16 * 3 * (4 * (128 + 128) + 3 * (128 + 384))


def test_the_checkpoint_is_small(folder: Path) -> None:
    sizes = {name: (folder / "runs" / name / "checkpoints" / "last.ckpt").stat().st_size for name in
             ("whole", "on_run")}  # fmt: skip
    kept = torch.load(folder / "runs" / "on_run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    stored = load_file(folder / "runs" / "on_run" / "model" / "adapter_model.safetensors")
    assert sum(value.nbytes for value in kept.values()) == sum(value.nbytes for value in stored.values())
    assert sizes["on_run"] < 0.6 * sizes["whole"]


def test_a_base_of_pieces_is_kept_in_the_run_and_exported_beside(folder: Path) -> None:
    run = folder / "runs" / "on_pieces"
    assert (run / "base" / "config.json").is_file()
    expected = logits(run / "model")
    assert torch.equal(logits(folder / "models" / "pieces"), expected)
    said = (folder / "export-models-pieces.txt").read_text(encoding="utf-8")
    assert re.search(r"^models/pieces: adapter of [\d,]+ parameters on models/pieces/base$", said.strip())
    (folder / "models" / "pieces").rename(folder / "models" / "moved")
    assert torch.equal(logits(folder / "models" / "moved"), expected)
    (folder / "models" / "moved").rename(folder / "models" / "pieces")


def test_an_export_is_the_adapter_of_the_run(folder: Path) -> None:
    run, out = folder / "runs" / "on_run" / "model", folder / "models" / "adapter"
    described = ("adapter_config.json", "config.json", "processor_config.json", "generation_config.json")
    for name in ("adapter_model.safetensors", *described):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    assert not (out / "base").exists()
    assert torch.equal(logits(out), logits(run))
    assert not torch.equal(logits(out), logits(folder / "runs" / "whole" / "model"))


def test_an_adapter_that_peft_saved_is_a_model_an_adapter_and_merges(folder: Path, fvl_here: Run) -> None:
    """Such a folder holds two files: no configuration of the model and no processor."""
    whole = load_model(folder / "runs" / "whole" / "model").model
    targets = r"language_model\..*\.(q_proj|v_proj)"
    settings = LoraConfig(r=2, target_modules=targets, modules_to_save=whole.modules_to_save("fusion", "projector"))
    wrapped = get_peft_model(whole, settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder / "models" / "theirs")
    assert not (folder / "models" / "theirs" / "config.json").exists()
    done = fvl_here(folder, "export", "models/theirs", "models/theirs_merged", "--merge")
    assert done.returncode == 0, done.stderr
    expected = logits(folder / "models" / "theirs")
    assert not torch.allclose(expected, logits(folder / "runs" / "whole" / "model"), rtol=0, atol=0.1)
    torch.testing.assert_close(logits(folder / "models" / "theirs_merged"), expected, rtol=0, atol=1e-5)
    attached = load_model(folder / "runs" / "whole" / "model")
    assert attach_adapters(attached, [str(folder / "models" / "theirs")]) == ["theirs"]
    assert torch.equal(logits_of(attached), expected)


def test_a_run_with_adapters_is_loaded_alike_by_every_way(folder: Path) -> None:
    base, adapter = folder / "runs" / "whole" / "model", folder / "runs" / "on_run" / "model"
    expected = logits(adapter)
    loaded = load_model(base)

    def of(model: Any) -> Any:
        return logits_of(dataclasses.replace(loaded, model=model.eval()))

    whole = AutoModelForImageTextToText.from_pretrained(base)
    whole.load_adapter(str(adapter))
    assert torch.equal(of(whole), expected)
    assert torch.equal(of(AutoModelForImageTextToText.from_pretrained(adapter)), expected)
    assert torch.equal(of(AutoPeftModel.from_pretrained(adapter)), expected)
    assert torch.equal(of(pipeline("image-text-to-text", model=str(adapter)).model), expected)
    assert not torch.allclose(of(AutoModelForImageTextToText.from_pretrained(base)), expected, rtol=0, atol=0.01)


def test_an_adapter_out_of_a_checkpoint(folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, "export", "runs/on_pieces", "saved/pieces", "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        load_file(folder / name / "adapter_model.safetensors") for name in ("saved/pieces", "models/pieces")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (folder / "saved" / "pieces" / "base" / "config.json").is_file()


@pytest.mark.slow
def test_its_card_runs_with_plain_peft(folder: Path) -> None:
    text = (folder / "models" / "adapter" / "README.md").read_text(encoding="utf-8")
    code = text.split(CODE)[1].split("```")[0].replace('"adapter"', '"models/adapter"')
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    check = "\nassert any('lora_A' in name for name, _ in model.named_parameters())"
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_merged_model_is_whole_and_equal(folder: Path) -> None:
    out = folder / "models" / "merged"
    assert len(list(out.glob("model-*.safetensors"))) > 1
    assert not (out / "adapter_config.json").exists()
    torch.testing.assert_close(logits(out), logits(folder / "models" / "adapter"), rtol=0, atol=1e-5)
    for name in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (folder / "runs" / "on_run" / "model" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["runs/on_run", "models/adapter", "models/merged"])
def test_a_further_training_starts_from_it(folder: Path, fvl_here: Run, start: str) -> None:
    """Of an adapter on an adapter the base is neither: it is kept in the run."""
    name = start.replace("/", "_")
    done = fvl_here(folder, "train", LORA, *TINY, f"name={name}", f"init_from=[{start}]", "trainer.max_steps=1",
                    "optimizer.learning_rate=1e-12")  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = RunFolder(folder / "runs" / name)
    assert (run.path / "base").exists() == (start != "models/merged")
    torch.testing.assert_close(logits(run.model), logits(folder / "models" / "adapter"), rtol=0, atol=1e-5)


def test_a_run_with_adapters_is_evaluated_and_answers(folder: Path, fvl_here: Run) -> None:
    from PIL import Image

    done = fvl_here(folder, "evaluate", "runs/on_run")
    assert done.returncode == 0, done.stderr
    assert "macro" in done.stdout
    Image.new("RGB", (80, 60), "red").save(folder / "picture.png")
    for model in ("runs/on_run", "models/adapter", "models/merged"):
        done = fvl_here(folder, "generate", model, "--image", "picture.png", "--prompt", "how many shapes are there?")
        assert done.returncode == 0, done.stderr


def test_what_was_asked_of_a_model_that_moved(folder: Path, fvl_here: Run, tmp_path: Path) -> None:
    shutil.copytree(folder / "models" / "adapter", tmp_path / "adapter")
    shutil.copytree(folder / "runs" / "whole" / "model", tmp_path / "found")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "/gone"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    done = fvl_here(tmp_path, "export", "adapter", "out", "--merge")
    assert done.returncode == 2
    assert "the base of the adapter adapter is not in /gone; give its folder" in done.stderr
    assert not (tmp_path / "out").exists()
    for number, base in enumerate(("found", str(folder / "runs" / "whole"))):
        done = fvl_here(tmp_path, "export", "adapter", f"out{number}", "--merge", "--base", base)
        assert done.returncode == 0, done.stderr
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / f"out{number}").iterdir()}
        assert set(modes.values()) == {modes["config.json"]}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/whole", "models/no", "--merge"], "--merge: runs/whole/model is a whole model, there is no adapter"),
        (["runs/on_run", "models/no", "--base", "runs"], "--base: only --merge reads the base of an adapter"),
        (["runs/on_run", "models/adapter"], "models/adapter exists already"),
        (
            ["runs/on_run", "models/no", "--merge", "--base", "runs/on_pieces/base"],
            "was trained on another base than runs/on_pieces/base",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(folder: Path, fvl_here: Run, words: list[str], said: str) -> None:
    done = fvl_here(folder, "export", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "models" / "no").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lora.rank=0", "lora.rank on the command line must be at least 1, not 0"),
        ("lora.targets=[q_prj]", "did you mean 'q_proj'?"),
        ("trainable.language_model=full", "lora: no component is trained with LoRA"),
        ("trainable.projector=lora", "trainable.projector: lora is for encoder and language_model"),
        ("lora.quantization=4bit", "lora.quantization: 4bit needs "),
    ],
)
def test_mistakes_in_the_settings(folder: Path, fvl_here: Run, word: str, said: str) -> None:
    before = sorted((folder / "runs").iterdir())
    done = fvl_here(folder, "train", LORA, *TINY, "name=never", word)
    assert done.returncode == 2, done.stderr
    sentence = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
    assert len(sentence) == 1
    assert said in sentence[0]
    assert sorted((folder / "runs").iterdir()) == before


def test_features_of_an_adapted_encoder_are_not_kept(folder: Path, fvl_here: Run) -> None:
    words = ("trainable.encoder=lora", "feature_cache=cache", "name=never")
    done = fvl_here(folder, "train", LORA, *TINY, *words)
    assert done.returncode == 2
    assert "feature_cache: the encoder trains in this stage" in done.stderr
