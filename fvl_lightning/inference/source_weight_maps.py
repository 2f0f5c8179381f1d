"""The weight of each feature source in the fusion, for single images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    model, asked = loaded.model, question_inputs(loaded, [question]).get("question_ids")
    images = pixel_values.to(model.device, model.dtype).split(1)
    return [_weights(model.embed_images(x, question_ids=asked).diagnostics, 1, model)[0] for x in images]


@torch.no_grad()
def weights_of_sources(
    model: Any, sources: dict[str, Tensor], question_ids: Tensor | None = None
) -> list[SourceWeights]:
    """Returns the source weights of images whose features are there; see source_weights.

    Args:
        model: the model.
        sources: the encoder's output {source: [I, N, D]}, or AlignedSources.
        question_ids: [I, L], for a fusion that reads the question.
    """
    images = len(next(iter(sources.values())))
    diagnostics = model.embed_images(sources=sources, question_ids=question_ids).diagnostics
    if images > 1 and _means_alone(diagnostics):  # a fusion that reports the mean over images: one image at a time
        rows = range(images)
        return [
            weights_of_sources(
                model,
                type(sources)({name: x[row : row + 1] for name, x in sources.items()}),
                None if question_ids is None else question_ids[row : row + 1],
            )[0]
            for row in rows
        ]
    return _weights(diagnostics, images, model)


def _means_alone(diagnostics: dict[str, Tensor]) -> bool:
    names = [name.removeprefix("mass/") for name in diagnostics if name.startswith("mass/")]
    return any(f"map/{name}" not in diagnostics and f"weight/{name}" not in diagnostics for name in names)


def _weights(diagnostics: dict[str, Tensor], images: int, model: Any) -> list[SourceWeights]:
    """Returns the weights of each of I images from the diagnostics of a fusion over them."""
    grid, found = model.fusion.output.grid, {}
    for name in (name.removeprefix("mass/") for name in diagnostics if name.startswith("mass/")):
        if images == 1:
            found[name] = [float(diagnostics[f"mass/{name}"])]
        else:
            per_image = diagnostics.get(f"weight/{name}")
            found[name] = (diagnostics[f"map/{name}"].mean(1) if per_image is None else per_image).tolist()
    maps = {name.removeprefix("map/"): x.float().cpu() for name, x in diagnostics.items() if name.startswith("map/")}
    return [
        SourceWeights(
            {name: values[image] for name, values in found.items()},
            {name: _on_grid(values[image], grid) for name, values in maps.items() if grid},
        )
        for image in range(images)
    ]


def _on_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reshapes [N] to [h, w] and drops the tokens before the map."""
    return values[-grid[0] * grid[1] :].reshape(grid)
