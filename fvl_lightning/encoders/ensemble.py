"""Several encoders on the same images, each with its own size, normalisation, grid and sources.

    encoder:
      name: ensemble
      members:
        florence: {name: florence2, pretrained: ..., sources: [davit, ocr]}
        clip: {name: hf_vision, pretrained: ..., sources: [layer_23]}

The sources are the members' in order, as `<member>_<source>`: florence_davit, florence_ocr, clip_layer_23. Images come
as the largest member wants them (the first of several as large), which gets them as they are; the others get them
resized (bicubic, antialiased) and normalised anew.
"""

import dataclasses
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.loading import Choice, choose
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import register
from fvl_lightning.encoders.base import Encoder

MEMBER = re.compile(r"[A-Za-z]\w*", re.ASCII)
"""The name of a member: a part of parameter, file and metric names."""


@register("encoder", "ensemble")
class EnsembleEncoder(Encoder):
    """Several encoders side by side; their sources together, resampled to one grid as any others are."""

    @dataclass
    class Config:
        """Fields of the encoder."""

        members: dict[str, Any] = field(default_factory=dict, metadata={"slots": "encoder"})
        """By names of one's own, each written as the slot is: {name: <registered>, <fields>}."""
        order: list[str] = field(default_factory=list)
        """Every member, in the order they are fused; as they are written when left empty."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.members = nn.ModuleDict()
        for name in config.order:
            with _blaming(name):
                self.members[name] = config.members[name].component(config.members[name].config)
        largest = max(self._members(), key=lambda member: member.image_size)
        self.image_size, self.mean, self.std = largest.image_size, largest.mean, largest.std
        # A prompt that two members have is one prompt.
        self.tasks = tuple(dict.fromkeys(task for member in self._members() for task in member.tasks))
        named = [
            (f"{name}_{source}", spec)
            for name, member in zip(self.members, self._members(), strict=True)
            for source, spec in member.specs.items()
        ]
        self.specs = dict(named)
        if len(self.specs) < len(named):
            twice = next(source for source, _ in named if [other for other, _ in named].count(source) > 1)
            raise ConfigError(f"encoder.members: two sources would be called {twice}; name a member otherwise")

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """Resolves each member; ConfigErrors say which."""
        if not config.members:
            raise ConfigError("encoder.members: there is none, name at least one encoder")
        order = config.order or list(config.members)  # a saved model's configuration is a JSON with its keys sorted
        if sorted(order) != sorted(config.members):
            raise ConfigError(
                f"encoder.order: expected each of {', '.join(config.members)} once, found {', '.join(order)}"
            )
        resolved = {}
        for name, entry in config.members.items():
            if not MEMBER.fullmatch(name) or hasattr(nn.ModuleDict, name):
                raise ConfigError(
                    f"encoder.members: '{name}' cannot name a member, take letters, digits and _, a letter first, and "
                    "no name that torch's modules use"
                )
            where = f"encoder.members.{name}"
            choice = entry if isinstance(entry, Choice) else choose("encoder", entry, where)
            with _blaming(name):
                resolved[name] = dataclasses.replace(choice, config=choice.component.resolve(choice.config))
        return dataclasses.replace(config, members=resolved, order=order)

    def load_pretrained(self) -> None:
        """Fills each member's weights."""
        for name, member in zip(self.members, self._members(), strict=True):
            with _blaming(name):
                member.load_pretrained()

    def feature_state(self) -> dict[str, Tensor]:
        """Those of the members."""
        return {
            f"members.{name}.{key}": value
            for name, member in zip(self.members, self._members(), strict=True)
            for key, value in member.feature_state().items()
        }

    def blocks(self) -> list[nn.Module]:
        """Those of the members, in order."""
        return [block for member in self._members() for block in member.blocks()]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[I, 3, P, P] -> {source: [I, N, D]}, in the order of the members and of their sources."""
        return {
            f"{name}_{source}": feature
            for name, member in zip(self.members, self._members(), strict=True)
            for source, feature in member(self._seen_by(member, images)).items()
        }

    def _members(self) -> Iterator[Any]:
        return iter(self.members.values())

    def _seen_by(self, member: Any, images: Tensor) -> Tensor:
        """Images [I, 3, P, P] in the size and normalisation of `member`; the very same tensor where both are ours."""
        same_size = member.image_size == self.image_size
        if same_size and (member.mean, member.std) == (self.mean, self.std):
            return images
        # Antialiasing is not written for bfloat16.
        pixels = images.to(torch.promote_types(images.dtype, torch.float32))
        pixels = pixels * _per_channel(self.std, pixels) + _per_channel(self.mean, pixels)
        if not same_size:
            side = (member.image_size, member.image_size)
            pixels = nn.functional.interpolate(pixels, side, mode="bicubic", align_corners=False, antialias=True)
            pixels = pixels.clamp(0, 1)  # bicubic goes beyond what a pixel can be; image libraries cut there too
        pixels = (pixels - _per_channel(member.mean, pixels)) / _per_channel(member.std, pixels)
        return pixels.to(images.dtype)


def _per_channel(values: tuple[float, float, float], like: Tensor) -> Tensor:
    """[3, 1, 1]."""
    return like.new_tensor(values).view(3, 1, 1)


@contextmanager
def _blaming(member: str) -> Iterator[None]:
    """An encoder speaks of itself as `encoder`; here it is one of the members."""
    try:
        yield
    except ConfigError as error:
        said = str(error)
        inside = said.removeprefix("encoder") if said.startswith(("encoder.", "encoder:")) else f": {said}"
        raise ConfigError(f"encoder.members.{member}{inside}") from None
