"""From YAML files and `key=value` words to checked dataclasses.

Layers, later ones winning: dataclass defaults <- `base:` file(s) <- the YAML <- the command line. A slot is written
`{name: <registered>, <fields of its Config>}`, or just the name; a layer that changes the name REPLACES the slot, since
the fields of one component mean nothing to another. Every mistake is one sentence (ConfigError).
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.core.registry import component

Schema = TypeVar("Schema")
COMMAND_LINE = "the command line"


def slot(name: str, default: Any = None) -> Any:
    """A dataclass field holding what fills slot `name`; typed Any, since OmegaConf has no polymorphic fields."""
    return field(default=default, metadata={"slot": name})


@dataclass(frozen=True)
class Choice:
    """What fills a slot: the registered `name` and an instance of that component's Config."""

    slot: str
    name: str
    config: Any

    @property
    def component(self) -> type[Any]:
        """The registered class."""
        return component(self.slot, self.name)

    def as_dict(self) -> dict[str, Any]:
        """`{name: ..., <fields>}`, as it is written in YAML."""
        return {"name": self.name, **dataclasses.asdict(self.config)}


def choose(slot_name: str, entry: Any, where: str = "") -> Choice:
    """Checks one slot entry (a name, or a mapping with `name`) against the component's Config."""
    where = where or slot_name
    fields = _normalise_slot(entry, where)
    name = fields.pop("name")
    config_class = component(slot_name, name, where).Config
    return Choice(slot_name, name, _to_dataclass(config_class, fields, where, {}))


def load_config(schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """Reads, merges and checks `path` with its bases and `overrides` ("key=value") into an instance of `schema`.

    Raises:
        ConfigError: a missing or malformed file, an unknown key or name, a wrong type; one sentence with the place.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    slots = _slot_names(schema)
    for origin, layer in [*_layers(Path(path), ()), *((COMMAND_LINE, parse_override(word)) for word in overrides)]:
        _merge(merged, layer, slots, origin, origins)
    return check_config(schema, merged, origins, folder=Path(path).parent)


def check_config(
    schema: type[Schema], values: Mapping[str, Any], origins: Mapping[str, str] | None = None, folder: Path = Path()
) -> Schema:
    """Checks a merged mapping against `schema`: plugins imported, interpolations resolved, every slot a Choice."""
    origins = origins or {}
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from None
    assert isinstance(resolved, dict)
    for plugin in resolved.get("plugins") or []:
        import_plugin(str(plugin), folder)
    config = _to_dataclass(schema, resolved, "", origins)
    for key, slot_name in _slot_names(schema).items():
        entry = getattr(config, key)
        if entry is not None:
            place = f"{key} in {origins[key]}" if key in origins else key
            setattr(config, key, choose(slot_name, entry, place))
    return config


def as_plain(config: Any) -> Any:
    """A checked configuration as plain dicts, lists and scalars, as it would be written in YAML."""
    if isinstance(config, Choice):
        return config.as_dict()
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [as_plain(value) for value in config]
    return config


def config_hash(config: Any) -> str:
    """Twelve hex digits that name a resolved configuration (sha256 of its canonical JSON)."""
    canonical = json.dumps(as_plain(config), sort_keys=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys at which two plain configurations differ, sorted."""
    keys: list[str] = []
    for key in sorted(set(one) | set(other)):
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            keys += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys


def parse_override(word: str) -> dict[str, Any]:
    """`a.b=1` as `{"a": {"b": 1}}`; the value is read as YAML."""
    key, equals, text = word.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"'{word}' on {COMMAND_LINE} is not key=value, such as trainer.max_steps=20")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of '{word}' on {COMMAND_LINE} is not valid YAML") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def import_plugin(name: str, folder: Path) -> None:
    """Imports code that registers components: a module name, or a .py file beside the YAML or the working directory."""
    if name.endswith(".py"):
        candidates = [folder / name, Path(name)]
        file = next((path for path in candidates if path.is_file()), None)
        if file is None:
            raise ConfigError(f"plugins: no file {name} in {folder} or the working directory")
        module_name = f"fvl_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
        if module_name in sys.modules:
            return
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"plugins: {file} could not be imported: {type(error).__name__}: {error}") from error
        return
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"plugins: no module '{name}' could be imported: {error}") from error


