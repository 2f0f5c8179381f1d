"""Weights of planted sources, and gradients by source against a direct formula."""

from typing import Any

import pytest
import torch

from fvl_lightning.attribution.inside.gates import source_gates, weights_of_questions
from fvl_lightning.attribution.inside.gates_section import gates_section
from fvl_lightning.attribution.inside.gradients import first_rows, source_gradients
from fvl_lightning.attribution.inside.gradients_section import section_of_gradients
from fvl_lightning.attribution.knock_out.section import knock_out_section
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.inference.source_weight_maps import weights_of_sources
from fvl_lightning.reporting.section import PER_SOURCE
from tests.attribution.planted import CLASS_OF, planted_run
from tests.tiny_models import pixels, rows, tiny_model

COPIES = {"signal": 0.5, "copy": 0.5, "noise": 0.0, "hiss": 0.0}


def test_two_copies_share_the_weight_of_which_none_is_needed_and_the_report_says_so() -> None:
    opened = planted_run(COPIES)
    gates = source_gates(opened)
    assert gates is not None
    for weights in (gates.overall, *gates.by_kind.values()):
        assert {source: weight.value for source, weight in weights.items()} == pytest.approx(COPIES)
    section = gates_section(opened)
    assert set(section.figures) == {"gates_overall", "gates_kinds", "gates_maps"}
    assert section.values[PER_SOURCE] == pytest.approx(COPIES)
    knocked_out = knock_out_section(opened)
    assert knocked_out.values[PER_SOURCE] == dict.fromkeys(COPIES, 0.0)
    assert knocked_out.paragraphs[-1] == (
        "A weight is not use: the fusion gives `signal` (50%) and `copy` (50%) at least an equal share of its weight, "
        "but no loss is shown without either. Equal copies share a weight in this way, and each replaces the other."
    )
    assert sorted(opened.encoder.images) == list(range(len(CLASS_OF))), "both sections share one pass"


@pytest.mark.parametrize("fusion", [{"name": "moe", "top": 2}, {"name": "gated", "condition": "question"}])
def test_weights_of_a_batch_are_those_of_single_images(fusion: dict[str, Any]) -> None:
    model, images = tiny_model(3, fusion=fusion), pixels(3)
    asked = torch.arange(4, 10).view(3, 2) if model.conditioned else None
    with torch.no_grad():
        encoded = model.encoder(images)
    together = weights_of_sources(model, encoded, asked)
    for row, found in enumerate(together):
        one = {name: x[row : row + 1] for name, x in encoded.items()}
        (alone,) = weights_of_sources(model, one, None if asked is None else asked[row : row + 1])
        assert found.weights == pytest.approx(alone.weights, abs=1e-6)
        assert sum(found.weights.values()) == pytest.approx(1, abs=1e-5)
    assert together[0].weights != together[1].weights


def test_a_fusion_without_weights_says_so_in_a_sentence() -> None:
    opened = planted_run(COPIES)
    forward = opened.built.model.fusion.forward

    def without_diagnostics(sources: Any) -> Any:
        fused = forward(sources)
        fused.diagnostics = {}
        return fused

    opened.built.model.fusion.forward = without_diagnostics
    assert weights_of_questions(opened, opened.questions)[0].weights == {}
    section = gates_section(opened)
    assert list(section.paragraphs) == ["The fusion gated does not weigh its sources: there are no weights to show."]
    assert not section.figures


def test_shares_are_those_of_the_gradient_by_the_direct_formula() -> None:
    model, batches = tiny_model(3, fusion="gated", normalize=True), [rows(3), rows(2, seed=1)]
    found = source_gradients(model, batches)
    sources = list(model.alignment.sources)
    squares, products, signed, tokens = torch.zeros(4), torch.zeros(4), torch.zeros(4), 0
    for batch in batches:
        with torch.no_grad():
            aligned = model.alignment(model.encoder(batch.images))
        for row in range(len(batch.keys)):  # the loss of each row by itself, from its logits
            leaves = type(aligned)({name: x[row : row + 1].clone().requires_grad_() for name, x in aligned.items()})
            logits = model(batch.token_ids[row : row + 1], image_sources=leaves, use_cache=False).logits
            labels = batch.labels[row, 1:]
            loss = torch.nn.functional.cross_entropy(
                logits[0, :-1], labels, ignore_index=IGNORE_INDEX, reduction="sum"
            )
            gradients = torch.autograd.grad(loss, [leaves[name] for name in sources])
            squares += torch.stack([g.square().sum() for g in gradients])
            terms = [leaves[name].detach() * g for name, g in zip(sources, gradients, strict=True)]
            products += torch.stack([term.abs().sum() for term in terms])
            signed += torch.stack([term.sum() for term in terms])
            tokens += int((labels != IGNORE_INDEX).sum())
    assert found.tokens == tokens
    assert (found.rows, found.images) == (5, 5)
    norms = squares.sqrt()
    for table, right in (
        (found.share, norms / norms.sum()),
        (found.input_share, products / products.sum()),
        (found.first_order, -signed / tokens),
    ):
        assert [table[name].value for name in sources] == pytest.approx(right.tolist(), rel=1e-4, abs=1e-7)
    assert sum(share.value for share in found.share.values()) == pytest.approx(1)
    assert sum(share.value for share in found.input_share.values()) == pytest.approx(1)
    section = section_of_gradients(found)
    assert section.values[PER_SOURCE] == {name: found.input_share[name].value for name in sources}


def test_rows_are_taken_until_there_are_enough() -> None:
    batches = [rows(3, seed=seed) for seed in range(4)]
    assert list(first_rows(iter(batches), 5)) == batches[:2]
