"""Choices that a YAML file offers by name, and of which one is taken:

    variants:
      recipe: {default: paper, paper: {trainer: {max_steps: 66}}, released: {trainer: {max_steps: 8}}}
      scale: {default: full, full: {}, tiny: {base: tiny.yaml}}

`recipe=released` on the command line takes one, or `recipe: released` in a file that has this one as its base. A choice
is written as a file is, `base:` included. It stands right behind the file that offers it: over what that file says,
under the files that have it as a base, and under the command line.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvl_lightning.core.config.files import Layer, in_file, layers_of
from fvl_lightning.core.config.yaml_text import Scalar, plain
from fvl_lightning.core.errors import ConfigError, unknown_name

VARIANTS = "variants"
DEFAULT = "default"
CHOSEN = "chosen"
"""The schema's field that records what was taken; a schema without it knows no variants."""

Offer = dict[str, dict[str, Mapping[str, Any]]]
"""{variant: {choice: what it says}} of one file."""


def choose_variants(files: Sequence[Layer], words: Sequence[Layer], fields: Collection[str]) -> list[Layer]:
    """All layers in order: those of the files, with the choices taken among them, and of the command line.

    Args:
        files: the layers of the files, farthest base first.
        words: the layers of the command line.
        fields: the keys of the schema.

    Raises:
        ConfigError: malformed variants, an unknown choice, or a key that is neither a field nor a variant.
    """
    if CHOSEN not in fields or not any(VARIANTS in values for _, values in files):
        return [*files, *words]
    taking = _Taking(fields)
    offers = [taking.offer(origin, plain_null(values.pop(VARIANTS, None))) for origin, values in files]
    for layer in [*files, *words]:
        taking.take(*layer)
    layers: list[Layer] = []
    for (origin, values), offer in zip(files, offers, strict=True):
        layers.append((origin, values))
        for name, choices in offer.items():
            layers += taking.taken(name, choices, origin)
    return [*layers, *words, (files[-1][0], {CHOSEN: taking.chosen})]


class _Taking:
    """What the files offer together, and what is taken of it."""

    def __init__(self, fields: Collection[str]) -> None:
        self.fields = fields
        self.allowed: dict[str, list[str]] = {}
        self.chosen: dict[str, str] = {}

    def offer(self, origin: str, variants: Any) -> Offer:
        """The variants of one file, checked; a default counts until something else is taken."""
        if not isinstance(variants, Mapping):
            raise ConfigError(f"{VARIANTS} in {origin}: expected names with their choices, found {variants!r}")
        offer: Offer = {}
        for name, choices in variants.items():
            where = f"{VARIANTS}.{name} in {origin}"
            if name in self.fields:
                raise ConfigError(f"{where}: '{name}' is a key already")
            if not isinstance(choices, Mapping) or not all(isinstance(choice, str) for choice in choices):
                raise ConfigError(f"{where}: expected `{DEFAULT}` and choices by name, found {choices!r}")
            offer[name] = {choice: plain_null(says) for choice, says in choices.items() if choice != DEFAULT}
            for choice, says in offer[name].items():
                if not isinstance(says, Mapping):
                    raise ConfigError(f"{VARIANTS}.{name}.{choice} in {origin}: expected keys, found {says!r}")
            known = self.allowed.setdefault(name, [])
            known += [choice for choice in offer[name] if choice not in known]
            if DEFAULT not in choices and name not in self.chosen:
                raise ConfigError(f"{where}: it has no `{DEFAULT}`, which is one of {', '.join(sorted(known))}")
            if DEFAULT in choices:
                self._choose(name, choices[DEFAULT], f"{VARIANTS}.{name}.{DEFAULT} in {origin}")
        return offer

    def take(self, origin: str, values: dict[str, Any]) -> None:
        """Moves what a layer takes out of it; every other key must be a field."""
        for key in list(values):
            if key in self.allowed:
                self._choose(key, values.pop(key), key + in_file(origin))
            elif key == CHOSEN:
                first = next(iter(self.allowed))
                raise ConfigError(
                    f"{CHOSEN}{in_file(origin)}: it only records what is taken, by {first}=... for instance"
                )
            elif key not in self.fields:
                raise unknown_name("key", key, {*self.fields, *self.allowed}, f"{key}{in_file(origin)}")

    def taken(self, name: str, choices: Mapping[str, Any], origin: str) -> list[Layer]:
        """The layers of what is taken of one variant; none where this file does not offer that choice."""
        says = choices.get(self.chosen[name])
        layers = layers_of(says, Path(origin)) if says else []
        for written_in, values in layers:
            for key in values:
                if key == VARIANTS or key in self.allowed:
                    raise ConfigError(f"{key} in {written_in}: a choice neither offers nor takes another")
        return layers

    def _choose(self, name: str, choice: Any, where: str) -> None:
        choice = choice.text if isinstance(choice, Scalar) else choice
        if not isinstance(choice, str) or choice not in self.allowed[name]:
            raise unknown_name(name, choice, self.allowed[name], where)
        self.chosen[name] = choice


def plain_null(says: Any) -> Any:
    """Nothing written is an empty mapping."""
    return {} if plain(says) is None else says
