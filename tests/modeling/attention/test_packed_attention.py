"""Attention over packed rows without a dense mask: the outputs and gradients of single documents, for every family."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from datamodules.batching.collate import _boundaries
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.attention import kernels
from fvl_lightning.modeling.attention.choice import use_attention
from fvl_lightning.modeling.attention.documents import SHORT, plan_batches
from fvl_lightning.modeling.attention.kernels import document_inputs
from fvl_lightning.modeling.packing import check_packing
from fvl_lightning.training.distributed.block_transforms import checkpoint_activations
from tests.modeling.architectures import CONTAMINATED, EXACT, FAMILIES
from tests.modeling.test_packing import (
    DOCUMENTS,
    FLOAT32,
    FLOAT64,
    GRADIENT,
    LENGTH,
    ROWS,
    Model,
    documents,
    largest_difference,
    model_of,
    packed,
)

OWN = ("falcon", "stablelm", "gemma2")
"""Families with an attention of their own, and one with transformers' eager attention."""
SERVED = {name: config for name, config in {**EXACT, **FAMILIES}.items() if name not in OWN}
GROUPED = {**EXACT["qwen2-window"], "num_attention_heads": 6, "num_key_value_heads": 2, "hidden_size": 24}
"""Three heads of queries for one of keys, and a window in one of two layers."""
BFLOAT16 = 2e-2
"""The largest relative difference (Euclidean) of gradients in bfloat16 from those of a dense mask, also in bfloat16."""


def boundaries() -> dict[str, Any]:
    """The documents of `packed`, and the padding of each row as another one."""
    lengths = [[len(DOCUMENTS[k]) for k in row] for row in ROWS]
    runs = [0] + [run for row in lengths for run in (*row, LENGTH - sum(row))]
    return document_inputs(torch.tensor(runs).cumsum(0).int(), LENGTH)


def by(way: str, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Model:
    model = model_of(config, dtype=dtype)
    use_attention(model, way)
    return model


def gradients(model: Model, *outputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    torch.stack([output.loss_sum for output in outputs]).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SERVED)
def test_each_document_sees_itself_alone(name: str) -> None:
    model = by("documents", SERVED[name])
    assert largest_difference(model, packed(), **boundaries()) < FLOAT32
    check_packing(model)


@pytest.mark.parametrize("name", ["opt", "bert-decoder"])
def test_models_that_make_no_mask_of_positions_can_be_packed(name: str) -> None:
    model = by("documents", CONTAMINATED[name])
    assert largest_difference(model, packed(), **boundaries()) < FLOAT32
    check_packing(model)
    with pytest.raises(ConfigError, match="documents in one row see each other"):
        check_packing(model, with_boundaries=False)


def test_a_convolution_across_documents_is_refused_as_before() -> None:
    with pytest.raises(ConfigError, match=r"^data\.packing: documents in one row see each other"):
        check_packing(by("documents", CONTAMINATED["lfm2"]))


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3-window", "grouped"])
def test_gradients_are_sums_over_the_documents(name: str) -> None:
    model = by("documents", GROUPED if name == "grouped" else EXACT[name], torch.float64)
    together = packed().outputs(model, labels=True, **boundaries())
    found = gradients(model, together)
    alone = [document.outputs(model, labels=True) for document in documents()]
    wanted = gradients(model, *alone)
    torch.testing.assert_close(together.loss_sum, sum(output.loss_sum for output in alone), atol=GRADIENT, rtol=0)
    assert found.keys() == wanted.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], atol=GRADIENT, rtol=0, msg=key)


def test_bfloat16_rounds_as_with_a_dense_mask() -> None:
    model = by("documents", GROUPED)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, packed().outputs(model, labels=True, **boundaries()))
        use_attention(model, "sdpa")
        wanted = gradients(model, packed().outputs(model, labels=True))
    norms = [torch.stack([value.norm() for value in values]).norm() for values in (
        [found[key] - wanted[key] for key in wanted], wanted.values())]
    assert 0 < norms[0] / norms[1] < BFLOAT16


