"""Components as their source files describe them: names, docstrings and Configs without an import of any library.

Importing a component imports torch and transformers, which takes seconds. To list components, to describe one and to
check a configuration, its source text is enough: a class under `@register("fusion", "gated")` has its name, docstring
and nested `Config` in it, and the definition of the Config is executed alone (core/component_sources/modules.py).

Text cannot answer everything: an entry point, a plugin that registers in a loop, a Config that needs torch. Then
Unreadable, or another exception that is no UserError, is raised, and the caller imports the component instead.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from fvl_lightning.core import registry
from fvl_lightning.core.component_sources.modules import SourceModule, Unreadable, registrations, source_module
from fvl_lightning.core.errors import UserError, unknown_name
from fvl_lightning.core.plugins import import_plugin, plugin_file


@dataclass(frozen=True)
class ComponentSource:
    """A component as its source describes it."""

    slot: str
    name: str
    module: SourceModule
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
        return self.module.value(self.definition.name).Config


def components_in(module: SourceModule) -> Iterator[ComponentSource]:
    """The classes of a module that are registered by a decorator with two literals."""
    for node in module.tree.body:
        for decorator in registrations(node):
            slot, name = map(ast.literal_eval, decorator.args)
            assert isinstance(node, ast.ClassDef)
            yield ComponentSource(slot, name, module, node)


@cache
def component_sources(slot: str) -> dict[str, ComponentSource]:
    """{name: component} of the files that `registry` would import for a slot; Unreadable where it has entry points."""
    package = registry.slot_package(slot)
    if entry_points(group=f"fvl_lightning.{slot}"):
        raise Unreadable(f"entry points add components to the slot {slot}")
    found = [one for module in _modules_of(package) for one in components_in(module) if one.slot == slot]
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


@contextmanager
def source_check() -> Iterator[None]:
    """Lets a UserError through, and passes over any other exception: the source files do not answer, an import will."""
    try:
        yield
    except UserError:
        raise
    except Exception:
        return


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
            components = components_in(SourceModule(plugin, file)) if file is not None else ()
            for component in components:
                if (component.slot, component.name) == (slot, name):
                    return component.config
        if self._plugins:
            raise Unreadable(f"a plugin may register {slot} '{name}'")
        raise unknown_name(slot, name, {*registered, *sources}, where)


@dataclass(frozen=True)
class ComponentSummary:
    """Facts about a component, read without importing it."""

    name: str
    docstring: str
    qualified_name: str
    config: Any


def summaries(slot: str, plugins: Iterable[str] = ()) -> dict[str, ComponentSummary]:
    """{name: summary} of the components of a slot, sorted; they are imported only where their source cannot be read.

    Args:
        slot: the slot.
        plugins: files and modules with further components.

    Raises:
        ConfigError: there is no such slot, or no such plugin.
    """
    registry.slot_package(slot)
    try:
        found = {name: _summary(one) for name, one in component_sources(slot).items()}
    except Exception:  # whatever the text lacks, the import has it
        found = {name: _imported_summary(name, registry.component(slot, name)) for name in registry.names(slot)}
    for plugin in plugins:
        found |= _plugin_summaries(slot, plugin)
    return dict(sorted(found.items()))


def _plugin_summaries(slot: str, plugin: str) -> dict[str, ComponentSummary]:
    file = plugin_file(plugin, Path())
    with suppress(Exception):  # the import below has what the text lacks, and raises the error of a broken plugin
        components = list(components_in(SourceModule(Path(plugin).stem, file))) if file is not None else []
        found = {one.name: _summary(one) for one in components if one.slot == slot}
        if components:
            return found
    registry.names(slot)
    import_plugin(plugin, Path())
    return {name: _imported_summary(name, component) for name, component in registry.registered(slot).items()}


def _summary(one: ComponentSource) -> ComponentSummary:
    return ComponentSummary(one.name, one.docstring, one.qualified_name, one.config)


def _imported_summary(name: str, component: Any) -> ComponentSummary:
    where = f"{component.__module__}.{component.__qualname__}"
    return ComponentSummary(name, inspect.getdoc(component) or "", where, component.Config)
