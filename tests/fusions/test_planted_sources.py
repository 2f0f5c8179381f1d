"""Fusions that weigh sources find the one of four that carries the label; the other three are noise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fvl_lightning.core import registry
from fvl_lightning.core.types import FeatureSpec
from tests.tiny_models import initialized

SPECS = {name: FeatureSpec(4, 8, (2, 2)) for name in ("noise_1", "noise_2", "planted", "noise_3")}
LABELS, STEPS = 4, 120


def draw(images: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Features of all sources, and the labels, which only `planted` shows."""
    generator = torch.Generator().manual_seed(seed)
    sources = {name: torch.randn(images, 4, 8, generator=generator) for name in SPECS}
    labels = torch.randint(LABELS, (images,), generator=generator)
    sources["planted"][..., :LABELS] += 3 * nn.functional.one_hot(labels, LABELS).unsqueeze(1)
    return sources, labels


@pytest.mark.parametrize(
    ("name", "fields", "rate"), [("gated", {}, 0.02), ("moe", {}, 0.02), ("moe", {"top": 1}, 0.05)]
)
def test_the_informative_source_is_found(name: str, fields: dict[str, Any], rate: float) -> None:
    """Without the noise, at least 99 % of the answers are the same, and probabilities differ by 0.005 in the mean."""
    component = registry.component("fusion", name)
    fusion: Any = initialized("fusion", component(component.Config(**fields), SPECS))
    head = nn.Linear(fusion.output.dim, LABELS)
    with torch.no_grad():
        head.weight.copy_(torch.randn(LABELS, fusion.output.dim, generator=torch.Generator().manual_seed(0)) / 4)

    def classify(sources: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        first = {key: sources[key] for key in fusion.routing_sources}
        fused = fusion(sources, **({"routes": fusion.route(first, None)} if fusion.routed else {}))
        return head(fused.features.mean(1)), fused.diagnostics

    optimizer = torch.optim.AdamW([*fusion.parameters(), *head.parameters()], lr=rate, weight_decay=0.0)
    for step in range(STEPS):
        sources, labels = draw(128, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(classify(sources)[0], labels).backward()
        optimizer.step()
    sources, labels = draw(512, STEPS)
    with torch.no_grad():
        logits, diagnostics = classify(sources)
        alone, _ = classify({key: x if key == "planted" else torch.zeros_like(x) for key, x in sources.items()})
    assert float(diagnostics["mass/planted"]) > 0.6
    assert float((logits.argmax(-1) == labels).float().mean()) > 0.98
    assert float((logits.argmax(-1) == alone.argmax(-1)).float().mean()) > 0.99
    assert float((logits.softmax(-1) - alone.softmax(-1)).abs().mean()) < 0.005