@pytest.mark.parametrize("name", ["llama", "grouped"])
def test_flex_attention_gives_the_same_outputs(name: str) -> None:
    model = by("flex", GROUPED if name == "grouped" else EXACT[name])
    assert largest_difference(model, packed(), **boundaries()) < FLOAT32
    check_packing(model)


def reference(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, **options: Any) -> Tensor:
    """torch's varlen_attn by its documentation, for CPUs: tokens [T, heads, D], and windows of keys to the left."""
    starts, ends = bounds[0][:-1].tolist(), bounds[0][1:].tolist()
    assert bounds[0].dtype == torch.int32
    assert bounds[0] is bounds[1]
    assert bounds[2] == bounds[3] >= max(end - start for start, end in zip(starts, ends, strict=True))
    left, right = options["window_size"]
    assert right == 0
    assert options["enable_gqa"] == (query.shape[1] != key.shape[1])
    found = []
    for start, end in zip(starts, ends, strict=True):
        back = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (back >= 0) & ((back <= left) | (left < 0))
        heads_first = [tensor[start:end].transpose(0, 1) for tensor in (query, key, value)]
        inputs = {"attn_mask": seen, "scale": options["scale"], "enable_gqa": options["enable_gqa"]}
        found.append(scaled_dot_product_attention(*heads_first, **inputs).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("name", ["llama", "grouped"])
def test_varlen_gets_its_arguments(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and gradients, in bfloat16, by what torch's documentation says of its kernel, which needs a GPU."""
    dtypes = []

    def varlen_attn(*inputs: Any, **options: Any) -> Tensor:
        dtypes.append([tensor.dtype for tensor in inputs[:3]])
        return reference(*inputs, **options)

    monkeypatch.setattr(kernels, "varlen_attn", varlen_attn)
    model = by("varlen", GROUPED if name == "grouped" else EXACT[name])
    check_packing(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, packed().outputs(model, labels=True, **boundaries()))
        use_attention(model, "sdpa")
        wanted = gradients(model, packed().outputs(model, labels=True))
    assert {dtype for each in dtypes for dtype in each} == {torch.bfloat16}
    differences = torch.stack([(found[key] - wanted[key]).norm() for key in wanted]).norm()
    assert differences / torch.stack([value.norm() for value in wanted.values()]).norm() < BFLOAT16


def test_recomputed_blocks_have_the_same_gradients() -> None:
    """A recomputation in the backward pass begins after the forward pass has ended."""
    model = by("documents", EXACT["phi3-window"], torch.float64)
    wanted = gradients(model, packed().outputs(model, labels=True, **boundaries()))
    checkpoint_activations(model.language_model.blocks())
    output = packed().outputs(model, labels=True, **boundaries())
    with torch.no_grad():
        documents()[0].outputs(model)  # another pass in between
    found = gradients(model, output)
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, atol=FLOAT64, rtol=0, msg=key)


def test_dropout_is_drawn_in_training_only() -> None:
    model = by("documents", {**EXACT["gpt2"], "attn_pdrop": 0.5})
    model.eval()
    first, again = (packed().outputs(model, labels=True, **boundaries()).loss_sum for _ in range(2))
    assert torch.equal(first, again)
    model.train()
    first, again = (packed().outputs(model, labels=True, **boundaries()).loss_sum for _ in range(2))
    assert not torch.equal(first, again)


# Rows that are not packed, and what is refused.


@pytest.mark.parametrize("name", ["llama", "qwen2-window"])
def test_other_rows_have_the_bits_of_sdpa(name: str) -> None:
    """Padded on the left with a mask, generated with a cache, packed without boundaries."""
    found = []
    for way in ("sdpa", "documents", "varlen"):
        model = by(way, EXACT[name])
        ids = torch.tensor([[1, 1, 5, 6, 7], [8, 9, 10, 11, 12]])
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
            masked = packed().outputs(model).logits
        written = model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
        found.append((logits, masked, written))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"cu_seq_lens_q": None}, "no document boundaries"),
        ({"softcap": 30.0}, "softcap"),
        ({"is_causal": False}, "no causal attention"),
    ],
)
def test_an_attention_that_would_mix_documents_is_an_error(changes: dict[str, Any], problem: str) -> None:
    inputs = torch.randn(3, 1, 2, 4, 8).unbind()
    bounds = document_inputs(torch.tensor([0, 4], dtype=torch.int32), 4)
    mask = torch.empty(1, 1, 0, 0, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"^Identity gives {problem} to an attention over packed documents"):
        kernels.attend(kernels.documents_attention, nn.Identity(), *inputs, mask, **bounds | changes)


