"""Code that a model's folder names is never run, and nobody is asked whether it may."""

import ast
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fvl_lightning.core.errors import UserError
from fvl_lightning.encoders.florence2_files import read_tokenizer
from fvl_lightning.language_models.causal import CausalLanguageModel, load_tokenizer
from fvl_lightning.modeling.processing.conversation_encoder import open_conversation_encoder
from tests.conftest import ROOT, Run
from tests.tiny_models import tiny_tokenizer

LOADERS = ("from_pretrained", "from_config")
SENTENCE = "error: "


def calls_without_refusal(source: str) -> Iterator[int]:
    """The lines that load with a class of a library and do not refuse code from outside."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LOADERS):
            continue
        inherited = isinstance(node.func.value, ast.Call) and ast.unparse(node.func.value) == "super()"
        refused = any(
            word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
            for word in node.keywords
        )
        if not (inherited or refused):
            yield node.lineno


def test_every_load_refuses_code_of_the_folder() -> None:
    assert list(calls_without_refusal("AutoModel.from_pretrained(x)")) == [1]
    files = [*(ROOT / "fvl_lightning").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")]
    found = {str(file): list(calls_without_refusal(file.read_text(encoding="utf-8"))) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A standard input in which somebody has typed `y` to every question."""
    answers = io.StringIO("y\n" * 20)
    monkeypatch.setattr(sys, "stdin", answers)
    return answers


MINE = "raise SystemExit(open('ran', 'w').write('x'))\n"
MAPS = {
    "tokenizer_config.json": {
        "tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}
    },
    "config.json": {"auto_map": {"AutoConfig": "mine.Mine", "AutoModelForImageTextToText": "mine.Mine"}},
    "processor_config.json": {"processor_class": "Mine", "auto_map": {"AutoProcessor": "mine.Mine"}},
    "preprocessor_config.json": {
        "image_processor_type": "Mine", "auto_map": {"AutoImageProcessor": "mine.Mine", "AutoProcessor": "mine.Mine"}
    },
    "audio_tokenizer_config.json": {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "."},
}  # fmt: skip


@pytest.mark.parametrize("name", [*MAPS, "custom_generate", "text_config"])
def test_a_model_folder_with_code_runs_none(name: str, asked: Path, typed: io.StringIO, fvl_here: Run) -> None:
    folder = asked / f"strange-{name}"
    shutil.copytree(asked / "runs/tiny/model", folder)
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    if name == "custom_generate":
        (folder / name).mkdir()
        (folder / name / "generate.py").write_text(MINE, encoding="utf-8")
    elif name == "text_config":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["text_config"] |= {"auto_map": {"AutoModelForCausalLM": "mine.Mine"}, "_name_or_path": str(folder)}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    else:
        before = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps(before | MAPS[name]), encoding="utf-8")
    image = next((asked / "data").rglob("*.png"), None) or next((ROOT / "docs").rglob("*.png"))
    words = ("generate", str(folder), "--image", str(image), "--prompt", "what is it?", "--max-tokens", "1")
    done = fvl_here(asked, *words)
    assert done.returncode in (0, 2), done.stderr
    assert done.returncode == 0 or done.stderr.startswith(SENTENCE)
    assert not (asked / "ran").exists()
    assert typed.tell() == 0, "a question was asked"


def test_a_tokenizer_with_code_runs_none_wherever_it_is_named(tmp_path: Path, typed: io.StringIO) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | MAPS["tokenizer_config.json"]), encoding="utf-8")
    (tmp_path / "tokenizer" / "mine.py").write_text(MINE, encoding="utf-8")
    place = str(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "florence2"}', encoding="utf-8")
    for load in (
        lambda: open_conversation_encoder(place, 1),
        lambda: load_tokenizer(CausalLanguageModel.Config(tokenizer=place)),
        lambda: read_tokenizer(place, None),
    ):
        with contextlib.suppress(UserError):  # what transformers has under another name is read without the code
            load()
    assert typed.tell() == 0, "a question was asked"
    assert not Path("ran").exists()
