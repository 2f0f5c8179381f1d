"""Commands in pages, help, messages, notebooks and experiment files: any shell takes them, their overrides are right.

zsh, a Mac's shell, takes [ ] * ? { } outside quotes for a pattern, and refuses a command whose pattern matches nothing.
"""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.loading import load_config, read_config
from fvl_lightning.core.experiment import ExperimentConfig

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "datamodules", "benchmarks", "notebooks")
PAGES = [path for folder in FOLDERS for path in sorted(ROOT.glob(f"{folder}/*.md"))]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
EXPERIMENTS = sorted(ROOT.glob("experiments/**/*.yaml"))
SOURCES = [path for package in ("fvl_lightning", "datamodules") for path in sorted((ROOT / package).rglob("*.py"))]
QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|\\.|(?:^|\s)#.*")
LOADED = ("train", "launch", "show", "doctor", "compare")
"""Verbs whose first word is a file, followed by overrides."""


def of_page(path: Path) -> Iterator[str]:
    """Yields the commands of a page, and the overrides in its running text."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    yield from (line.strip().removeprefix("$ ") for line in text.splitlines() if re.match(r"\s*(\$ )?fvl ", line))
    yield from re.findall(r"`(fvl [^`]*)`", text)
    yield from re.findall(r"`([\w.]+=[^`]*)`", text)


def of_notebook(path: Path) -> Iterator[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    lines = (line for cell in cells for line in "".join(cell["source"]).splitlines())
    yield from (line[1:] for line in lines if line.startswith(("!fvl ", "%fvl ")))


def of_experiment(path: Path) -> Iterator[str]:
    yield from re.findall(r"^#\s+(fvl .*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def of_source(path: Path) -> Iterator[str]:
    """Yields the commands in help texts, messages and other strings; what a message fills in is `x`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node] if isinstance(node, ast.Constant) else []
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in parts)
        yield from re.findall(r"`(fvl [^`]*)`", text)
        yield from re.findall(r"(?<![\w\"'`\[])[a-z_]+(?:\.[a-z_]+)+=\[[^\]]*\]", text)


def commands() -> list[str]:
    """Every command, once."""
    found: dict[str, None] = {}
    readers = ((PAGES, of_page), (NOTEBOOKS, of_notebook), (EXPERIMENTS, of_experiment), (SOURCES, of_source))
    for paths, of_path in readers:
        for path in paths:
            found |= dict.fromkeys(" ".join(command.split()) for command in of_path(path))
    return list(found)


COMMANDS = commands()


def test_they_are_found_everywhere() -> None:
    assert len(COMMANDS) > 150
    assert any("{000000..000009}" in command for command in COMMANDS), "the help of fvl shards"
    assert "fvl train experiments/florence_vl/3b/pretrain.yaml recipe=released" in COMMANDS


def test_no_command_has_a_pattern_outside_quotes() -> None:
    assert not [command for command in COMMANDS if re.search(r"[\[*?{]", QUOTED.sub("", command))]


def is_loaded(words: list[str]) -> bool:
    """Whether a command names a file of the repository to load; a plugin of a page is not here."""
    return len(words) > 2 and words[1] in LOADED and (ROOT / words[2]).is_file() and "plugins" not in " ".join(words)


def overrides(words: list[str]) -> list[str]:
    """The key=value words: those before the options, and after options without a value."""
    return [word for word in words if re.match(r"[\w.]+=", word) and not word.startswith("--")]


def filled_in(command: str) -> str:
    """Returns a command of a loop with a number in place of each shell variable."""
    return re.sub(r"\$\w+", "0", command)


READ = [words for command in COMMANDS if is_loaded(words := shlex.split(filled_in(command), comments=True))]


@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_their_overrides_are_right(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    if words[1] == "compare":
        load_config(ComparisonConfig, Path(words[2]), overrides(words[3:]))
    else:
        read_config(ExperimentConfig, Path(words[2]), overrides(words[3:]))
