"""Cross-modal retrieval: the place of the right item among all, sorted by similarity."""

import torch
from torch import Tensor

CUTOFFS = (1, 5, 10)
"""R@k is the share of queries with a right item among the first k."""
MAX_SCORES = 2**24
"""Similarities held at a time."""


@torch.no_grad()
def retrieval_ranks(queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor) -> Tensor:
    """Returns the rank [Q] of the most similar right item of each query, from 1.

    Items with the label of the query are right, so that equal captions stand for each other. Ties count against the
    query: a wrong item that is exactly as similar is before the right one. Vectors that are all equal therefore find
    nothing, and neither do those that are not finite.

    Args:
        queries: [Q, D].
        gallery: [G, D].
        query_labels: [Q].
        gallery_labels: [G]; each label of a query is among them.
    """
    ranks = []
    size = max(1, MAX_SCORES // max(1, len(gallery)))
    for part, labels in zip(queries.split(size), query_labels.split(size), strict=True):
        scores = part @ gallery.T
        right = labels[:, None] == gallery_labels[None]
        best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
        ranks.append(1 + (~right & ~(scores < best)).sum(1))
    return torch.cat(ranks) if ranks else query_labels.new_zeros(0)


def recalls(ranks: Tensor) -> dict[int, float]:
    """Returns {k: R@k} for CUTOFFS; NaN without queries."""
    return {k: float((ranks <= k).double().mean()) for k in CUTOFFS}
