"""The components that fill slots, checked against their Configs, and other dataclasses made of checked values."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fvl_lightning.core.config.field_types import conform, refusal
from fvl_lightning.core.config.fields import check_numbers
from fvl_lightning.core.config.known_keys import check_component_keys, check_keys
from fvl_lightning.core.config.merging import slot_entry
from fvl_lightning.core.config.places import Location, RefusedValuesError, under
from fvl_lightning.core.config.yaml_text import Texts, texts_under
from fvl_lightning.core.errors import ConfigError, first_line
from fvl_lightning.core.registry import component

Schema = TypeVar("Schema")
ConfigLookup = Callable[[str, str, str], Any]
"""(slot, name, how messages name the place) -> the Config class of a component."""


def slot(name: str, default: Any = None) -> Any:
    """Returns a dataclass field for the component of slot `name`; typed Any, as OmegaConf has no polymorphic fields."""
    return field(default=default, metadata={"slot": name})


@dataclass(frozen=True)
class Choice:
    """The component of a slot: its registered `name` and an instance of its Config."""

    slot: str
    name: str
    config: Any

    @property
    def component(self) -> type[Any]:
        """The component's class."""
        return component(self.slot, self.name)

    def as_dict(self) -> dict[str, Any]:
        """Returns `{name: ..., <fields>}`, as it is written in YAML."""
        inner = {
            key: {name: choice.as_dict() for name, choice in getattr(self.config, key).items()}
            for key in inner_slots(self.config)
        }
        return {"name": self.name, **dataclasses.asdict(self.config), **inner}


def imported_config(slot_name: str, name: str, where: str) -> Any:
    """The Config of a component, which is imported."""
    return component(slot_name, name, where).Config


def choose(
    slot_name: str,
    entry: Any,
    where: str = "",
    place: Location | None = None,
    texts: Texts | None = None,
    config_of: ConfigLookup = imported_config,
    whole: Any = None,
) -> Choice:
    """Checks one slot entry (a name, or a mapping with `name`) against the component's Config.

    A Config may have a field of type dict[str, Any] with the metadata {"slots": <slot>}, which holds components by
    names of the user's choice; they are checked in the same way and become Choices.

    Args:
        slot_name: the slot.
        entry: the name or mapping.
        where: name of the slot, for messages.
        place: maps a key of the entry to where it was written.
        texts: the characters of the plain scalars in the entry.
        config_of: finds the Config of a component.
        whole: the dataclass with the slot, whose other sections may have a key that the component lacks.
    """
    where = where or slot_name
    fields = slot_entry(entry, where)
    name = fields.pop("name")
    place = place or (lambda key: f"{where}: {key}" if key else where)
    texts, schema = texts or {}, config_of(slot_name, name, where)
    check_component_keys(slot_name, name, schema, fields, place, whole)
    config = to_dataclass(schema, fields, place, texts)
    for key, inner_slot in inner_slots(config).items():
        for inner_name, inner_entry in getattr(config, key).items():
            inner = under(f"{key}.{inner_name}", place)
            getattr(config, key)[inner_name] = choose(
                inner_slot, inner_entry, inner(""), inner, texts_under(texts, f"{key}.{inner_name}"), config_of
            )
    return Choice(slot_name, name, config)


def inner_slots(schema: Any) -> dict[str, str]:
    """Returns {field: slot} of the fields that hold several components by name."""
    return {f.name: f.metadata["slots"] for f in dataclasses.fields(schema) if "slots" in f.metadata}


def to_dataclass(schema: type[Schema], values: Mapping[str, Any], place: Location, texts: Texts) -> Schema:
    """Returns an instance of the dataclass `schema` with `values` over its defaults, interpolations resolved."""
    check_keys(schema, values, place, values)
    values = conform(schema, values, "", place, texts)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{place(error.full_key or '')}: {refusal(error)}") from None
    except (ValueError, ConfigError) as error:  # a Config's own __post_init__ refused a value
        raise RefusedValuesError.at(place(""), first_line(error)) from None
    assert isinstance(config, schema)
    check_numbers(config, place)
    return config
