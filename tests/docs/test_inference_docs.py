"""Every command and every line of Python in docs/inference.md, on a tiny model in the place of the demo's."""

import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT, TINY_DATA, Run

TEXT = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the document speaks of: a run, pictures, questions, and an experiment with data (a tiny one)."""
    folder = tmp_path_factory.mktemp("inference")
    (folder / "runs" / "demo" / "gated").mkdir(parents=True)
    (folder / "runs" / "demo" / "gated" / "finetune").symlink_to(asked / "runs" / "tiny")
    (folder / "pictures").mkdir()
    for number, colour in ((1, "red"), (2, "blue")):
        Image.new("RGB", (40, 30), colour).save(folder / "pictures" / f"{number}.png")
    (folder / "questions.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    for name, place in (("docs", ROOT / "docs"), ("data", asked / "data")):
        (folder / name).symlink_to(place)
    (folder / "experiments" / "demo").mkdir(parents=True)
    fields = ", ".join(word.removeprefix("data.").replace("=", ": ") for word in TINY_DATA)
    (folder / "experiments" / "demo" / "finetune.yaml").write_text(
        f"base: {ROOT / 'experiments' / 'demo' / 'finetune.yaml'}\ndata: {{{fields}}}\n", encoding="utf-8"
    )
    return folder


def test_the_document_shows_every_command() -> None:
    assert {shlex.split(line.rpartition("| ")[2])[1] for line in COMMANDS} == {"generate", "chat", "evaluate"}
    assert "    fvl serve " in TEXT


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_runs(line: str, folder: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    typed, _, command = line.rpartition(" | ")
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{word}\n" for word in shlex.split(typed)[1:])))
    done = fvl_here(folder, *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "--output" in command:
        assert ", 0 without an answer: " in done.stdout


def test_the_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "docs/inference.md", "exec"), names)
    assert len(names["texts"]) == 2
    assert names["text"] == names["texts"][0]
    assert set(names["shares"]) == {"davit", "caption", "ocr", "grounding"}
    assert capsys.readouterr().out.strip()
