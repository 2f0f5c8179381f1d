"""docs/architecture.md: its drawing has every folder with its layer, and its numbers are those of the tree."""

import re
import statistics
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_layers import INNER_LAYERS, KIT, LAYERS, sources

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROUGHLY = 0.05
"""Numbers that every commit may move are stale when they are off by more than this share."""


def drawn() -> dict[str, int | None]:
    """{folder: layer, None below the first level} of the drawing, folders by their path from the root."""
    (drawing,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    folders: dict[str, int | None] = {}
    above = ""
    for line in drawing.splitlines():
        match = re.match(r"(?:(\d+) {1,2}|     )([\w/]+)/ +\S", line)
        assert match, line
        if match[1]:
            above = match[2] if match[2] == "datamodules" else f"{KIT}/{match[2]}"
        folders[above if match[1] else f"{above}/{match[2]}"] = int(match[1]) if match[1] else None
    return folders


def test_the_drawing_has_every_folder() -> None:
    there = {path.parent.relative_to(ROOT).as_posix() for path in sources(ROOT)} - {KIT}
    assert sorted(drawn()) == sorted(there)


def test_the_drawing_has_the_layers() -> None:
    layers = {folder.rsplit("/", 1)[-1]: layer for folder, layer in drawn().items() if layer is not None}
    assert layers == {name: layer for name, layer in LAYERS.items() if name in layers}
    assert list(layers.values()) == sorted(layers.values(), reverse=True)


@pytest.mark.parametrize("folder", INNER_LAYERS)
def test_layers_inside_a_folder_are_drawn_from_top_to_bottom(folder: str) -> None:
    inside = [path.rsplit("/", 1)[-1] for path in drawn() if path.startswith(folder.replace(".", "/") + "/")]
    layers = [INNER_LAYERS[folder][name] for name in inside]
    assert layers == sorted(layers, reverse=True)


def counted() -> dict[str, float]:
    """{row of the table: its number in the tree}."""
    files = sources(ROOT)
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    per_folder = Counter(path.parent for path in files if path.name != "__init__.py")
    return {
        "folders": len({path.parent for path in files}),
        "Python files": len(files),
        "median lines of a file": statistics.median(lines.values()),
        "lines of the longest file": max(lines.values()),
        "files in the fullest folder": max(per_folder.values()),
    }


def test_the_numbers_are_those_of_the_tree() -> None:
    shown = {name: float(number) for name, number in re.findall(r"^\| ([\w ]+) \| (\d+) \|$", PAGE, re.MULTILINE)}
    right = counted()
    assert shown.keys() == right.keys()
    stale = {name: number for name, number in right.items() if abs(shown[name] - number) > ROUGHLY * number}
    assert not stale, f"write the right numbers into docs/architecture.md: {stale}"


def test_the_walks_go_through_files_by_whole_path() -> None:
    walks = PAGE[PAGE.index("## A sample") : PAGE.index("## The rules")]
    files = re.findall(r"`([\w/]+\.py)`", walks)
    assert len(files) > 25
    assert not [file for file in files if not (Path(ROOT) / file).is_file()]
