"""Single definitions of a module, executed without the rest of it: for what its text can answer without an import.

A definition is executed with those module-level definitions that it uses (base classes, constants, functions), each of
them alone. Names from the standard library and from quick modules of the kit are imported, names from other modules of
the kit are read in the same way, and names from libraries cannot be read.
"""

import ast
import builtins
import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
"""The folder that holds the two packages."""
IMPORTED = (
    "fvl_lightning.core.atomic", "fvl_lightning.core.chat_date",
    "fvl_lightning.core.config", "fvl_lightning.core.errors", "fvl_lightning.core.experiment",
    "fvl_lightning.core.florence2_prompts", "fvl_lightning.core.registry", "fvl_lightning.core.types",
)  # fmt: skip
"""Modules, and packages with all modules in them, that import no library which takes long: they are imported. The
standard library is too."""


class Unreadable(Exception):
    """The source text does not answer; the module must be imported."""


class SourceModule:
    """A module of which single definitions are executed, each with those that it uses."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self._namespace: dict[str, Any] = {"__name__": name}
        self._statements: dict[str, list[ast.stmt]] = {}
        self._defined: set[str] = set()
        for statement in self.tree.body:
            for bound in _bound_names(statement):
                self._statements.setdefault(bound, []).append(statement)

    def value(self, name: str) -> Any:
        """Returns the value of a module-level name; Unreadable where it has none."""
        self._define(name)
        if name not in self._namespace:
            raise Unreadable(f"{self.path} does not define {name}")
        return self._namespace[name]

    def _define(self, name: str) -> None:
        if name in self._defined:
            return
        self._defined.add(name)
        for statement in self._statements.get(name, ()):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._namespace[name] = _imported(statement, name)
            elif isinstance(statement, ast.ClassDef) and any(registrations(statement)):
                self._define_component(statement)
            else:
                self._execute(statement)
                if isinstance(statement, ast.ClassDef):
                    self._namespace[name].__definition__ = statement

    def _define_component(self, definition: ast.ClassDef) -> None:
        """Defines a component with its nested classes alone: bases and methods need libraries, and it is registered
        when it is imported."""
        if "annotations" in self._statements:
            raise Unreadable(f"{self.path} has annotations that are texts")
        nested = [node for node in definition.body if isinstance(node, ast.ClassDef)]
        shell = copy.copy(definition)
        shell.bases, shell.keywords, shell.decorator_list, shell.body = [], [], [], [*nested, ast.Pass()]
        self._execute(ast.fix_missing_locations(shell))
        for node in nested:
            getattr(self._namespace[definition.name], node.name).__definition__ = node

    def _execute(self, statement: ast.stmt) -> None:
        needed = _Needed()
        needed.visit(statement)
        for name in needed.now:
            self._define(name)
        code = compile(ast.Module([statement], []), str(self.path), "exec", dont_inherit=True)
        exec(code, self._namespace)
        for name in needed.later:
            with suppress(Exception):  # a function that needs it raises NameError when it is called
                self._define(name)


class _Needed(ast.NodeVisitor):
    """The names that a statement uses: `now`, when it is executed, or `later`, when its functions are called."""

    def __init__(self) -> None:
        self.now: dict[str, None] = {}
        self.later: dict[str, None] = {}
        self._names = self.now

    def visit_Name(self, node: ast.Name) -> None:
        if not hasattr(builtins, node.id):
            self._names[node.id] = None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in (*node.decorator_list, node.args, *filter(None, [node.returns])):
            self.visit(part)
        self._visit_later(node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit(node.args)
        self._visit_later([node.body])

    def _visit_later(self, body: Iterable[ast.AST]) -> None:
        names, self._names = self._names, self.later
        for node in body:
            self.visit(node)
        self._names = names


def registrations(statement: ast.stmt) -> Iterator[ast.Call]:
    """The `register(...)` among the decorators of a class."""
    for decorator in statement.decorator_list if isinstance(statement, ast.ClassDef) else ():
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == "register":
            yield decorator


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in statement.names)
    elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (node.id for node in ast.walk(target) if isinstance(node, ast.Name))


def _imported(statement: ast.Import | ast.ImportFrom, name: str) -> Any:
    """Returns what an import statement binds to `name`; slow modules of the kit are read instead of imported."""
    alias = next(one for one in statement.names if name in (one.asname, one.name.partition(".")[0]))
    if isinstance(statement, ast.Import):
        if not _is_quick(alias.name):
            raise Unreadable(f"{alias.name} is not imported to read a source file")
        module = import_module(alias.name)
        return module if alias.asname else sys.modules[name]
    source = statement.module or ""
    if statement.level == 0 and _is_quick(source):
        return getattr(import_module(source), alias.name)
    return source_module("." * statement.level + source).value(alias.name)


def _is_quick(module: str) -> bool:
    known = module.split(".")[0] in sys.stdlib_module_names
    return known or any(module == one or module.startswith(f"{one}.") for one in IMPORTED)


@cache
def source_module(name: str) -> SourceModule:
    """The text of a module of the kit; Unreadable for any other."""
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if name.split(".")[0] in ("fvl_lightning", "datamodules") and file.is_file():
            return SourceModule(name, file)
    raise Unreadable(f"{name} is not a module of the kit")
