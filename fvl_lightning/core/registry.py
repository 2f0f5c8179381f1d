"""Slots and the components that fill them, by exact name.

A component registers itself where it is defined:

    @register("fusion", "gated")
    class GatedFusion(Fusion):
        @dataclass
        class Config: ...

The files of a slot's package are imported on the first look-up; code from outside is named in `plugins:` of a YAML
file or in the entry point groups `fvl_lightning.<slot>`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from fvl_lightning.core.errors import ConfigError, unknown_name

Component = TypeVar("Component", bound=type)

SLOT_PACKAGES = {
    "encoder": "fvl_lightning.encoders",
    "fusion": "fvl_lightning.fusions",
    "projector": "fvl_lightning.projectors",
    "language_model": "fvl_lightning.language_models",
    "stage": "fvl_lightning.stages",
    "logger": "fvl_lightning.tracking.loggers",
    "callback": "fvl_lightning.training.callbacks",
    "metric": "fvl_lightning.evaluation.metrics",
    "data": "datamodules",
    "source": "datamodules.sources",
}
"""Each slot and the package whose files register its components."""

_components: dict[str, dict[str, type]] = {slot: {} for slot in SLOT_PACKAGES}
_loaded: set[str] = set()


def register(slot: str, name: str) -> Callable[[Component], Component]:
    """Returns a class decorator that registers a component as `name` in `slot`.

    Raises:
        ConfigError: an unknown slot, a class without a nested Config, or a name that another class has taken.
    """

    def add(component: Component) -> Component:
        if slot not in _components:
            raise unknown_name("slot", slot, _components, f"@register of {component.__name__}")
        if "Config" not in vars(component):
            raise ConfigError(f"{component.__name__} needs a nested dataclass Config")
        taken = _components[slot].get(name)
        # A file that is imported twice (a notebook, a plugin named twice) registers the same class again.
        same = taken is not None and _identity(taken) == _identity(component)
        if taken is not None and not same:
            raise ConfigError(
                f"{slot} '{name}' is already {taken.__name__} of {taken.__module__}; register yours under another name"
            )
        _components[slot][name] = component
        return component

    return add


def names(slot: str) -> list[str]:
    """Returns the registered names of a slot, sorted."""
    _load(slot)
    return sorted(_components[slot])


def component(slot: str, name: str, where: str = "") -> type[Any]:
    """Returns the class registered as `name` in `slot`; ConfigError with the nearest name where there is none."""
    _load(slot)
    if name not in _components[slot]:
        raise unknown_name(slot, name, _components[slot], where or slot)
    return _components[slot][name]


def registered(slot: str) -> dict[str, type[Any]]:
    """{name: class} of the components of a slot that have been imported so far."""
    return dict(_components[slot])


def is_loaded(slot: str) -> bool:
    """Returns whether every component of a slot has been imported."""
    return slot in _loaded


def slot_package(slot: str) -> str:
    """The package whose files register the components of a slot; ConfigError where there is no such slot."""
    if slot not in SLOT_PACKAGES:
        raise unknown_name("slot", slot, SLOT_PACKAGES, "slot")
    return SLOT_PACKAGES[slot]


def _identity(component: type) -> tuple[str, str]:
    return component.__module__, component.__qualname__


def _load(slot: str) -> None:
    package_name = slot_package(slot)
    if slot in _loaded:
        return
    package = importlib.import_module(package_name)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for entry_point in entry_points(group=f"fvl_lightning.{slot}"):
        entry_point.load()
    _loaded.add(slot)