def test_boundaries_that_leave_tokens_out_are_an_error() -> None:
    inputs = torch.randn(3, 1, 2, 4, 8).unbind()
    bounds = document_inputs(torch.tensor([0, 1, 3], dtype=torch.int32), 2)
    with pytest.raises(ValueError, match="the documents have 3 tokens, and the rows 4"):
        kernels.attend(kernels.documents_attention, nn.Identity(), *inputs, torch.empty(1, 1, 0, 0), **bounds)


def test_the_mask_of_no_elements_cannot_be_applied() -> None:
    inputs = torch.randn(3, 1, 2, 4, 8).unbind()
    mask = kernels.without_mask(boundaries(), "fvl_documents", torch.device("cpu"))
    with pytest.raises(RuntimeError):
        scaled_dot_product_attention(*inputs, attn_mask=mask)
    assert kernels.without_mask(boundaries(), "sdpa", torch.device("cpu")) is None
    assert kernels.without_mask({}, "fvl_documents", torch.device("cpu")) is None


# Batches of documents.


def lengths() -> Iterator[list[int]]:
    generator = torch.Generator().manual_seed(0)
    yield from ([5], [7, 7, 7], [1, 2, 3], [300, 1, 290, 60, 61, 3], [1] * 9 + [SHORT + 9])
    yield torch.randint(1, 400, (60,), generator=generator).tolist()


@pytest.mark.parametrize("sizes", lengths(), ids=lambda sizes: f"{len(sizes)} documents")
def test_tokens_come_back_from_batches_and_padding_is_little(sizes: list[int]) -> None:
    batches = plan_batches(torch.tensor([0, *sizes]).cumsum(0).numpy())
    tokens = torch.randn(sum(sizes), 2, 3, dtype=torch.float64, requires_grad=True)
    parts = batches.gathered(tokens)
    assert [part.shape[:2] for part in parts] == list(batches.shapes)
    real = torch.cat([part.new_ones(shape).flatten() for part, shape in zip(parts, batches.shapes, strict=True)])
    assert torch.equal(batches.scattered(list(parts)), tokens)
    squares = sum(count * longest**2 for count, longest in batches.shapes)
    assert squares <= 2 * sum(max(size, SHORT) ** 2 for size in sizes)
    assert len(real) >= sum(sizes)
    weights = torch.randn(sum(sizes), 2, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((batches.scattered([3 * part for part in parts]) * weights).sum(), tokens)
    torch.testing.assert_close(gradient, 3 * weights)


def test_padding_is_cut_into_documents_that_are_not_longer() -> None:
    bounds, longest = _boundaries([[[1] * 5, [1] * 3], [[1] * 2], [[1] * 8]])
    assert bounds.tolist() == [0, 5, 8, 10, 16, 24]
    assert (bounds.dtype, longest) == (torch.int32, 128)
    assert _boundaries([[[1] * 130, [1] * 300], [[1] * 10]])[0].tolist() == [0, 130, 430, 440, 740, 860]
    assert _boundaries([[[1] * 130, [1] * 300]])[1] == 384
