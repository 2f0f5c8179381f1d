"""The share of a source's variance that another source does not explain, on images that the fit has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FOLDS = 5
STRENGTHS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties to choose from, as multiples of the mean eigenvalue of X'X."""


@dataclass(frozen=True)
class HeldOutFit:
    """The errors of predicting a source at the places of each image while that image is held out."""

    residual: Tensor
    """[I]: the squared error of each image, summed over places and channels."""
    total: Tensor
    """[I]: the squared deviation of each image from the mean of the fitted images at each place, summed likewise."""

    @property
    def unexplained(self) -> float:
        """The share 1 - R^2 = sum of residuals / sum of totals; above 1 where the prediction is worse than the mean."""
        total = float(self.total.sum())
        return float(self.residual.sum()) / total if total > 0 else float("nan")


def held_out_fits(
    base: Tensor, sources: Mapping[str, Tensor], groups: Sequence[int], folds: int = FOLDS
) -> dict[str, HeldOutFit]:
    """Returns {source: how well a linear map predicts it from `base` at the same place}.

    y = m_place + W (x - x_place): one matrix W for all places, and the means of the place, all from the fitted images.
    The images are divided into folds, by group. Each fold is predicted once: ridge regressions on the folds but this
    and the next are tried on the next, and the best penalty is fitted again on all folds but this.

    Args:
        base: [I, M, D], the features that explain.
        sources: {source: [I, M, E]}, the features to explain.
        groups: the group of each image, such as its sample, whose images are held out together.
        folds: the number of folds, at least 3; fewer groups make fewer folds.

    Raises:
        ValueError: there are fewer than three groups.
    """
    known = sorted(set(groups))
    if len(known) < 3:
        raise ValueError(f"{len(known)} groups of images cannot be divided into three folds")
    folds = min(folds, len(known))
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0)).tolist()
    fold_of = {known[group]: place % folds for place, group in enumerate(order)}
    fold = torch.tensor([fold_of[group] for group in groups])
    found = {name: (torch.zeros(len(fold)).double(), torch.zeros(len(fold)).double()) for name in sources}
    for held_out in range(folds):
        test, tried = fold == held_out, fold == (held_out + 1) % folds
        first, second = _Ridge(base[~test & ~tried]), _Ridge(base[~test])
        for name, y in sources.items():
            strength = first.best_strength(y[~test & ~tried], base[tried], y[tried])
            residual, total = found[name]
            residual[test], total[test] = second.errors(y[~test], base[test], y[test], strength)
    return {name: HeldOutFit(residual, total) for name, (residual, total) in found.items()}


class _Ridge:
    """Ridge regression on the features [I, M, D] of some images."""

    def __init__(self, x: Tensor) -> None:
        self.mean = x.double().mean(0)
        self.rows = (x.double() - self.mean).flatten(0, 1)
        values, self.vectors = torch.linalg.eigh(self.rows.T @ self.rows)
        self.values = values.clamp(min=0)

    def best_strength(self, y: Tensor, new_x: Tensor, new_y: Tensor) -> float:
        """Returns the penalty with the smallest error on new images; arguments as of `errors`."""
        errors = [float(self.errors(y, new_x, new_y, strength)[0].sum()) for strength in STRENGTHS]
        return STRENGTHS[errors.index(min(errors))]

    def errors(self, y: Tensor, new_x: Tensor, new_y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Returns the squared errors and squared deviations [J] of J new images, for the targets y [I, M, E]."""
        mean = y.double().mean(0)
        products = self.vectors.T @ (self.rows.T @ (y.double() - mean).flatten(0, 1))
        penalised = self.values + strength * self.values.mean().clamp(min=torch.finfo(torch.float64).tiny)
        weights = self.vectors @ (products / penalised.unsqueeze(1))
        deviation = new_y.double() - mean
        error = deviation - (new_x.double() - self.mean) @ weights
        return error.square().sum((1, 2)), deviation.square().sum((1, 2))
