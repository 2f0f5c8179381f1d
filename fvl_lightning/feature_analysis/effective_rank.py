"""Effective rank: how many directions features use."""

import torch
from torch import Tensor

from fvl_lightning.feature_analysis.similarity import centred


def effective_rank(features: Tensor) -> float:
    """Returns the effective rank of rows [M, D], or [I, M, D], from 1 to min(rows, D) (Roy and Vetterli, EUSIPCO 2007).

    exp(-sum_k p_k ln p_k), where p_k = s_k / sum_j s_j and s are the singular values of the rows without their mean:
    the exponential of the entropy of the normalised singular values, not of their squares. It is D for D directions of
    equal deviation, and 1 for a single one. NaN for constant features.
    """
    values = torch.linalg.svdvals(centred(features))
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
