"""A model with a fusion of one's own is exported with the name and the hash of its plugin, and used elsewhere."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from fvl_lightning.api.model import load_model
from fvl_lightning.api.plugins import import_plugins
from fvl_lightning.cli.options import with_own_plugins
from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.plugin_record import copy_plugins, read_record
from tests.conftest import TINY, Run, furnish
from tests.docs.readme import plugin

ASKED = ("--image", "picture.png", "--prompt", "what?", "--max-tokens", "1")
MISSING = "the plugin weighted.py registers fusion 'weighted', and it is not imported"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A run with the README's fusion, its export, and an export with the code."""
    folder = furnish(tmp_path_factory.mktemp("plugins"), tiny_data)
    (folder / "lab").mkdir()
    (folder / "lab" / "weighted.py").write_text(plugin()[1], encoding="utf-8")
    Image.new("RGB", (64, 64), "red").save(folder / "picture.png")
    words = ("experiments/demo/finetune.yaml", *TINY, "trainer.max_steps=1", "name=own", "fusion=weighted")
    for command in (
        ("train", *words, "plugins=lab/weighted.py"),
        ("export", "runs/own", "models/named"),
        ("export", "runs/own", "models/given", "--plugins"),
    ):
        done = fvl_here(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets the components that a test registers."""
    registry.names("fusion")
    monkeypatch.setattr(registry, "_components", {slot: dict(known) for slot, known in registry._components.items()})


def test_the_folder_names_the_plugin_and_has_its_code_only_where_asked(folder: Path) -> None:
    code = hashlib.sha256(hashlib.sha256((folder / "lab" / "weighted.py").read_bytes()).digest()).hexdigest()[:16]
    entry = {"slot": "fusion", "component": "weighted", "plugin": "weighted.py", "code": code}
    for model in ("runs/own/model", "models/named", "models/given"):
        assert json.loads((folder / model / "config.json").read_text(encoding="utf-8"))["plugins"] == [entry]
    assert not (folder / "models" / "named" / "weighted.py").exists()
    assert (folder / "models" / "given" / "weighted.py").read_text(encoding="utf-8") == plugin()[1]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_without_the_plugin_one_sentence_names_it(folder: Path, fvl_here: Run, command: str) -> None:
    done = fvl_here(folder, command, "models/named", *(ASKED if command == "generate" else ()))
    assert done.returncode == 2
    assert f"error: fusion in the model's configuration: {MISSING}; add `--plugins weighted.py`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_plugin_is_given_or_taken_from_the_folder(folder: Path, fvl_here: Run) -> None:
    for model, *words in (
        ("models/named", "--plugins", "lab/weighted.py"),
        ("models/given", "--plugins"),
        ("models/given", "--plugins", "own"),
        ("runs/own", "--plugins"),
    ):
        done = fvl_here(folder, "generate", model, *ASKED, *words)
        assert (done.returncode, done.stderr) == (0, ""), (model, words)
    done = fvl_here(folder, "generate", "models/named", *ASKED, "--plugins")
    assert done.returncode == 2
    assert "--plugins own: models/named has no copy of weighted.py; write `--plugins PATH/weighted.py`" in done.stderr


def test_other_code_is_a_warning(folder: Path, fvl_here: Run) -> None:
    (folder / "weighted.py").write_text(plugin()[1] + "\n# changed\n", encoding="utf-8")
    done = fvl_here(folder, "generate", "models/named", *ASKED, "--plugins", "weighted.py")
    assert done.returncode == 0, done.stderr
    assert "the code of weighted.py is not that with which the model was saved (" in done.stderr
    assert len(set(done.stderr.splitlines())) == 1


@pytest.mark.usefixtures("forgotten")
def test_transformers_and_python_take_the_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for load in (FlorenceVLForConditionalGeneration.from_pretrained, load_model):
        with pytest.raises(ConfigError, match=r"or in Python import_plugins\('weighted.py'\) before the model"):
            load("models/named")
    code = Path("models/named/README.md").read_text(encoding="utf-8").split("```python\n")[1]
    assert 'from fvl_lightning import import_plugins\n\nimport_plugins("weighted.py")\n' in code
    import_plugins(Path("lab/weighted.py"))
    model = FlorenceVLForConditionalGeneration.from_pretrained("models/named")
    assert type(model.fusion).__name__ == "WeightedFusion"
    assert copy_plugins(model.config.plugins, folder / "models") == ["weighted.py"]


@pytest.mark.usefixtures("forgotten")
def test_load_model_imports_plugins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load_model("models/given", plugins=["own"]).loaded.model.config.fusion["name"] == "weighted"


def test_a_model_without_plugins_names_none(folder: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: plugins is not a list of slot, component, plugin, code"):
        read_record([{"slot": "fusion"}], "config.json")
    assert read_record(None, "config.json") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a", "--plugins"], ["a", "--plugins", "own"]),
        (["--plugins", "--image", "x"], ["--plugins", "own", "--image", "x"]),
        (["--plugins", "a.py", "--plugins"], ["--plugins", "a.py", "--plugins", "own"]),
        (["--plugins=a.py", "b"], ["--plugins=a.py", "b"]),
    ],
)
def test_an_option_without_a_value_means_the_models_own(arguments: list[str], expected: list[str]) -> None:
    assert with_own_plugins(arguments) == expected
