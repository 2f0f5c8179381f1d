"""The layers of docs/architecture.md, read off the import statements of the two packages.

`importlib.import_module("a.literal")` counts as an import. A name that is computed, as in the registry's look-up of
components, cannot be seen here.
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
    "auto": 3,
    "core": 0,
    "encoders": 1,
    "fusions": 1,
    "projectors": 1,
    "language_models": 1,
    "tracking": 1,
    "reporting": 1,
    "datamodules": 1,
    "modeling": 2,
    "training": 3,
    "stages": 4,
    "profiling": 4,
    "launchers": 4,
    "runs": 5,
    "inference": 6,
    "doctor": 6,
    "feature_analysis": 6,
    "evaluation": 7,
    "serving": 7,
    "comparison": 8,
    "attribution": 9,
    "api": 10,
    "cli": 10,
    "lmms_eval": 10,
    "__main__": 11,
}
"""Each folder (or file directly in fvl_lightning/) and its layer; a folder imports itself and layers below its own."""

INNER_LAYERS = {
    "fvl_lightning.training": {
        "stage_interface": 0,
        "step_clock": 0,
        "fault_tolerance": 0,
        "checkpointing": 1,
        "distributed": 2,
        "callbacks": 3,
    },
    "datamodules": {
        "images": 0,
        "storage": 1,
        "hub": 1,
        "sources": 2,
        "encoding": 2,
        "building": 3,
        "batching": 3,
        "inspection": 4,
        "streaming": 4,
        "base": 5,
        "detect_question_form": 6,
        "shards": 6,
        "webdataset": 7,
        "demo": 6,
    },
}
"""The layers inside two folders, by the same rule. Files of training/ that are not named stand above those that are."""


def sources(root: Path) -> list[Path]:
    """The Python files the rules hold for."""
    return sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))


def folder_of(module: str) -> str | None:
    """The key of LAYERS that a dotted module belongs to; None where it is not this project's."""
    parts = module.split(".")
    if parts[0] != KIT:
        return parts[0] if parts[0] in PACKAGES else None
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, wherever it stands; relative ones are resolved against `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ancestors = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*ancestors, *([node.module] if node.module else [])])
            # `from fvl_lightning import core` names a folder behind the import, as does `from datamodules import base`.
            behind = module == KIT or module in INNER_LAYERS
            yield from ((node.lineno, f"{module}.{alias.name}" if behind else module) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [name.value for name in node.args[:1] if isinstance(name, ast.Constant)]
            yield from ((node.lineno, name) for name in names if isinstance(name, str))


def inner_layer(module: str) -> tuple[str, float] | None:
    """(folder of INNER_LAYERS, layer in it) of a dotted module; None outside of these folders."""
    for folder, rooms in INNER_LAYERS.items():
        if module.startswith(f"{folder}."):
            room = module.removeprefix(f"{folder}.").split(".")[0]
            return folder, rooms.get(room, max(rooms.values()) + 1)
    return None


def is_for_type_checkers(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def layer_violations(root: Path) -> list[str]:
    """One sentence per import that the layers forbid."""
    found = []
    for path in sources(root):
        relative = path.relative_to(root)
        here = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        own = folder_of(here)
        assert own is not None
        if own not in LAYERS:
            found.append(f"{relative}: '{own}' has no layer in tests/test_layers.py")
            continue
        package = ".".join(relative.parent.parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if own == "__init__":  # its public names are loaded on first use, and only type checkers see their imports
            tree.body = [node for node in tree.body if not is_for_type_checkers(node)]
        for line, module in dict.fromkeys(imported_modules(tree, package)):
            if why := _objection(here, own, module):
                found.append(f"{relative}:{line}: {why}")
    return found


def _objection(here: str, own: str, module: str) -> str | None:
    """Why `here`, a module of the folder `own`, may not import `module`."""
    other = folder_of(module)
    if other is None or module == f"{KIT}.__version__":
        return None
    if other not in LAYERS:
        return f"imports {module}, which has no layer in tests/test_layers.py"
    if other != own:
        return (
            f"layer {LAYERS[own]} imports {module} of layer {LAYERS[other]}" if LAYERS[other] >= LAYERS[own] else None
        )
    mine, its = inner_layer(here), inner_layer(module)
    if mine is None or its is None or mine[0] != its[0]:
        return None
    room, other_room = (name.removeprefix(f"{mine[0]}.").split(".")[0] for name in (here, module))
    rest = room not in INNER_LAYERS[mine[0]] and other_room not in INNER_LAYERS[mine[0]]
    if room == other_room or rest or its[1] < mine[1]:
        return None
    return f"{room} imports {module}, which is not below it in {mine[0]}"


def write(root: Path, path: str, text: str) -> None:
    """Writes a made-up source file under `root`."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def test_the_tree_keeps_its_layers() -> None:
    violations = layer_violations(ROOT)
    assert not violations, "\n".join(["", *violations])


def test_every_file_is_looked_at() -> None:
    seen = {path.relative_to(ROOT).as_posix() for path in sources(ROOT)}
    assert {"fvl_lightning/core/config/loading.py", "fvl_lightning/fusions/gated.py", "datamodules/__init__.py"} <= seen


def test_every_layer_is_a_folder_or_a_file() -> None:
    there = {path.stem for path in (ROOT / KIT).iterdir()} | {"datamodules"}
    assert set(LAYERS) <= there


FORBIDDEN = [
    ("fvl_lightning/core/a.py", "import torch\nimport fvl_lightning.fusions.gated", "layer 0 imports"),
    ("fvl_lightning/core/a.py", "from fvl_lightning.modeling import build", "layer 0 imports"),
    ("fvl_lightning/core/a.py", "def f():\n    from fvl_lightning.cli.main import main", "layer 0 imports"),
    (
        "fvl_lightning/core/a.py",
        "import importlib\nx = importlib.import_module('fvl_lightning.runs')",
        "layer 0 imports",
    ),
    ("fvl_lightning/fusions/a.py", "from fvl_lightning.encoders.base import Encoder", "layer 1 imports"),
    ("fvl_lightning/projectors/a.py", "from ..fusions.base import Fusion", "layer 1 imports"),
    ("fvl_lightning/projectors/a.py", "from .. import fusions", "layer 1 imports"),
    ("fvl_lightning/encoders/a.py", "from fvl_lightning import modeling", "layer 1 imports"),
    ("fvl_lightning/encoders/a.py", "from datamodules.storage.index import Index", "layer 1 imports"),
    ("fvl_lightning/tracking/a.py", "from fvl_lightning.evaluation import answers", "layer 1 imports"),
    ("datamodules/demo/a.py", "from fvl_lightning.encoders.base import Encoder", "layer 1 imports"),
    ("datamodules/base.py", "import fvl_lightning.modeling.build as build", "layer 1 imports"),
    ("fvl_lightning/modeling/a.py", "from fvl_lightning.stages import base", "layer 2 imports"),
    ("fvl_lightning/training/a.py", "from fvl_lightning.stages.base import Stage", "layer 3 imports"),
    ("fvl_lightning/stages/a.py", "from fvl_lightning.cli import main", "layer 4 imports"),
    ("fvl_lightning/stages/a.py", "if TYPE_CHECKING:\n    import fvl_lightning.cli.main", "layer 4 imports"),
    ("fvl_lightning/profiling/a.py", "import fvl_lightning.launchers.ranks", "layer 4 imports"),
    ("fvl_lightning/runs/a.py", "import fvl_lightning.comparison.plan", "layer 5 imports"),
    ("fvl_lightning/__init__.py", "from fvl_lightning.core import errors", "layer -1 imports"),
    ("fvl_lightning/helpers/a.py", "import os", "'helpers' has no layer"),
    ("fvl_lightning/cli/a.py", "import fvl_lightning.helpers", "which has no layer"),
    ("fvl_lightning/cli/a.py", "from fvl_lightning import load_model", "which has no layer"),
    ("fvl_lightning/training/checkpointing/a.py", "import fvl_lightning.training.distributed.fsdp", "not below it"),
    ("fvl_lightning/training/distributed/a.py", "from fvl_lightning.training import trainer", "not below it"),
    ("datamodules/storage/a.py", "from datamodules.encoding.views import View", "not below it"),
    ("datamodules/encoding/a.py", "from datamodules.inspection.preview import Preview", "not below it"),
    ("datamodules/base.py", "from datamodules import demo", "not below it"),
    ("datamodules/shards.py", "from datamodules.demo.levels import LEVELS", "not below it"),
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
    (
        "fvl_lightning/core/a.py",
        "import importlib\nx = importlib.import_module('torch')\ny = importlib.import_module(x)",
    ),
    ("fvl_lightning/fusions/a.py", "from fvl_lightning.fusions.base import Fusion\nimport fvl_lightning.core.types"),
    ("fvl_lightning/modeling/a.py", "from fvl_lightning.encoders.base import Encoder\nimport datamodules"),
    ("fvl_lightning/stages/a.py", "from fvl_lightning.training.optimizer import build_optimizer"),
    ("fvl_lightning/training/a.py", "from fvl_lightning.training.distributed import fsdp\nfrom . import trainer"),
    ("fvl_lightning/cli/a.py", "from fvl_lightning import stages\nfrom fvl_lightning.tracking.store import open"),
    ("fvl_lightning/__main__.py", "from fvl_lightning.cli.main import main"),
    ("datamodules/base.py", "from datamodules.storage.index import Index\nimport fvl_lightning.core.types"),
    ("datamodules/base.py", "import fvl_lightning\nfrom fvl_lightning import __version__"),
    ("datamodules/demo/a.py", "from ..storage.index import Index\nfrom .b import c\nfrom datamodules import base"),
]


@pytest.mark.parametrize(("path", "text"), ALL_RIGHT)
def test_an_import_from_below_is_left_alone(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, path, text)
    assert layer_violations(tmp_path) == []
