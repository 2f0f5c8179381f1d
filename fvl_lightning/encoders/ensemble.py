"""An ensemble of encoders on the same images, each with its own size, normalisation, grid and sources.

    encoder:
      name: ensemble
      members:
        florence: {name: florence2, pretrained: ..., sources: [davit, ocr]}
        clip: {name: hf_vision, pretrained: ..., sources: [layer_23]}

The sources are those of the members in order, named `<member>_<source>`: florence_davit, florence_ocr, clip_layer_23.
Images have the size and normalisation of the largest member (the first of several); the other members get them resized
(bicubic, antialiased) and normalised again.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
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
"""The name of a member, which is part of the names of parameters, files and metrics."""


@register("encoder", "ensemble")
class EnsembleEncoder(Encoder):
    """Several encoders in parallel, with the sources of all; the model resamples these to one grid."""

    @dataclass
    class Config:
        """Fields of the encoder."""

        members: dict[str, Any] = field(default_factory=dict, metadata={"slots": "encoder"})
        """{member's name: encoder}. An encoder is written as in the slot `encoder`: {name: <registered>, <fields>}."""
        order: list[str] = field(default_factory=list)
        """All members, in the order of fusion; empty for the order in which they are written."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.members = nn.ModuleDict()
        for name in config.order:
            with _name_member_in_errors(name):
                self.members[name] = config.members[name].component(config.members[name].config)
        largest = max(self._members(), key=lambda member: member.image_size)
        self.image_size, self.mean, self.std = largest.image_size, largest.mean, largest.std
        # Two members may have the same prompt.
        self.tasks = tuple(dict.fromkeys(task for member in self._members() for task in member.tasks))
        named = [
            (f"{name}_{source}", spec)
            for name, member in zip(self.members, self._members(), strict=True)
            for source, spec in member.specs.items()
        ]
        self.specs = dict(named)
        if len(self.specs) < len(named):
            twice = next(source for source, _ in named if [other for other, _ in named].count(source) > 1)
            raise ConfigError(f"encoder.members: two sources would have the name {twice}; rename a member")

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """Resolves each member; a ConfigError names the member."""
        if not config.members:
            raise ConfigError("encoder.members: it is empty, name at least one encoder")
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
            with _name_member_in_errors(name):
                resolved[name] = dataclasses.replace(choice, config=choice.component.resolve(choice.config))
        return dataclasses.replace(config, members=resolved, order=order)

    def load_pretrained(self) -> None:
        """Loads the weights of each member."""
        for name, member in zip(self.members, self._members(), strict=True):
            with _name_member_in_errors(name):
                member.load_pretrained()

    def feature_state(self) -> dict[str, Tensor]:
        """Returns the tensors of all members."""
        return {
            f"members.{name}.{key}": value
            for name, member in zip(self.members, self._members(), strict=True)
            for key, value in member.feature_state().items()
        }

    def blocks(self) -> list[nn.Module]:
        """Returns the blocks of all members, in order."""
        return [block for member in self._members() for block in member.blocks()]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {source: [I, N, D]}, in the order of the members and their sources, for images [I, 3, P, P]."""
        return {
            f"{name}_{source}": feature
            for name, member in zip(self.members, self._members(), strict=True)
            for source, feature in member(self._adapt_images(member, images)).items()
        }

    def on_demand(self, images: Tensor) -> Callable[[str, Tensor], Tensor]:
        """Returns a function (source, rows) -> [R, N, D]; a member runs when one of its sources is asked."""
        asked: dict[str, Callable[[str, Tensor], Tensor]] = {}
        owners = {
            f"{name}_{source}": (name, source)
            for name, member in zip(self.members, self._members(), strict=True)
            for source in member.specs
        }

        def source(name: str, rows: Tensor) -> Tensor:
            owner, its_source = owners[name]
            if owner not in asked:
                member: Any = self.members[owner]
                asked[owner] = member.on_demand(self._adapt_images(member, images))
            return asked[owner](its_source, rows)

        return source

    def _members(self) -> Iterator[Any]:
        return iter(self.members.values())

    def _adapt_images(self, member: Any, images: Tensor) -> Tensor:
        """Returns images [I, 3, P, P] with the size and normalisation of `member`; the same tensor if both agree."""
        same_size = member.image_size == self.image_size
        if same_size and (member.mean, member.std) == (self.mean, self.std):
            return images
        # Antialiasing is not implemented for bfloat16.
        pixels = images.to(torch.promote_types(images.dtype, torch.float32))
        pixels = pixels * _per_channel(self.std, pixels) + _per_channel(self.mean, pixels)
        if not same_size:
            side = (member.image_size, member.image_size)
            pixels = nn.functional.interpolate(pixels, side, mode="bicubic", align_corners=False, antialias=True)
            pixels = pixels.clamp(0, 1)  # bicubic interpolation overshoots; image libraries clamp too
        pixels = (pixels - _per_channel(member.mean, pixels)) / _per_channel(member.std, pixels)
        return pixels.to(images.dtype)


def _per_channel(values: tuple[float, float, float], like: Tensor) -> Tensor:
    """Returns values per channel as [3, 1, 1]."""
    return like.new_tensor(values).view(3, 1, 1)


@contextmanager
def _name_member_in_errors(member: str) -> Iterator[None]:
    """Replaces `encoder` in the errors of a member by the member's name."""
    try:
        yield
    except ConfigError as error:
        message = str(error)
        own = message.startswith(("encoder.", "encoder:"))
        inside = message.removeprefix("encoder") if own else f": {message}"
        raise ConfigError(f"encoder.members.{member}{inside}") from None