def _layers(path: Path, chain: tuple[Path, ...]) -> list[tuple[str, dict[str, Any]]]:
    """The mappings of `path` and its bases, farthest base first, each with the name of its file."""
    if path.resolve() in chain:
        raise ConfigError(f"{path}: `base:` leads back to itself")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; in {path.parent} there are {', '.join(near)}" if near else ""
        raise ConfigError(f"no configuration file {path}{hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {_first_line(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(values).__name__}")
    bases = values.pop("base", [])
    layers: list[tuple[str, dict[str, Any]]] = []
    for base in [bases] if isinstance(bases, str) else bases:
        layers += _layers(path.parent / base, (*chain, path.resolve()))
    return [*layers, (str(path), values)]


def _merge(
    into: dict[str, Any], layer: Mapping[str, Any], slots: Mapping[str, str], origin: str, origins: dict[str, str]
) -> None:
    for key, value in layer.items():
        if key in slots and value is not None:
            # `fusion.hidden=3` on the command line has no name of its own: it speaks of the fusion already chosen.
            named = isinstance(value, str) or "name" in value
            value = _normalise_slot(value, f"{key} in {origin}") if named else dict(value)
            replaced = named and into.get(key) is not None and into[key].get("name") != value["name"]
            if replaced:
                into.pop(key)
        _merge_value(into, key, value, key, origin, origins)


def _merge_value(
    into: dict[str, Any], key: str, value: Any, path: str, origin: str, origins: dict[str, str]
) -> None:
    origins[path] = origin
    if isinstance(value, Mapping):
        # An empty mapping empties: `prompts: {}` would otherwise be a way of saying nothing.
        target = into[key] if value and isinstance(into.get(key), dict) else {}
        into[key] = target
        for inner, inner_value in value.items():
            _merge_value(target, inner, inner_value, f"{path}.{inner}", origin, origins)
    else:
        into[key] = value


def _normalise_slot(entry: Any, where: str) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"name": entry}
    if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        return dict(entry)
    raise ConfigError(f"{where}: expected a name or a mapping with `name`, found {entry!r}")


def _slot_names(schema: Any) -> dict[str, str]:
    return {f.name: f.metadata["slot"] for f in dataclasses.fields(schema) if "slot" in f.metadata}


def _to_dataclass(schema: type[Schema], values: Mapping[str, Any], where: str, origins: Mapping[str, str]) -> Schema:
    """An instance of the dataclass `schema`; `where` prefixes the keys in messages."""
    _check_keys(schema, values, where, "", origins)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        origin = f" in {origins[key]}" if key in origins else ""
        place = f"{where}: {key}" if where else f"{key}{origin}"
        raise ConfigError(f"{place}: {_first_line(error)}") from None
    except ValueError as error:  # a Config's own __post_init__ refused a value
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None
    assert isinstance(config, schema)
    return config


def _check_keys(schema: Any, values: Mapping[str, Any], where: str, path: str, origins: Mapping[str, str]) -> None:
    allowed = {f.name: f for f in dataclasses.fields(schema)}
    for key, value in values.items():
        full = f"{path}{key}"
        if key not in allowed:
            origin = f" in {origins[full]}" if full in origins else ""
            place = where if not path else f"{where}.{path[:-1]}" if where else path[:-1]
            raise unknown_name("key", key, allowed, f"{place or 'top level'}{origin}")
        inner = allowed[key].type
        if dataclasses.is_dataclass(inner):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{full}: expected keys and values, found {value!r}")
            _check_keys(inner, value, where, f"{full}.", origins)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().splitlines()[:1]) or type(error).__name__
