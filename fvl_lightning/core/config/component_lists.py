"""Lists of components, `trainer.loggers` and `trainer.callbacks`: registered ones, and classes of any package."""

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from fvl_lightning.core.config.choices import Choice, ConfigLookup, choose
from fvl_lightning.core.config.places import place_of, under
from fvl_lightning.core.errors import ConfigError, first_line, unknown_name


def component_list(slot: str, *names: str, changes: str = "result") -> Any:
    """Returns a dataclass field for a list of components of a slot or of other classes; by default those in `names`.

    Args:
        slot: the slot, such as "logger".
        names: the registered names in the default list.
        changes: what another list affects; see core/config/fields.py.
    """
    return field(default_factory=lambda: list(names), metadata={"list": slot, "changes": changes})


@dataclass(frozen=True)
class ImportedClass(Choice):
    """A class of any package in a list of components: `name` is its dotted name, and `config` its keyword arguments."""

    @property
    def component(self) -> type[Any]:
        """The class, which is imported; ConfigError where there is none of this name."""
        module, _, name = self.name.rpartition(".")
        where = f"trainer.{self.slot}s"
        try:
            imported = vars(import_module(module))
        except Exception as error:  # the import runs any code
            hint = "install its package, or name a file of your own in `plugins`"
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"{where}: {self.name} cannot be imported ({problem}); {hint}") from error
        classes = {key: value for key, value in imported.items() if isinstance(value, type)}
        if name not in classes:
            raise unknown_name(f"class of {module}", name, classes, where)
        return classes[name]

    def as_dict(self) -> dict[str, Any]:
        """Returns `{<dotted name>: {<argument>: <value>}}`, as it is written in YAML."""
        return {self.name: self.config}

    def build(self, base: type[Any], **defaults: Any) -> Any:
        """Returns an instance of the class.

        Args:
            base: the class that it must extend.
            defaults: arguments that are passed where the class takes them and the list does not give them.

        Raises:
            ConfigError: a class of another kind, or arguments that it does not take.
        """
        given = self.check(base, **defaults)
        try:
            return self.component(**given)
        except Exception as error:  # whatever another package's class makes of arguments that came from YAML
            problem = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"trainer.{self.slot}s: {self.name}({', '.join(given)}): {problem}") from error

    def check(self, base: type[Any], **defaults: Any) -> dict[str, Any]:
        """Returns the arguments with which `build` calls the class; raises errors as `build`."""
        where = f"trainer.{self.slot}s: {self.name}"
        check_base(self, base)
        signature = inspect.signature(self.component)
        parameters = signature.parameters
        given = {key: value for key, value in defaults.items() if key in parameters} | self.config
        named = [key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
        for key in given if len(named) == len(parameters) else ():
            if key not in named:
                raise unknown_name("argument", key, named, where)
        try:
            signature.bind(**given)
        except TypeError as error:
            raise ConfigError(f"{where}: {first_line(error)}") from None
        return given


def check_base(choice: Choice, base: type[Any]) -> None:
    """Raises ConfigError where the class of an entry does not extend the class that Lightning expects."""
    if not issubclass(choice.component, base):
        where = f"trainer.{choice.slot}s: {choice.name}"
        raise ConfigError(f"{where} is no {base.__name__} of Lightning, which a {choice.slot} must extend")


def component_lists(config: Any) -> Iterator[tuple[Any, str, str, str]]:
    """Yields (dataclass, its field, dotted key, slot) of the lists of components one level inside a configuration."""
    for outer in dataclasses.fields(config):
        section = getattr(config, outer.name)
        if dataclasses.is_dataclass(section) and not isinstance(section, Choice):
            for inner in dataclasses.fields(section):
                if "list" in inner.metadata:
                    yield section, inner.name, f"{outer.name}.{inner.name}", inner.metadata["list"]


def list_entry(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Returns name and arguments of an entry: `csv`, `{csv: {<field>: ...}}` or `{name: csv, <field>: ...}`.

    Raises:
        ConfigError: an entry of another form.
    """
    if isinstance(entry, Choice):
        entry = entry.as_dict()
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        return entry["name"], {key: value for key, value in entry.items() if key != "name"}
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if isinstance(name, str) and (arguments is None or isinstance(arguments, Mapping)):
            return name, dict(arguments or {})
    raise ConfigError(f"{where}: expected a name, or one name with its arguments as in {{csv: {{}}}}, found {entry!r}")


def choose_lists(config: Any, origins: Mapping[str, str], config_of: ConfigLookup) -> None:
    """Puts Choices in place of the entries of every list of components.

    A dotted name is a class of any package, which is imported only where it is used.

    Args:
        config: a checked dataclass.
        origins: where each dotted key was written.
        config_of: finds the Config of a registered component.
    """
    for section, field_name, key, slot in component_lists(config):
        where = key + place_of(key, origins)
        setattr(section, field_name, [_choose(slot, entry, where, config_of) for entry in getattr(section, field_name)])


def _choose(slot: str, entry: Any, where: str, config_of: ConfigLookup) -> Choice:
    name, arguments = list_entry(entry, where)
    if "." in name:
        return ImportedClass(slot, name, arguments)
    place = under(name, lambda key: f"{where}: {key}")
    return choose(slot, {**arguments, "name": name}, where, place, config_of=config_of)
