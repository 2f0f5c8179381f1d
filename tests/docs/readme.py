"""Commands and files that pages show, taken out of them to be run."""

import re
import shlex
from pathlib import Path

from tests.conftest import ROOT

README = ROOT / "README.md"
NOT_OURS = ("make", "git", "cd", "source", "python", "python3", "pip", "conda", ".venv/bin/pip", ".venv/bin/python")
"""First words of lines that set up a clone rather than use it; make's own targets are tested with the Makefile."""


def blocks(language: str, page: Path = README) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path = README) -> list[list[str]]:
    """Every command line of the bash blocks as words, in order, without those of NOT_OURS and `make demo`'s own run."""
    lines = [line for block in blocks("bash", page) for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] not in NOT_OURS and line != ["fvl", "demo"]]


def files() -> dict[str, str]:
    """{name: text} of the blocks that begin with the name of a file, such as `# weighted.py`."""
    written = [*blocks("python"), *blocks("yaml")]
    named = [(re.match(r"# (\w+\.(?:py|yaml))\n", block), block) for block in written]
    return {match[1]: block for match, block in named if match}


def plugin() -> tuple[str, str]:
    """Name and text of the file that registers a fusion."""
    (found,) = [(name, text) for name, text in files().items() if '@register("fusion"' in text]
    return found


def write_files(folder: Path) -> None:
    """Puts the README's files into a working folder."""
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")
