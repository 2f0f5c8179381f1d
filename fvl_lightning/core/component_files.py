"""Components as their source files describe them: names, docstrings and Configs without an import of any library.

Importing a component imports torch and transformers, which takes seconds. To list components, to describe one and to
check a configuration, its source text is enough: a class under `@register("fusion", "gated")` has its name, docstring
and nested `Config` in it. The Config is made by executing its definition and those module-level definitions that it
uses (base classes, constants, functions), each of them alone, without the rest of the module.

Text cannot answer everything: an entry point, a plugin that registers in a loop, a Config that needs torch. Then
Unreadable, or another exception that is no UserError, is raised, and the caller imports the component instead.
"""

import ast
import builtins
import copy
import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fvl_lightning.core import registry
from fvl_lightning.core.errors import unknown_name
from fvl_lightning.core.plugins import plugin_file

ROOT = Path(__file__).parents[2]
"""The folder that holds the two packages."""
IMPORTED = (
    "fvl_lightning.core.addresses", "fvl_lightning.core.atomic", "fvl_lightning.core.chat_date",
    "fvl_lightning.core.config", "fvl_lightning.core.errors", "fvl_lightning.core.experiment",
    "fvl_lightning.core.prompts", "fvl_lightning.core.registry", "fvl_lightning.core.types",
)  # fmt: skip
"""Modules, and packages with all modules in them, that import no library which takes long: they are imported. The
standard library is too."""


class Unreadable(Exception):
    """The source text does not answer; the component must be imported."""


@dataclass(frozen=True)
class ComponentSource:
    """A component as its source describes it."""

    slot: str
    name: str
    module: "SourceModule"
    definition: ast.ClassDef

    @property
    def qualified_name(self) -> str:
        """Module and class, as the imported class has them."""
        return f"{self.module.name}.{self.definition.name}"

    @property
    def docstring(self) -> str:
        """The cleaned docstring; Unreadable where it is inherited."""
        docstring = ast.get_docstring(self.definition)
        if docstring is None:
            raise Unreadable(f"{self.qualified_name} has no docstring of its own")
        return docstring

    @cached_property
    def config(self) -> Any:
        """The nested Config: another class than the imported one, with equal fields and checks."""
        return self.module.nested_class(self.definition, "Config")


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

    def components(self) -> Iterator[ComponentSource]:
        """The classes that are registered by a decorator with two literals."""
        for node in self.tree.body:
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).split(".")[-1] == "register":
                    slot, name = map(ast.literal_eval, decorator.args)
                    assert isinstance(node, ast.ClassDef)
                    yield ComponentSource(slot, name, self, node)

    def value(self, name: str) -> Any:
        """What a module-level name stands for."""
        self._define(name)
        if name not in self._namespace:
            raise Unreadable(f"{self.path} does not define {name}")
        return self._namespace[name]

    def nested_class(self, outer: ast.ClassDef, name: str) -> Any:
        """The class `name` in the body of `outer`, whose other members and bases are left out."""
        body = [node for node in outer.body if isinstance(node, ast.ClassDef) and node.name == name]
        if not body or "annotations" in self._statements:  # with which annotations are texts
            raise Unreadable(f"{self.path}: {outer.name} has no class {name} that can be read")
        shell = copy.copy(outer)
        shell.bases, shell.keywords, shell.decorator_list, shell.body = [], [], [], list(body)
        self._execute(shell)
        nested = getattr(self._namespace.pop(outer.name), name)
        nested.__definition__ = body[0]
        return nested

    def _define(self, name: str) -> None:
        if name in self._defined:
            return
        self._defined.add(name)
        for statement in self._statements.get(name, ()):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._namespace[name] = _imported(statement, name)
            else:
                self._execute(statement)
                if isinstance(statement, ast.ClassDef):
                    self._namespace[name].__definition__ = statement

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
    """What an import statement binds to `name`; a module of the kit that takes long to import is read instead."""
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


@cache
def component_sources(slot: str) -> dict[str, ComponentSource]:
    """{name: component} of the files that `registry` would import for a slot; Unreadable where it has entry points."""
    package = registry.slot_package(slot)
    if entry_points(group=f"fvl_lightning.{slot}"):
        raise Unreadable(f"entry points add components to the slot {slot}")
    found = [one for module in _modules_of(package) for one in module.components() if one.slot == slot]
    return {one.name: one for one in sorted(found, key=lambda one: one.name)}


def _modules_of(package: str) -> Iterator[SourceModule]:
    """The modules directly in a package that register something, and those that its folders import from themselves."""
    folder = source_module(package).path.parent
    for path in sorted(folder.iterdir()):
        name = f"{package}.{path.stem}"
        if path.suffix == ".py" and path.name != "__init__.py" and "register(" in path.read_text(encoding="utf-8"):
            yield source_module(name)
        elif (path / "__init__.py").is_file():
            body = source_module(name).tree.body
            inner = [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
            yield from (source_module(module) for module in inner if module.startswith(f"{name}."))


class ConfigReader:
    """Finds the Config of a component for a check of a configuration, without importing it."""

    def __init__(self, plugins: Iterable[str], folder: Path) -> None:
        """`plugins` and `folder` are as for `import_plugin`."""
        self._plugins = list(plugins)
        self._folder = folder

    def __call__(self, slot: str, name: str, where: str) -> Any:
        """The Config; ConfigError with the nearest name where there is no such component."""
        registered = registry.registered(slot)
        if name in registered:
            return registered[name].Config
        sources = component_sources(slot)
        if name in sources:
            return sources[name].config
        for plugin in self._plugins:
            file = plugin_file(plugin, self._folder)
            components = SourceModule(plugin, file).components() if file is not None else ()
            for component in components:
                if (component.slot, component.name) == (slot, name):
                    return component.config
        if self._plugins:
            raise Unreadable(f"a plugin may register {slot} '{name}'")
        raise unknown_name(slot, name, {*registered, *sources}, where)


@dataclass(frozen=True)
class ComponentSummary:
    """What is known of a component without building it."""

    name: str
    docstring: str
    qualified_name: str
    config: Any


def summaries(slot: str) -> dict[str, ComponentSummary]:
    """{name: summary} of the components of a slot, sorted; they are imported only where their source cannot be read.

    Raises:
        ConfigError: there is no such slot.
    """
    registry.slot_package(slot)
    try:
        read = component_sources(slot).values()
        found = [ComponentSummary(one.name, one.docstring, one.qualified_name, one.config) for one in read]
    except Exception:  # whatever the text lacks, the import has it
        return {name: _imported_summary(name, registry.component(slot, name)) for name in registry.names(slot)}
    return {one.name: one for one in found}


def _imported_summary(name: str, component: Any) -> ComponentSummary:
    where = f"{component.__module__}.{component.__qualname__}"
    return ComponentSummary(name, inspect.getdoc(component) or "", where, component.Config)
