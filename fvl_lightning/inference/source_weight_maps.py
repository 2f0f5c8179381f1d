"""The weight of each feature source in the fusion, for single images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fvl_lightning.inference.generation import question_inputs
from fvl_lightning.modeling.build import LoadedModel


@dataclass(frozen=True)
class SourceWeights:
    """The weights that a fusion gave its sources for one image.

    Attributes:
        weights: {source: weight in [0, 1]}, over the whole image.
        maps: {source: [h, w]}, the weight at each place of the image; empty where the fusion has none per token.
    """

    weights: dict[str, float]
    maps: dict[str, Tensor]


@torch.no_grad()
def source_weights(loaded: LoadedModel, pixel_values: Tensor, question: Sequence[int] = ()) -> list[SourceWeights]:
    """Returns the source weights of each image [I, 3, P, P]; they are empty for a fusion that does not weigh sources.

    They are the fusion's diagnostics `mass/<source>` and `map/<source>` (core/types.py).

    Args:
        loaded: the model.
        pixel_values: [I, 3, P, P].
        question: the token ids of the question that is asked, for a fusion that reads it.
    """
    asked = question_inputs(loaded, [question]).get("question_ids")
    grid, images = loaded.model.fusion.output.grid, []
    for image in pixel_values.to(loaded.model.device, loaded.model.dtype).split(1):
        diagnostics = loaded.model.embed_images(image, question_ids=asked).diagnostics
        weights = {name: float(value) for name, value in diagnostics.items() if name.startswith("mass/")}
        maps = {name: value[0].float().cpu() for name, value in diagnostics.items() if name.startswith("map/") and grid}
        images.append(
            SourceWeights(
                {name.removeprefix("mass/"): value for name, value in weights.items()},
                {name.removeprefix("map/"): _on_grid(value, grid) for name, value in maps.items()},
            )
        )
    return images


def _on_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reshapes [N] to [h, w] and drops the tokens before the map."""
    return values[-grid[0] * grid[1] :].reshape(grid)
