"""Loads YAML files and `key=value` overrides into checked dataclasses.

Layers, later ones winning: dataclass defaults <- `base:` file(s) <- the YAML <- the command line, and after each file
the chosen variants it defines (variants.py). A slot is written `{name: <registered>, <fields of its Config>}`, or just
the name; a layer that changes the name REPLACES the slot, since the fields of one component mean nothing to another. A
layer that names `pretrained` replaces the fields of a model from scratch (OF_SCRATCH). Every mistake is a ConfigError
of one sentence.
"""

import dataclasses
import hashlib
import json
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fvl_lightning.core.component_sources.components import ConfigReader, source_check
from fvl_lightning.core.config.field_types import Location, conform, refusal
from fvl_lightning.core.config.fields import check_numbers
from fvl_lightning.core.config.files import COMMAND_LINE, Layer, in_file, read_layers
from fvl_lightning.core.config.merging import MergedLayers, override, parse_scalars, slot_entry
from fvl_lightning.core.config.variants import choose_variants
from fvl_lightning.core.config.yaml_text import Scalar, Texts, texts_under, with_texts
from fvl_lightning.core.errors import ConfigError, first_line
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.core.registry import component, is_loaded, names

Schema = TypeVar("Schema")
ConfigLookup = Callable[[str, str, str], Any]
"""(slot, name, how messages name the place) -> the Config class of a component."""
AS_WRITTEN = {"as_written": True}
"""Metadata of a field of any values that keeps Scalars, since they are later assigned to fields that may be text."""


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
            for key in _inner_slots(self.config)
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
    """
    where = where or slot_name
    fields = slot_entry(entry, where)
    name = fields.pop("name")
    place = place or (lambda key: f"{where}: {key}" if key else where)
    texts = texts or {}
    config = _to_dataclass(config_of(slot_name, name, where), fields, place, texts)
    for key, inner_slot in _inner_slots(config).items():
        for inner_name, inner_entry in getattr(config, key).items():
            inner = _under(f"{key}.{inner_name}", place)
            getattr(config, key)[inner_name] = choose(
                inner_slot, inner_entry, inner(""), inner, texts_under(texts, f"{key}.{inner_name}"), config_of
            )
    return Choice(slot_name, name, config)


def load_config(schema: type[Schema], path: Path, overrides: Sequence[str] = (), origin: str = COMMAND_LINE) -> Schema:
    """Reads, merges and checks `path` with its bases and `overrides` into an instance of `schema`.

    Args:
        schema: a dataclass.
        path: a YAML file.
        overrides: "key=value" strings.
        origin: where the overrides were written, for messages.

    Raises:
        ConfigError: a missing or malformed file, an unknown key or name, a wrong type; one sentence with the place.
    """
    return merge_layers(schema, read_layers(Path(path)), overrides, origin, Path(path))


def merge_layers(
    schema: type[Schema], files: Sequence[Layer], overrides: Sequence[str], origin: str, path: Path | None = None
) -> Schema:
    """Merges and checks the layers of files, the farthest base first, and `overrides`; see load_config.

    Args:
        path: the file that was loaded; None for overrides alone.
    """
    merged, folder = _merge(schema, files, overrides, origin, path)
    if not all(map(is_loaded, _slot_names(schema).values())):
        with source_check():  # a mistake is found before seconds of imports; the imported classes have the last word
            _check_by_source(schema, merged, folder)
    return check_config(schema, merged.values, merged.origins, folder, merged.texts)


def read_config(schema: type[Schema], path: Path, overrides: Sequence[str] = (), origin: str = COMMAND_LINE) -> Schema:
    """Checks as load_config does, by the components' source files: none is imported, their Configs are stand-ins.

    Raises:
        ConfigError: as load_config.
        Exception: the source files do not answer, which `source_check` passes over.
    """
    merged, folder = _merge(schema, read_layers(Path(path)), overrides, origin, Path(path))
    return _check_by_source(schema, merged, folder)


def _merge(
    schema: type[Any], files: Sequence[Layer], overrides: Sequence[str], origin: str, path: Path | None
) -> tuple[MergedLayers, Path]:
    """Returns the merged layers, and the folder that holds the plugins."""
    merged = MergedLayers(origins={"": origin if path is None else str(path)}, overrides_origin=origin)
    override_layers = [(origin, parse_scalars(override, origin)) for override in overrides]
    for layer_origin, layer in choose_variants(files, override_layers, [f.name for f in dataclasses.fields(schema)]):
        merged.add(layer, _slot_names(schema), layer_origin)
    listed_in = merged.origins.get("plugins", origin)
    return merged, ((path or Path()) if listed_in == origin else Path(listed_in)).parent


def _check_by_source(schema: type[Schema], merged: MergedLayers, folder: Path) -> Schema:
    config = _to_dataclass(schema, merged.values, _inside("", merged.origins), merged.texts)
    reader = ConfigReader(vars(config).get("plugins", []), folder)
    _choose_all(config, _slot_names(schema), merged.origins, merged.texts, reader)
    return config


def as_overrides(overrides: Iterable[str | Mapping[str, Any]]) -> list[str]:
    """Returns `key=value` words as they are, and mappings {dotted key: value} as such words.

    A value may be a scalar, a path, a list, a mapping or a dataclass such as LoraConfig.
    """
    words: list[str] = []
    for one in overrides:
        if isinstance(one, str):
            words.append(one)
        elif isinstance(one, Mapping):
            words += [override(key, as_plain(value)) for key, value in one.items()]
        else:
            raise ConfigError(f"an override is 'key=value' or a mapping of dotted keys to values, not {one!r}")
    return words


def check_config(
    schema: type[Schema],
    values: Mapping[str, Any],
    origins: Mapping[str, str] | None = None,
    folder: Path = Path(),
    texts: Texts | None = None,
) -> Schema:
    """Checks a merged mapping against `schema`: resolves interpolations, imports plugins, makes every slot a Choice.

    Args:
        schema: a dataclass.
        values: plain values.
        origins: where each dotted key was written.
        folder: the folder that plugin files are relative to.
        texts: the characters of the plain scalars among the values.
    """
    origins, texts = origins or {}, texts or {}
    slots = _slot_names(schema)
    config = _to_dataclass(schema, values, _inside("", origins), texts)
    as_written = (f.name for f in dataclasses.fields(config) if "as_written" in f.metadata)  # type: ignore[arg-type]
    for key in as_written:
        setattr(config, key, with_texts(getattr(config, key), texts_under(texts, key)))
    plugins = vars(config).get("plugins", [])
    for slot_name in slots.values() if plugins else ():
        names(slot_name)  # registers the kit's components first, so that a name conflict is reported for the plugin
    # Plugin files become absolute paths: a run may be opened again from another working directory.
    plugins[:] = [import_plugin(plugin, folder) for plugin in plugins]
    _choose_all(config, slots, origins, texts, imported_config)
    return config


def _choose_all(
    config: Any, slots: Mapping[str, str], origins: Mapping[str, str], texts: Texts, config_of: ConfigLookup
) -> None:
    """Puts a Choice in place of every slot's entry."""
    for key, slot_name in slots.items():
        entry = getattr(config, key)
        if entry is not None:
            where = key + _at(f"{key}.name", origins)
            choice = choose(slot_name, entry, where, _inside(key, origins), texts_under(texts, key), config_of)
            setattr(config, key, choice)


