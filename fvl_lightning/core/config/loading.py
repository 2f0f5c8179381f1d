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
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fvl_lightning.core.component_sources.components import ConfigReader, source_check
from fvl_lightning.core.config.base_files import COMMAND_LINE, Layer, Override, read_layers
from fvl_lightning.core.config.choices import Choice, ConfigLookup, choose, imported_config, slot, to_dataclass
from fvl_lightning.core.config.component_lists import choose_lists, component_lists
from fvl_lightning.core.config.merging import MergedLayers, override, parse_scalars
from fvl_lightning.core.config.places import RefusedValuesError, culprit, location, place_of, remember_origins
from fvl_lightning.core.config.variants import choose_variants
from fvl_lightning.core.config.yaml_text import Scalar, Texts, texts_under, with_texts
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.core.registry import is_loaded, names

__all__ = [
    "AS_WRITTEN", "BY_NAME", "Choice", "as_overrides", "as_plain", "check_config", "choose", "config_hash",
    "load_config", "merge_layers", "read_config", "slot",
]  # fmt: skip
Schema = TypeVar("Schema")
AS_WRITTEN = {"as_written": True}
"""Metadata of a field of any values that keeps Scalars, since they are later assigned to fields that may be text."""
BY_NAME = AS_WRITTEN | {"by_name": True}
"""Metadata of such a field that is written like a slot: as a name, or as a mapping with `name`."""


def load_config(
    schema: type[Schema],
    path: Path,
    overrides: Sequence[str] = (),
    origin: str | Mapping[str, str] = COMMAND_LINE,
) -> Schema:
    """Reads, merges and checks `path` with its bases and `overrides` into an instance of `schema`.

    Args:
        schema: a dataclass.
        path: a YAML file.
        overrides: "key=value" strings.
        origin: where the overrides were written, for messages; or {override: where}.

    Raises:
        ConfigError: a missing or malformed file, an unknown key or name, a wrong type; one sentence with the place.
    """
    return merge_layers(schema, read_layers(Path(path)), overrides, origin, Path(path))


def merge_layers(
    schema: type[Schema],
    files: Sequence[Layer],
    overrides: Sequence[str],
    origin: str | Mapping[str, str],
    path: Path | None = None,
) -> Schema:
    """Merges and checks the layers of files, the farthest base first, and `overrides`; see load_config.

    Args:
        path: the file that was loaded; None for overrides alone.
    """
    layers = _layers(schema, files, overrides, origin)
    try:
        merged, folder = _merge(schema, layers, path)
        if not all(map(is_loaded, _slot_names(schema).values())):
            # A mistake is found before seconds of imports; the imported classes have the last word.
            with source_check():
                _check_by_source(schema, merged, folder)
        config = check_config(schema, merged.values, merged.origins, folder, merged.texts)
    except RefusedValuesError as error:
        raise culprit(error, layers, partial(_refusal_of, schema, path)) from None
    remember_origins(config, merged.origins)
    return config


def read_config(
    schema: type[Schema],
    path: Path,
    overrides: Sequence[str] = (),
    origin: str | Mapping[str, str] = COMMAND_LINE,
) -> Schema:
    """Checks as load_config does, by the components' source files: none is imported, their Configs are stand-ins.

    Raises:
        ConfigError: as load_config.
        Exception: the source files do not answer, which `source_check` passes over.
    """
    layers = _layers(schema, read_layers(Path(path)), overrides, origin)
    try:
        return _check_by_source(schema, *_merge(schema, layers, Path(path)))
    except RefusedValuesError as error:
        raise culprit(error, layers, partial(_refusal_of, schema, Path(path))) from None


def _layers(
    schema: type[Any], files: Sequence[Layer], overrides: Sequence[str], origin: str | Mapping[str, str]
) -> list[Layer]:
    """Returns all layers in order, variants among them; each override is one."""
    places = {word: origin if isinstance(origin, str) else origin[word] for word in overrides}
    words = [Override((places[word], parse_scalars(word, places[word]))) for word in overrides]
    return choose_variants(files, words, [f.name for f in dataclasses.fields(schema)])


def _merge(schema: type[Any], layers: Sequence[Layer], path: Path | None) -> tuple[MergedLayers, Path]:
    """Returns the merged layers, and the folder that holds the plugins."""
    root = str(path) if path is not None else layers[-1][0] if layers else ""
    overrides = {origin for origin, _ in (layer for layer in layers if isinstance(layer, Override))}
    merged = MergedLayers(origins={"": root}, override_origins=overrides, alternatives=_alternatives(schema))
    named = {*_slot_names(schema), *(f.name for f in dataclasses.fields(schema) if "by_name" in f.metadata)}
    for origin, layer in layers:
        merged.add(layer, named, origin)
    listed_in = merged.origins.get("plugins")
    in_a_file = listed_in is not None and listed_in not in overrides
    return merged, (Path(listed_in) if in_a_file and listed_in else path or Path()).parent


def _check_by_source(schema: type[Schema], merged: MergedLayers, folder: Path) -> Schema:
    config = to_dataclass(schema, merged.values, location("", merged.origins), merged.texts)
    reader = ConfigReader(vars(config).get("plugins", []), folder)
    _choose_all(config, _slot_names(schema), merged.origins, merged.texts, reader)
    return config


def _refusal_of(schema: type[Any], path: Path | None, layers: Sequence[Layer]) -> RefusedValuesError | None:
    """Returns the error with which a Config refuses the values of these layers; None where no Config does."""
    try:
        merged, folder = _merge(schema, layers, path)
        merged.origins[""] = layers[-1][0] if layers else ""
        _check_by_source(schema, merged, folder)
    except RefusedValuesError as error:
        return error
    except Exception:  # another mistake, which has its own message, or source files that do not answer
        return None
    return None


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
    config = to_dataclass(schema, values, location("", origins), texts)
    as_written = (f.name for f in dataclasses.fields(config) if "as_written" in f.metadata)  # type: ignore[arg-type]
    for key in as_written:
        setattr(config, key, with_texts(getattr(config, key), texts_under(texts, key)))
    plugins = vars(config).get("plugins", [])
    for slot_name in (*slots.values(), *(one[-1] for one in component_lists(config))) if plugins else ():
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
            where = key + place_of(f"{key}.name", origins)
            place, inner_texts = location(key, origins), texts_under(texts, key)
            setattr(config, key, choose(slot_name, entry, where, place, inner_texts, config_of, type(config)))
    choose_lists(config, origins, config_of)


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


def _alternatives(schema: Any, prefix: str = "") -> dict[str, str]:
    """Returns {dotted key: the key beside it that says the same in another way} of a dataclass and its sections."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(schema):
        if other := field.metadata.get("instead_of"):
            found |= {prefix + field.name: other, prefix + other: field.name}
        if dataclasses.is_dataclass(field.type):
            found |= _alternatives(field.type, f"{prefix}{field.name}.")
    return found


def _slot_names(schema: Any) -> dict[str, str]:
    return {f.name: f.metadata["slot"] for f in dataclasses.fields(schema) if "slot" in f.metadata}
