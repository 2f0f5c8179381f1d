"""Merges layers of configuration: files and overrides, later ones over earlier ones."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import yaml

from fvl_lightning.core.config.base_files import COMMAND_LINE, in_file
from fvl_lightning.core.config.yaml_text import one_line, plain, read_yaml, texts_of
from fvl_lightning.core.errors import ConfigError

OF_SCRATCH = ("model", "tokenizer", "chat_template", "prompt_ids")
"""Fields that make a model from scratch: a later layer that names `pretrained` replaces them where there is `model`."""


def parse_override(text: str, origin: str = COMMAND_LINE) -> dict[str, Any]:
    """Parses `a.b=1` into `{"a": {"b": 1}}`; the value is YAML."""
    return plain(parse_scalars(text, origin))


def override(key: str, value: Any) -> str:
    """Returns `key=value`, which reads back as the value; Scalars keep their characters."""
    return f"{key}={one_line(value)}"


def parse_scalars(word: str, origin: str) -> dict[str, Any]:
    """Parses an override like `parse_override`, and keeps Scalars."""
    key, equals, text = word.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"'{word}'{in_file(origin)} is not key=value, such as trainer.max_steps=20")
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        hint = "; quote a value that has brackets in it, as in \"key=['a[b]']\"" if text.count("[") > 1 else ""
        raise ConfigError(f"the value of '{word}'{in_file(origin)} is not valid YAML{hint}") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


@dataclass
class MergedLayers:
    """The result of merging layers.

    Attributes:
        values: plain values.
        origins: where each dotted key was written last.
        texts: the characters of the plain scalars among the values.
        override_origins: where overrides are written; none of them may be lost.
        alternatives: {dotted key: the key beside it that says the same in another way}; the later of both counts.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    override_origins: Set[str] = frozenset()
    alternatives: Mapping[str, str] = field(default_factory=dict)

    def add(self, layer: Mapping[str, Any], slots: Set[str], origin: str) -> None:
        """Adds a layer over the others; a slot with another name replaces the slot."""
        for key, written in layer.items():
            value = written
            if key in slots and plain(value) is not None:
                # `fusion.hidden=3` on the command line has no name: it changes the fusion that is already chosen.
                named = not isinstance(value, Mapping) or "name" in value
                value = slot_entry(value, key + in_file(origin)) if named else dict(value)
                if named and self.values.get(key) is not None and self.values[key].get("name") != value["name"]:
                    self._refuse_lost_override(key, value["name"], origin)
                    self.values.pop(key)
                    self._forget(key)
            self._set(self.values, key, value, key, origin)

    def _refuse_lost_override(self, slot: str, name: str, origin: str) -> None:
        """Raises ConfigError for an override of a field whose slot is replaced by a later override."""
        overridden = [path for path, place in self.origins.items() if place in self.override_origins]
        fields = [path for path in overridden if path.startswith(f"{slot}.") and path != f"{slot}.name"]
        if fields and origin in self.override_origins:
            where = fields[0] + in_file(self.origins[fields[0]])
            raise ConfigError(
                f"{where} is lost: {slot}={name} after it replaces the whole {slot}; write {slot}={name} first"
            )

    def _set(self, into: dict[str, Any], key: str, value: Any, path: str, origin: str) -> None:
        self.origins[path] = origin
        if path in self.alternatives and plain(value) is not None:
            self._replace(into, self.alternatives[path], path, origin)
        if isinstance(value, Mapping) and value and isinstance(into.get(key), dict):
            target = into[key]
        else:
            self._forget(path)
            # An empty mapping replaces the old one, so that `prompts: {}` has an effect.
            target = into[key] = {} if isinstance(value, Mapping) else plain(value)
        if isinstance(value, Mapping):
            if plain(value.get("pretrained")) is not None and target.get("model"):
                for scratch in OF_SCRATCH:
                    if self.origins.get(f"{path}.{scratch}") != origin:
                        target.pop(scratch, None)
                        self._forget(f"{path}.{scratch}")
            for inner, inner_value in value.items():
                self._set(target, inner, inner_value, f"{path}.{inner}", origin)
        else:
            self.texts |= texts_of(value, path)

    def _replace(self, into: dict[str, Any], other: str, path: str, origin: str) -> None:
        """Removes the alternative of a key if an earlier layer wrote it; ConfigError if both are overrides."""
        other_path = ".".join([*path.split(".")[:-1], other])
        if other_path not in self.origins or into.get(other) is None:
            return
        if origin in self.override_origins and self.origins[other_path] in self.override_origins:
            raise ConfigError(f"{path} and {other_path}{in_file(origin)}: one replaces the other; give one of them")
        if self.origins[other_path] != origin:
            into.pop(other)
            self._forget(other_path)

    def _forget(self, path: str) -> None:
        """Removes the characters of replaced values."""
        for known in [known for known in self.texts if known == path or known.startswith(f"{path}.")]:
            del self.texts[known]


def slot_entry(entry: Any, where: str) -> dict[str, Any]:
    """Returns a slot's entry as a mapping with `name`; ConfigError for anything but a name or such a mapping."""
    if isinstance(entry, str):
        return {"name": entry}
    if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
        return dict(entry)
    raise ConfigError(f"{where}: expected a name or a mapping with `name`, found {entry!r}")