def as_plain(config: Any) -> Any:
    """Returns a checked configuration as plain dicts, lists and scalars, as it would be written in YAML."""
    if isinstance(config, Choice):
        return as_plain(config.as_dict())
    if isinstance(config, Scalar):
        return config.value
    if isinstance(config, os.PathLike):
        return os.fspath(config)
    if isinstance(config, numbers.Integral | numbers.Real) and not isinstance(config, bool | int | float):
        return int(config) if isinstance(config, numbers.Integral) else float(config)  # numpy's, for instance
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_plain(value) for value in config]
    return config


def config_hash(config: Any) -> str:
    """Returns twelve hex digits that identify a resolved configuration (sha256 of its canonical JSON)."""
    canonical = json.dumps(as_plain(config), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _slot_names(schema: Any) -> dict[str, str]:
    return {f.name: f.metadata["slot"] for f in dataclasses.fields(schema) if "slot" in f.metadata}


def _inner_slots(schema: Any) -> dict[str, str]:
    return {f.name: f.metadata["slots"] for f in dataclasses.fields(schema) if "slots" in f.metadata}


def _at(key: str, origins: Mapping[str, str]) -> str:
    """Returns " in a.yaml" or " on the command line": where `key`, or the mapping around it, was written last."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return in_file(origins.get(key, ""))


def _inside(outer: str, origins: Mapping[str, str]) -> Location:
    """Returns the function that gives the place of keys under `outer` ("" for the whole configuration)."""

    def place(key: str) -> str:
        full = ".".join(part for part in (outer, key) if part)
        return (full or "configuration") + _at(full, origins)

    return place


def _under(outer: str, place: Location) -> Location:
    """Returns `place` for keys relative to `outer`."""
    return lambda key: place(f"{outer}.{key}" if key else outer)


def _to_dataclass(schema: type[Schema], values: Mapping[str, Any], place: Location, texts: Texts) -> Schema:
    """Returns an instance of the dataclass `schema` with `values` over its defaults, interpolations resolved."""
    values = conform(schema, values, "", place, texts)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{place(error.full_key or '')}: {refusal(error)}") from None
    except ValueError as error:  # a Config's own __post_init__ refused a value
        raise ConfigError(f"{place('')}: {first_line(error)}") from None
    assert isinstance(config, schema)
    check_numbers(config, place)
    return config
