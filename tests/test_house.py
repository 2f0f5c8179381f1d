"""The rules of docs/architecture.md that a machine can keep, apart from the layers (tests/test_layers.py).

Every rule is a function from the root of a tree to one sentence per breach; made-up files show that each can fail.
"""

import ast
import functools
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_layers import PACKAGES, ROOT, sources, write

MAX_FILE_LINES = 300
MAX_MEDIAN_LINES = 110
MAX_FUNCTION_LINES = 55
MAX_FILES_IN_A_FOLDER = 15
CLASSES_OF_THE_KIT = ("data", "encoder", "stage", "store", "run")
"""Parameters that hold an object of the project's own; `Any` would hide which."""
METRIC_NAMES = re.compile(r"accuracy/(macro|overall)|macro|overall")
PRIVATE_WORDS = re.compile(r"\b([Tt]old|[Tt]ells|[Ss]aid|[Rr]ehears\w+)\b|(?:^|[.!?]\s+)Of\s")
"""Words that stand for a term of the field: a message that is "told" is published, logged or raised."""
PRIVATE_NAMES = {"told", "said", "beside", "ours", "theirs", "mine"}
"""Names of variables that say nothing of what they hold."""
QUESTION_WORDS = ("What", "How", "Where", "Who", "Why", "Which", "When", "That", "Of")
"""First words of a docstring that leave it without subject and verb."""

Rule = Callable[[Path], list[str]]


@functools.cache
def _trees(root: Path) -> list[tuple[Path, str, ast.Module]]:
    """(path relative to the root, text, syntax tree) of every file of the packages."""
    texts = {path.relative_to(root): path.read_text(encoding="utf-8") for path in sources(root)}
    return [(path, text, ast.parse(text)) for path, text in texts.items()]


def style_violations(root: Path) -> list[str]:
    """One sentence per print, bare except, and file or function that is too long."""
    found = []
    for relative, text, tree in _trees(root):
        if len(text.splitlines()) > MAX_FILE_LINES:
            found.append(f"{relative}: {len(text.splitlines())} lines, at most {MAX_FILE_LINES}")
        for node in ast.walk(tree):
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


def folder_violations(root: Path) -> list[str]:
    """One sentence per folder with too many files directly in it; `__init__.py` is not counted."""
    files: dict[Path, int] = defaultdict(int)
    for path in sources(root):
        files[path.parent.relative_to(root)] += path.name != "__init__.py"
    limit = MAX_FILES_IN_A_FOLDER
    return [f"{folder}: {number} files, at most {limit}" for folder, number in files.items() if number > limit]


def init_violations(root: Path) -> list[str]:
    """One sentence per statement with an effect in an `__init__.py`.

    Allowed are a docstring, imports, constants, functions, and a block under `if TYPE_CHECKING`.
    """
    found = []
    for relative, _, tree in _trees(root):
        if relative.name == "__init__.py":
            effects = [node for node in tree.body if not _is_without_effect(node)]
            found += [f"{relative}:{node.lineno}: {ast.unparse(node).splitlines()[0]}" for node in effects]
    return found


def _is_without_effect(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return not any(isinstance(inner, ast.Call) for inner in ast.walk(node))
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef)


def cli_violations(root: Path) -> list[str]:
    """One sentence per class in `cli/`, and per import of `cli` from anywhere but `__main__.py`."""
    found = []
    for relative, _, tree in _trees(root):
        parts = relative.parts
        if parts[:2] == ("fvl_lightning", "cli"):
            found += [
                f"{relative}:{node.lineno}: class {node.name}" for node in tree.body if isinstance(node, ast.ClassDef)
            ]
    outside = [path for path in sources(root) if path.relative_to(root).parts[:2] != ("fvl_lightning", "cli")]
    others = [path for folder in ("benchmarks", "notebooks") for path in sorted((root / folder).glob("*.*"))]
    for path in [*outside, *others]:
        if path.name != "__main__.py" and path.suffix in (".py", ".ipynb") and "fvl_lightning.cli" in _code(path):
            found.append(f"{path.relative_to(root)}: imports fvl_lightning.cli")
    return found


