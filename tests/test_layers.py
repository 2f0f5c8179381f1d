"""The layers of docs/architecture.md, read off the import statements, and the rules of style that a machine can keep.

Imports by name (importlib, as in the registry's look-up of components) are not import statements and are not seen.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KIT = "fvl_lightning"
PACKAGES = (KIT, "datamodules")

LAYERS = {
    "__init__": -1,  # fvl_lightning/__init__.py is imported before everything else, so it may import nothing
    "core": 0,
    "encoders": 1,
    "fusions": 1,
    "projectors": 1,
    "language_models": 1,
    "tracking": 1,
    "datamodules": 1,
    "modeling": 2,
    "training": 3,
    "stages": 4,
    "profiling": 4,
    "launchers": 4,
    "runs": 5,
    "inference": 6,
    "doctor": 6,
    "evaluation": 7,
    "serving": 7,
    "comparison": 8,
    "cli": 9,
    "__main__": 10,
}
"""Each folder (or file directly in fvl_lightning/) and its layer; a folder imports itself and layers below its own."""

ALLOWED = frozenset({("stages", "training")})
"""Pairs (importer, imported) of one layer that are allowed all the same; empty as long as it can be."""

MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 55


def sources(root: Path) -> list[Path]:
    """The Python files the rules hold for."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def folder_of(module: str) -> str | None:
    """The key of LAYERS a dotted module belongs to; None where it is not this project's."""
    parts = module.split(".")
    if parts[0] != KIT:
        return parts[0] if parts[0] in PACKAGES else None
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import statement, wherever it stands; relative ones resolved against `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ancestors = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*ancestors, *([node.module] if node.module else [])])
            # `from fvl_lightning import core` names its folder behind the import, `... import __version__` names none.
            behind = [f"{KIT}.{alias.name}" if alias.name in LAYERS else KIT for alias in node.names]
            yield from ((node.lineno, name) for name in (behind if module == KIT else [module]))


def layer_violations(root: Path) -> list[str]:
    """One sentence per import that the layers forbid."""
    found = []
    for path in sources(root):
        relative = path.relative_to(root)
        package = ".".join(relative.parent.parts)
        own = folder_of(".".join(relative.with_suffix("").parts))
        assert own is not None
        if own not in LAYERS:
            found.append(f"{relative}: '{own}' has no layer in tests/test_layers.py")
            continue
        for line, module in imported_modules(ast.parse(path.read_text(encoding="utf-8")), package):
            other = folder_of(module)
            if other is None or other == own or (own, other) in ALLOWED:
                continue
            if other not in LAYERS:
                found.append(f"{relative}:{line}: imports {module}, which has no layer in tests/test_layers.py")
            elif LAYERS[other] >= LAYERS[own]:
                found.append(f"{relative}:{line}: layer {LAYERS[own]} imports {module} of layer {LAYERS[other]}")
    return found


def style_violations(root: Path) -> list[str]:
    """One sentence per print, bare except, and file or function that is too long."""
    found = []
    for path in sources(root):
        text, relative = path.read_text(encoding="utf-8"), path.relative_to(root)
        if len(text.splitlines()) > MAX_FILE_LINES:
            found.append(f"{relative}: {len(text.splitlines())} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                found.append(f"{relative}:{node.lineno}: print")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{relative}:{node.lineno}: bare except")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    size = f"{length} lines, at most {MAX_FUNCTION_LINES}"
                    found.append(f"{relative}:{node.lineno}: {node.name} has {size}")
    return found


def write(root: Path, path: str, text: str) -> None:
    """A made-up source file under `root`."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def test_the_tree_keeps_its_layers() -> None:
    violations = layer_violations(ROOT)
    assert not violations, "\n".join(["", *violations])


def test_the_tree_keeps_its_style() -> None:
    violations = style_violations(ROOT)
    assert not violations, "\n".join(["", *violations])


def test_every_file_is_looked_at() -> None:
    seen = {path.relative_to(ROOT).as_posix() for path in sources(ROOT)}
    assert {"fvl_lightning/core/config/loading.py", "fvl_lightning/fusions/gated.py", "datamodules/__init__.py"} <= seen


def test_allowed_pairs_are_of_one_layer() -> None:
    assert all(LAYERS[one] == LAYERS[other] for one, other in ALLOWED)


FORBIDDEN = [
    ("fvl_lightning/core/a.py", "import torch\nimport fvl_lightning.fusions.gated", "layer 0 imports"),
    ("fvl_lightning/core/a.py", "from fvl_lightning.modeling import build", "layer 0 imports"),
    ("fvl_lightning/core/a.py", "def f():\n    from fvl_lightning.cli.main import main", "layer 0 imports"),
    ("fvl_lightning/fusions/a.py", "from fvl_lightning.encoders.base import Encoder", "layer 1 imports"),
    ("fvl_lightning/projectors/a.py", "from ..fusions.base import Fusion", "layer 1 imports"),
    ("fvl_lightning/projectors/a.py", "from .. import fusions", "layer 1 imports"),
    ("fvl_lightning/encoders/a.py", "from fvl_lightning import modeling", "layer 1 imports"),
    ("fvl_lightning/encoders/a.py", "from datamodules.storage.index import Index", "layer 1 imports"),
    ("datamodules/demo/a.py", "from fvl_lightning.encoders.base import Encoder", "layer 1 imports"),
    ("datamodules/a.py", "import fvl_lightning.modeling.build as build", "layer 1 imports"),
    ("fvl_lightning/modeling/a.py", "from fvl_lightning.stages import base", "layer 2 imports"),
    ("fvl_lightning/tracking/a.py", "from fvl_lightning.evaluation import answers", "layer 3 imports"),
    ("fvl_lightning/stages/a.py", "from fvl_lightning.cli import main", "layer 3 imports"),
    ("fvl_lightning/stages/a.py", "if TYPE_CHECKING:\n    import fvl_lightning.cli.main", "layer 3 imports"),
    ("fvl_lightning/__init__.py", "from fvl_lightning.core import errors", "layer -1 imports"),
    ("fvl_lightning/helpers/a.py", "import os", "'helpers' has no layer"),
    ("fvl_lightning/cli/a.py", "import fvl_lightning.helpers", "which has no layer"),
]


@pytest.mark.parametrize(("path", "text", "sentence"), FORBIDDEN)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, text: str, sentence: str) -> None:
    write(tmp_path, path, text)
    found = layer_violations(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(path)
    assert sentence in found[0]


ALL_RIGHT = [
    ("fvl_lightning/core/a.py", "import os\nfrom fvl_lightning.core.errors import ConfigError\nfrom . import registry"),
    ("fvl_lightning/fusions/a.py", "from fvl_lightning.fusions.base import Fusion\nimport fvl_lightning.core.types"),
    ("fvl_lightning/modeling/a.py", "from fvl_lightning.encoders.base import Encoder\nimport datamodules"),
    ("fvl_lightning/cli/a.py", "from fvl_lightning import stages\nfrom fvl_lightning.tracking.store import open"),
    ("fvl_lightning/__main__.py", "from fvl_lightning.cli.main import main"),
    ("datamodules/a.py", "from datamodules.storage.index import Index\nimport fvl_lightning.core.types"),
    ("datamodules/a.py", "import fvl_lightning\nfrom fvl_lightning import __version__"),
    ("datamodules/demo/a.py", "from ..index import Index\nfrom .b import c"),
]


@pytest.mark.parametrize(("path", "text"), ALL_RIGHT)
def test_an_import_from_below_is_left_alone(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, path, text)
    assert layer_violations(tmp_path) == []


def test_an_allowed_pair_is_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ALLOWED", frozenset({("stages", "training")}))
    write(tmp_path, "fvl_lightning/stages/a.py", "import fvl_lightning.training.optimizer")
    write(tmp_path, "fvl_lightning/training/a.py", "import fvl_lightning.stages.base")
    assert [sentence.split(":")[0] for sentence in layer_violations(tmp_path)] == ["fvl_lightning/training/a.py"]


BAD_STYLE = [
    ("def f():\n    print('x')\n", "a.py:2: print"),
    ("try:\n    pass\nexcept:\n    pass\n", "a.py:3: bare except"),
    ("x = 1\n" * (MAX_FILE_LINES + 1), f"{MAX_FILE_LINES + 1} lines, at most {MAX_FILE_LINES}"),
    ("def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES, f"f has {MAX_FUNCTION_LINES + 1} lines"),
    ("class A:\n    async def g(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES, "a.py:2: g has"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_STYLE, ids=[sentence for _, sentence in BAD_STYLE])
@pytest.mark.parametrize("package", ["fvl_lightning/core", "datamodules"])
def test_bad_style_is_found(tmp_path: Path, package: str, text: str, sentence: str) -> None:
    write(tmp_path, f"{package}/a.py", text)
    found = style_violations(tmp_path)
    assert len(found) == 1
    assert sentence in found[0]


def test_good_style_is_left_alone(tmp_path: Path) -> None:
    lines = "x = 1\n" * (MAX_FILE_LINES - MAX_FUNCTION_LINES)
    function = "def f():\n" + "    console.print()\n" * (MAX_FUNCTION_LINES - 1)
    write(tmp_path, "fvl_lightning/core/a.py", lines + function)
    assert style_violations(tmp_path) == []
