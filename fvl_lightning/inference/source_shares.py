"""The weight of each source in the fusion, per image token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fvl_lightning.modeling.build import LoadedModel


@dataclass(frozen=True)
class SourceShares:
    """What a fusion took from each source for one image: shares in [0, 1], and where the fusion says so, per place.

    maps: {source: [h, w]} of the diagnostics `map/<source>` [I, N].
    """

    masses: dict[str, float]
    maps: dict[str, Tensor]


@torch.no_grad()
def source_shares(loaded: LoadedModel, pixel_values: Tensor) -> list[SourceShares]:
    """Of each of the images [I, 3, P, P]; empty ones for a fusion that does not weigh its sources."""
    grid, shares = loaded.model.fusion.output.grid, []
    for image in pixel_values.to(loaded.model.device, loaded.model.dtype).split(1):
        _, diagnostics = loaded.model.embed_images(image)
        masses = {name: float(value) for name, value in diagnostics.items() if name.startswith("mass/")}
        maps = {name: value[0].float().cpu() for name, value in diagnostics.items() if name.startswith("map/") and grid}
        shares.append(
            SourceShares(
                {name.removeprefix("mass/"): value for name, value in masses.items()},
                {name.removeprefix("map/"): _on_grid(value, grid) for name, value in maps.items()},
            )
        )
    return shares


def _on_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """[N] -> [h, w], without the tokens before the map."""
    return values[-grid[0] * grid[1] :].reshape(grid)