def _code(path: Path) -> str:
    """The text of a Python file, or of the code cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")


def class_violations(root: Path) -> list[str]:
    """One sentence per class name that stands for two classes; a nested `Config` belongs to its component."""
    found: dict[str, list[str]] = defaultdict(list)
    for relative, _, tree in _trees(root):
        nested = {id(child) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for child in node.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not (node.name == "Config" and id(node) in nested):
                found[node.name].append(f"{relative}:{node.lineno}")
    return [f"{name} is defined in {' and '.join(places)}" for name, places in found.items() if len(places) > 1]


def any_violations(root: Path) -> list[str]:
    """One sentence per `Any` in a public signature for a parameter that holds an object of the project."""
    found = []
    for relative, _, tree in _trees(root):
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if node.name.startswith("_") and node.name != "__init__":
                continue
            for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                annotation = ast.unparse(argument.annotation) if argument.annotation else ""
                if argument.arg in CLASSES_OF_THE_KIT and "Any" in annotation.split(" | "):
                    where = f"{relative}:{argument.lineno}: {node.name}"
                    found.append(f"{where}({argument.arg}: {annotation})")
    return found


def metric_violations(root: Path) -> list[str]:
    """One sentence per name of a metric written out in code; it belongs to evaluation/metrics/ and YAML."""
    found = []
    for relative, _, tree in _trees(root):
        if relative.parent.as_posix() != "fvl_lightning/evaluation/metrics":
            names = [node for node in _strings(tree) if METRIC_NAMES.fullmatch(node.value)]
            found += [f"{relative}:{node.lineno}: '{node.value}'" for node in names]
    return found


def _strings(tree: ast.Module) -> list[ast.Constant]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def word_violations(root: Path) -> list[str]:
    """One sentence per private word in a text, per variable of such a name, and per docstring without a verb."""
    found = []
    for relative, _, tree in _trees(root):
        for constant in _strings(tree):
            if match := PRIVATE_WORDS.search(constant.value):
                found.append(f"{relative}:{constant.lineno}: '{match[0].strip()}'")
        for node in ast.walk(tree):
            stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            name = node.id if stored else node.arg if isinstance(node, ast.arg) else ""
            if name in PRIVATE_NAMES:
                found.append(f"{relative}:{node.lineno}: a variable is called '{name}'")
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = (ast.get_docstring(node) or "").split(" ")[0]
                if first in QUESTION_WORDS:
                    found.append(f"{relative}:{getattr(node, 'lineno', 1)}: a docstring begins with '{first}'")
    return found


def demo_violations(root: Path) -> list[str]:
    """One sentence per import of the demo set from outside of it; the command line may."""
    found = []
    for relative, _, tree in _trees(root):
        if relative.parts[:2] in (("datamodules", "demo"), ("fvl_lightning", "cli")):
            continue
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(module.split(".")[:2] == ["datamodules", "demo"] for module in modules):
                found.append(f"{relative}:{node.lineno}: imports the demo set")
    return found


RULES: list[Rule] = [
    style_violations,
    folder_violations,
    init_violations,
    cli_violations,
    class_violations,
    any_violations,
    metric_violations,
    word_violations,
    demo_violations,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_its_rules(rule: Rule) -> None:
    violations = rule(ROOT)
    assert not violations, "\n".join(["", *violations])


def test_half_of_the_files_are_short() -> None:
    median = statistics.median(len(text.splitlines()) for _, text, _ in _trees(ROOT))
    assert median <= MAX_MEDIAN_LINES


A = "fvl_lightning/core/a.py"
BREACHES: list[tuple[Rule, str, str, str]] = [
    (style_violations, A, "def f():\n    print('x')\n", "a.py:2: print"),
    (style_violations, "datamodules/a.py", "try:\n    pass\nexcept:\n    pass\n", "a.py:3: bare except"),
    (style_violations, A, "x = 1\n" * (MAX_FILE_LINES + 1), f"{MAX_FILE_LINES + 1} lines, at most {MAX_FILE_LINES}"),
    (style_violations, A, "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES, f"f has {MAX_FUNCTION_LINES + 1} lines"),
    (style_violations, A, "class A:\n    async def g(self):\n" + "        x = 1\n" * 55, "a.py:2: g has"),
    (
        init_violations,
        "fvl_lightning/core/__init__.py",
        "import os\nos.environ.setdefault('A', '1')\n",
        ":2: os.environ",
    ),
    (init_violations, "fvl_lightning/__init__.py", "x = __import__('torch')\n", ":1: x = __import__"),
    (init_violations, "datamodules/__init__.py", "import sys\nif sys.platform == 'win32':\n    x = 1\n", ":2: if sys"),
    (cli_violations, "fvl_lightning/cli/a.py", "class Options:\n    pass\n", "class Options"),
    (
        cli_violations,
        "fvl_lightning/runs/a.py",
        "from fvl_lightning.cli.main import app\n",
        "imports fvl_lightning.cli",
    ),
    (cli_violations, "benchmarks/a.py", "from fvl_lightning.cli.compare import demo\n", "imports fvl_lightning.cli"),
    (
        cli_violations,
        "notebooks/a.ipynb",
        json.dumps({"cells": [{"cell_type": "code", "source": ["from fvl_lightning.cli.compare ", "import demo"]}]}),
        "imports fvl_lightning.cli",
    ),
    (class_violations, A, "class B:\n    pass\nclass C:\n    class B:\n        pass\n", "B is defined in"),
    (class_violations, A, "class Config:\n    pass\nclass C:\n    pass\nclass C:\n    pass\n", "C is defined in"),
    (any_violations, A, "def f(x, data: Any):\n    pass\n", "f(data: Any)"),
    (
        any_violations,
        A,
        "class A:\n    def __init__(self, *, store: Any | None = None): ...\n",
        "__init__(store: Any | None)",
    ),
    (metric_violations, A, "x = row['macro']\n", "'macro'"),
    (metric_violations, "datamodules/a.py", "x = 'accuracy/overall'\n", "'accuracy/overall'"),
    (word_violations, A, "def f():\n    '''Returns what the ranks are told.'''\n", "'told'"),
    (word_violations, A, "raise ValueError(f'{x} was said')\n", "'said'"),
    (word_violations, A, "'''Shards. Of every process.'''\n", "'. Of'"),
    (word_violations, A, "'''Where things lie.'''\n", "a docstring begins with 'Where'"),
    (word_violations, A, "def f(beside):\n    pass\n", "a variable is called 'beside'"),
    (word_violations, A, "ours = 1\n", "a variable is called 'ours'"),
    (demo_violations, A, "from datamodules.demo.levels import LEVELS\n", "imports the demo set"),
    (demo_violations, "datamodules/base.py", "from datamodules import demo\n", "imports the demo set"),
]


@pytest.mark.parametrize(("rule", "path", "text", "sentence"), BREACHES, ids=[breach[-1] for breach in BREACHES])
def test_a_breach_is_found(tmp_path: Path, rule: Rule, path: str, text: str, sentence: str) -> None:
    write(tmp_path, path, text)
    (found,) = rule(tmp_path)
    assert sentence in found


def test_a_full_folder_is_found(tmp_path: Path) -> None:
    for number in range(MAX_FILES_IN_A_FOLDER):
        write(tmp_path, f"datamodules/file_{number}.py", "")
    write(tmp_path, "datamodules/__init__.py", "")
    assert folder_violations(tmp_path) == []
    write(tmp_path, "datamodules/one_more.py", "")
    assert folder_violations(tmp_path) == ["datamodules: 16 files, at most 15"]


LAWFUL = {
    A: "x = 1\n" * (MAX_FILE_LINES - 70) + "def f():\n" + "    console.print()\n" * (MAX_FUNCTION_LINES - 1),
    "fvl_lightning/core/b.py": "class A:\n    class Config:\n        pass\nclass B:\n    class Config:\n        pass\n",
    "fvl_lightning/core/c.py": "def f(data: Data, stage: dict[str, Any], x: Any) -> Any:\n    '''Saves words.'''\n",
    "fvl_lightning/__init__.py": "'''Kit.'''\nfrom typing import TYPE_CHECKING\n"
    "__version__ = '1'\nNAMES = {'a': 'b'}\n"
    "if TYPE_CHECKING:\n    import x\n\n\ndef __getattr__(name):\n    return name\n",
    "fvl_lightning/evaluation/metrics/lookup.py": "DEFAULT = 'accuracy/macro'\n",
    "fvl_lightning/cli/demo.py": "from datamodules.demo.levels import LEVELS\n",
    "fvl_lightning/__main__.py": "from fvl_lightning.cli.main import main\n",
    "datamodules/demo/a.py": "from datamodules.demo.levels import LEVELS\n",
}


def test_what_keeps_the_rules_is_left_alone(tmp_path: Path) -> None:
    for path, text in LAWFUL.items():
        write(tmp_path, path, text)
    assert {rule.__name__: rule(tmp_path) for rule in RULES} == {rule.__name__: [] for rule in RULES}


def test_both_packages_are_looked_at() -> None:
    assert {relative.parts[0] for relative, _, _ in _trees(ROOT)} == set(PACKAGES)
