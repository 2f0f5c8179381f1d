"""Source weights of a model's fusion for the page of `fvl serve`: their mean, and pictures with maps drawn on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fvl_lightning.inference.source_weight_maps import SourceWeights
from fvl_lightning.modeling.build import LoadedModel

SIDE = 160
"""Longer side of a picture in the gallery, in pixels."""
FAINT, STRONG, OPACITY = (1.0, 0.84, 0.0), (0.84, 0.0, 0.24), 0.65
"""Colours of the smallest and the largest weight on a map, and how much of the picture the largest covers."""


@dataclass(frozen=True)
class WeightsPanel:
    """The content of the page's panel of source weights."""

    note: str
    means: dict[str, float] = field(default_factory=dict)
    """{source: its weight, as the mean over the pictures}; empty if the fusion does not weigh its sources."""
    gallery: list[tuple[Image.Image, str]] = field(default_factory=list)
    """(picture, caption): each picture as the encoder sees it, followed by its maps."""


NO_PICTURE = WeightsPanel("The weight of each feature source is shown here once there is a picture.")


def weights_panel(pixel_values: Tensor, weights: Sequence[SourceWeights], loaded: LoadedModel) -> WeightsPanel:
    """Returns the panel for images [I, 3, P, P] and their source weights."""
    fusion = loaded.model.config.fusion["name"]
    if not any(one.weights for one in weights):
        return WeightsPanel(f"The fusion {fusion} does not weigh its sources: there are no weights to show.")
    spec = loaded.model.image_spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    gallery = []
    for number, (image, one) in enumerate(zip(pixel_values, weights, strict=True), 1):
        picture = Image.fromarray(_as_bytes((image * std + mean).permute(1, 2, 0)))
        picture.thumbnail((SIDE, SIDE))
        values = ", ".join(f"{source} {weight:.1%}" for source, weight in one.weights.items())
        gallery.append((picture, f"picture {number}: {values}"))
        gallery += [(overlay(picture, map_), f"picture {number}, {source}") for source, map_ in one.maps.items()]
    means = {source: sum(one.weights[source] for one in weights) / len(weights) for source in weights[0].weights}
    return WeightsPanel(f"Weight of each source in the features that the fusion {fusion} makes.", means, gallery)


def overlay(picture: Image.Image, weights: Tensor) -> Image.Image:
    """Returns a picture with weights [h, w] in [0, 1] drawn over it, each over its place of the picture."""
    over = heat(weights).resize(picture.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


def heat(weights: Tensor) -> Image.Image:
    """Returns weights [h, w] in [0, 1] as h x w pixels: large ones are red, small ones transparent."""
    weight = weights[..., None].clamp(0, 1)
    colour = torch.lerp(torch.tensor(FAINT), torch.tensor(STRONG), weight)
    return Image.fromarray(_as_bytes(torch.cat([colour, OPACITY * weight], dim=-1)), "RGBA")


def _as_bytes(values: Tensor) -> NDArray[np.uint8]:
    """Returns values in [0, 1] as 0 to 255."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
