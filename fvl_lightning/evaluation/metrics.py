"""Metrics of answers."""

from collections.abc import Iterable
from typing import Any

import torch
from torchmetrics import Metric


class KindAccuracy(Metric):
    """Accuracy over all questions, per kind, and macro-averaged over kinds."""

    full_state_update = False

    def __init__(self, kinds: Iterable[str]) -> None:
        super().__init__()
        self.kinds = sorted(kinds)
        self.add_state("right", torch.zeros(len(self.kinds), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("asked", torch.zeros(len(self.kinds), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, kind: str, right: bool) -> None:
        """Counts one answer."""
        index = self.kinds.index(kind)
        self.right[index] += right
        self.asked[index] += 1

    def compute(self) -> dict[str, Any]:
        """{"macro", "overall", "by_kind": {kind: accuracy}}, over the kinds that were asked."""
        asked = {kind: int(n) for kind, n in zip(self.kinds, self.asked, strict=True) if n > 0}
        by_kind = {kind: int(self.right[self.kinds.index(kind)]) / n for kind, n in asked.items()}
        overall = int(self.right.sum()) / max(1, int(self.asked.sum()))
        return {"macro": sum(by_kind.values()) / max(1, len(by_kind)), "overall": overall, "by_kind": by_kind}


def normalised(text: str) -> str:
    """Lower case, white space folded, without a final full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()
