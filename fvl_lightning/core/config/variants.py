"""Variants: a YAML file defines named choices, of which one applies:

    variants:
      recipe: {default: paper, paper: {trainer: {max_steps: 66}}, released: {trainer: {max_steps: 8}}}
      scale: {default: full, full: {}, tiny: {base: tiny.yaml}}

`recipe=released` on the command line selects one, or `recipe: released` in a file that has this one as its base. A
choice is written like a file, `base:` included. Its layer comes directly after the file that defines it: it overrides
that file, and is overridden by files that have it as a base, and by the command line.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.core.config.base_files import Layer, in_file, layers_of
from fvl_lightning.core.config.yaml_text import Scalar, plain
from fvl_lightning.core.errors import ConfigError, unknown_name

VARIANTS = "variants"
DEFAULT = "default"
CHOSEN = "chosen"
"""The schema's field that records the selected choices; a schema without it has no variants."""

Offer = dict[str, dict[str, Mapping[str, Any]]]
"""{variant: {choice: its values}} of one file."""


def choose_variants(files: Sequence[Layer], overrides: Sequence[Layer], fields: Collection[str]) -> list[Layer]:
    """Returns the record of the choices, and the layers of files, each followed by its choices, and of overrides.

    Args:
        files: the layers of the files, the farthest base first.
        overrides: the layers of the command line.
        fields: the keys of the schema.

    Raises:
        ConfigError: malformed variants, an unknown choice, or a key that is neither a field nor a variant.
    """
    if CHOSEN not in fields or not any(VARIANTS in values for _, values in files):
        return [*files, *overrides]
    selection = _Selection(fields)
    offers = [selection.offer(origin, plain_null(values.pop(VARIANTS, None))) for origin, values in files]
    for layer in [*files, *overrides]:
        selection.select(*layer)
    layers: list[Layer] = []
    for (origin, values), offer in zip(files, offers, strict=True):
        layers.append((origin, values))
        for name, choices in offer.items():
            layers += selection.layers(name, choices, origin)
    return [(files[-1][0], {CHOSEN: selection.chosen}), *layers, *overrides]


class _Selection:
    """The choices of all files, and the selected ones."""

    def __init__(self, fields: Collection[str]) -> None:
        self.fields = fields
        self.allowed: dict[str, list[str]] = {}
        self.chosen: dict[str, str] = {}

    def offer(self, origin: str, variants: Any) -> Offer:
        """Checks and returns the variants of one file; a default applies until another choice is selected."""
        if not isinstance(variants, Mapping):
            raise ConfigError(f"{VARIANTS} in {origin}: expected names with their choices, found {variants!r}")
        offer: Offer = {}
        for name, choices in variants.items():
            where = f"{VARIANTS}.{name} in {origin}"
            if name in self.fields:
                raise ConfigError(f"{where}: '{name}' is a key already; rename it")
            if not isinstance(choices, Mapping) or not all(isinstance(choice, str) for choice in choices):
                raise ConfigError(f"{where}: expected `{DEFAULT}` and choices by name, found {choices!r}")
            offer[name] = {choice: plain_null(values) for choice, values in choices.items() if choice != DEFAULT}
            for choice, values in offer[name].items():
                if not isinstance(values, Mapping):
                    raise ConfigError(f"{VARIANTS}.{name}.{choice} in {origin}: expected keys, found {values!r}")
            known = self.allowed.setdefault(name, [])
            known += [choice for choice in offer[name] if choice not in known]
            if DEFAULT not in choices and name not in self.chosen:
                raise ConfigError(f"{where}: it has no `{DEFAULT}`, which is one of {', '.join(sorted(known))}")
            if DEFAULT in choices:
                self._choose(name, choices[DEFAULT], f"{VARIANTS}.{name}.{DEFAULT} in {origin}")
        return offer

    def select(self, origin: str, values: dict[str, Any]) -> None:
        """Removes the keys of a layer that select choices; every other key must be a field."""
        for key in list(values):
            if key in self.allowed:
                self._choose(key, values.pop(key), key + in_file(origin))
            elif key == CHOSEN:
                first = next(iter(self.allowed))
                raise ConfigError(
                    f"{CHOSEN}{in_file(origin)}: it only records selected choices; select one with {first}=..."
                )
            elif key not in self.fields:
                raise unknown_name("key", key, {*self.fields, *self.allowed}, f"{key}{in_file(origin)}")

    def layers(self, name: str, choices: Mapping[str, Any], origin: str) -> list[Layer]:
        """Returns the layers of one variant's selected choice; none where this file does not define that choice."""
        choice = choices.get(self.chosen[name])
        layers = layers_of(choice, Path(origin)) if choice else []
        for written_in, values in layers:
            for key in values:
                if key == VARIANTS or key in self.allowed:
                    raise ConfigError(f"{key} in {written_in}: a variant cannot define or select other variants")
        return layers

    def _choose(self, name: str, choice: Any, where: str) -> None:
        choice = choice.text if isinstance(choice, Scalar) else choice
        if not isinstance(choice, str) or choice not in self.allowed[name]:
            raise unknown_name(name, choice, self.allowed[name], where)
        self.chosen[name] = choice


def plain_null(values: Any) -> Any:
    """Returns an empty mapping for null, and other values unchanged."""
    return {} if plain(values) is None else values
