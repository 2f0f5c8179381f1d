"""What a process imports: help, lists and mistakes need no library that takes seconds."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

HEAVY = (
    "torch", "transformers", "lightning", "mlflow", "matplotlib", "peft", "gradio", "scipy", "sqlalchemy", "pyarrow"
)  # fmt: skip
FINETUNE, COMPARISON = "experiments/demo/finetune.yaml", "experiments/demo/comparison.yaml"
LISTED = f"""
import json, sys
{{}}
print("\\n" + json.dumps([code, [name for name in {HEAVY} if name in sys.modules]]))
"""
COMMAND = "from fvl_lightning.cli.main import run\ncode = run(sys.argv[1:])"
PLUGIN = """
from dataclasses import dataclass

import torch

from fvl_lightning.core.registry import register
from fvl_lightning.fusions.base import Fusion


@register("fusion", "mine")
class Mine(Fusion):
    @dataclass
    class Config:
        size: int = 1
"""


def imported(program: str, *words: str) -> tuple[int, str, str]:
    """Exit code and output of a fresh process that imported none of HEAVY."""
    command = [sys.executable, "-c", LISTED.format(program), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    *lines, last = done.stdout.splitlines()
    code, heavy = json.loads(last)
    assert heavy == [], words
    return code, "\n".join(lines), done.stderr


def test_the_package_has_no_effects() -> None:
    imported(
        "before = set(sys.modules)\nimport fvl_lightning\n"
        "new = set(sys.modules) - before\ncode = len([name for name in new if name.startswith('fvl_lightning.')])\n"
        "assert code == 0"
    )


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("--help", "--help"),
        ("--version", "torch "),
        ("describe trainer", "max_steps"),
        ("compare --help", "--retry-failed"),
        ("list", "token_concat"),
        ("describe data shards", "cache_gigabytes"),
    ],
)
def test_what_is_shown_without_libraries(words: str, shown: str) -> None:
    code, output, _ = imported(COMMAND, *words.split())
    assert code == 0
    assert shown in output


MISTAKES = {
    "explain runs/a --only gatess": "--only: unknown section 'gatess', allowed: ",
    f"train {FINETUNE} fusion=gatted": "unknown fusion 'gatted'.*did you mean 'gated'",
    f"show {FINETUNE} fusion.dimm=3": "unknown key 'dimm'",
    f"launch {FINETUNE} optimizer.learning_rate=-1": "must be above 0",
    f"train {FINETUNE} trainer.max_steps=many": "expected a whole number",
    f"train {FINETUNE} steps": "is not key=value",
    f"compare {COMPARISON} set=[fusion=gatted]": "unknown fusion 'gatted'",
    "shards build llava_json": "source.file.* is needed",
    "train nowhere.yaml": "no configuration file",
    "train --resum": "No such option",
    f"train {FINETUNE} --fusion attention": "without dashes: fusion=attention",
    "describe fusion gatted": "unknown fusion 'gatted'.*did you mean 'gated'",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_found_without_libraries(words: str) -> None:
    code, _, error = imported(COMMAND, *words.split())
    assert code == 2
    assert re.search(MISTAKES[words], error), error
    assert len(error.splitlines()) == 1


def test_mistakes_in_a_yaml_file_and_in_the_fields_of_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN, encoding="utf-8")
    experiment = tmp_path / "a.yaml"
    for text, sentence in (
        ("data: {packing: best_fit, group_by_length: true}", "group_by_length cannot be combined"),
        ("plugins: [mine.py]\nfusion: {name: mine, size: large}", "fusion.size in .*a.yaml: expected a whole number"),
    ):
        experiment.write_text(f"base: {ROOT / FINETUNE}\n{text}\n", encoding="utf-8")
        code, _, error = imported(COMMAND, "train", str(experiment))
        assert code == 2
        assert re.search(sentence, error), error


def test_components_of_a_plugin_are_described_from_its_text(tmp_path: Path) -> None:
    text = PLUGIN.replace("    @dataclass", '    """Mine."""\n\n    @dataclass')
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    code, output, error = imported(COMMAND, "describe", "fusion", "mine", "--plugins", str(tmp_path / "mine.py"))
    assert code == 0, error
    assert "size" in output


def test_the_imports_of_help_are_few() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fvl_lightning", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    packages = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in packages
    assert not packages & {*HEAVY, "numpy", "PIL", "fsspec", "tokenizers", "huggingface_hub"}
