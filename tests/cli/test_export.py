"""`fvl export`: a run's model for others, and back, without a bit changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fvl_lightning.core.weight_files import read_weights
from fvl_lightning.modeling.build import load_model
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run, furnish

FINETUNE = "experiments/demo/finetune.yaml"
CODE = "```python\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with a run of three steps, its export, and one in small files."""
    folder = furnish(tmp_path_factory.mktemp("export"), tiny_data)
    assert fvl_here(folder, "train", FINETUNE, *TINY, "name=run").returncode == 0
    assert fvl_here(folder, "export", "runs/run", "models/one").returncode == 0
    done = fvl_here(folder, "export", "models/one", "models/parts", "--file-megabytes", "1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["one", "parts"])
def test_weights_configuration_and_processor_are_those_of_the_run(folder: Path, name: str) -> None:
    ours, theirs = read_weights(folder / "runs" / "run" / "model"), read_weights(folder / "models" / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    for file in ("config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"):
        written = (folder / "models" / name / file).read_bytes()
        assert written == (folder / "runs" / "run" / "model" / file).read_bytes()
    assert len(list((folder / "models" / name).glob("*.safetensors"))) == {"one": 1, "parts": 8}[name]


def test_one_model_has_one_number_of_parameters(folder: Path, fvl_here: Run, tmp_path: Path) -> None:
    """Tied ones count once and buffers, which the files hold too, do not."""
    recorded = RunFolder(folder / "runs" / "run").info["parameters"]
    model = load_model(folder / "models" / "one").model
    assert recorded == model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert recorded < sum(value.numel() for value in read_weights(folder / "models" / "one").values())
    done = fvl_here(folder, "export", "runs/run", str(tmp_path / "counted"))
    assert f"{recorded:,} parameters" in done.stdout
    assert f"{recorded / 1e6:.1f} M parameters" in (folder / "models" / "one" / "README.md").read_text(encoding="utf-8")


def test_weights_that_are_not_the_models_are_not_exported(folder: Path, fvl_here: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(folder / "models" / "one", model)
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.startswith("projector."))
    save_file({other: value for other, value in weights.items() if other != name}, model / "model.safetensors")
    done = fvl_here(folder, "export", str(model), "models/lacking")
    assert (done.returncode, f"1 values of the model are not in it ({name})" in done.stderr) == (2, True)
    assert not (folder / "models" / "lacking").exists()


@pytest.mark.slow
def test_its_card_runs_in_a_process_without_this_kit(folder: Path) -> None:
    text = (folder / "models" / "parts" / "README.md").read_text(encoding="utf-8")
    code = text.split(CODE)[1].split("```")[0].replace('"parts"', '"models/parts"')
    Image.new("RGB", (80, 60), "red").save(folder / "picture.png")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "florence2 -> concat -> mlp -> llama" in text


def test_a_training_starts_from_an_export_as_from_the_run(folder: Path, fvl_here: Run) -> None:
    for name, start in (("of_run", "runs/run"), ("of_export", "models/parts")):
        done = fvl_here(folder, "train", FINETUNE, *TINY, f"name={name}", f"init_from=[{start}]")
        assert done.returncode == 0, done.stderr
    ours, theirs = (read_weights(folder / "runs" / name / "model") for name in ("of_run", "of_export"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_model_of_a_run_that_did_not_come_to_save_it(folder: Path, fvl_here: Run) -> None:
    killed = RunFolder(folder / "runs" / "killed")
    shutil.copytree(folder / "runs" / "run", killed.path)
    shutil.rmtree(killed.model)
    killed.record(status="running")
    done = fvl_here(folder, "export", "runs/killed", "models/three")
    assert done.returncode == 2
    assert "it has no model yet; `--resume` finishes it, and `fvl export --checkpoint last` takes" in done.stderr
    done = fvl_here(folder, "export", "runs/killed", "saved/last", "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_weights(folder / name) for name in ("saved/last", "models/one"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {file.name for file in (folder / "saved/last").iterdir()} == {
        file.name for file in (folder / "models/one").iterdir()
    }
    best = fvl_here(folder, "export", "runs/killed", "saved/best", "--checkpoint", "best")
    assert best.returncode == 2
    assert "--checkpoint best: runs/killed has no such checkpoint; trainer.keep_best" in best.stderr
    killed.last_checkpoint.write_bytes(killed.last_checkpoint.read_bytes()[:-9])
    (killed.checkpoints / "previous.ckpt").unlink(missing_ok=True)
    assert "or they are damaged" in fvl_here(folder, "export", "runs/killed", "x", "--checkpoint", "last").stderr
    assert not list(killed.path.glob(".export-*"))


def test_images_are_fitted_as_in_training(folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, "train", FINETUNE, *TINY, "name=padded", "data.image_fit=pad", "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr
    picture = Image.new("RGB", (80, 40), "red")
    values = {}
    for name in ("run", "padded"):
        values[name] = load_model(folder / "runs" / name / "model").processor.image_processor(picture).pixel_values
    assert values["run"].shape == values["padded"].shape
    assert torch.equal(values["run"][0, :, 32], values["padded"][0, :, 32])
    assert not torch.allclose(values["run"][0, :, 2], values["padded"][0, :, 2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs/run", "models/one"], "models/one exists already"),
        (["runs/rum", "models/two"], "did you mean runs/run?"),
        (["runs", "models/two"], "is not a run folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(folder: Path, fvl_here: Run, words: list[str], said: str) -> None:
    done = fvl_here(folder, "export", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in (folder / "models").iterdir()) == ["one", "parts"]


def test_a_broken_model_leaves_nothing(folder: Path, fvl_here: Run) -> None:
    broken = folder / "broken"
    broken.mkdir()
    for file in (folder / "models" / "one").iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:-1000] if file.suffix == ".safetensors" else content)
    done = fvl_here(folder, "export", "broken", "models/two")
    assert done.returncode == 2
    assert "broken/model.safetensors is not a readable safetensors file" in done.stderr
    assert sorted(path.name for path in (folder / "models").iterdir()) == ["one", "parts"]
