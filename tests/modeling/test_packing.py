"""Packed documents give the outputs, loss and gradients of single documents; models that mix them are refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.outputs import FlorenceVLOutput
from fvl_lightning.modeling.packing import FLOAT32_TOLERANCE, check_causal, check_packing, is_packed
from tests.modeling.architectures import BIDIRECTIONAL, CONTAMINATED, EXACT
from tests.tiny_models import BOS, IMAGE, PAD, TOKENS, named_tensors, pixels, tiny_model

FLOAT32, FLOAT64, GRADIENT = 1e-5, 1e-10, 1e-9
MIXED_UP = 1e-3
"""What a document that sees another differs by at the very least."""

Model = FlorenceVLForConditionalGeneration
PICTURE = [IMAGE] * TOKENS
DOCUMENTS: list[list[int]] = [
    [BOS, *PICTURE, 7, 8, 9],
    [5, 6, *PICTURE, 10, *PICTURE, 11],
    [12],
    [BOS, 13, 14, 15, 16, 17, 18],
    [*PICTURE, 19, 20, 21],
]
"""Images first, in the middle, two in one, none at all; one of a single token."""
ROWS = [[0, 1], [2, 3, 4]]
LENGTH = 26
"""Longer than GPT-2's table of positions, and than the window and the original length of the others."""


@dataclass
class Row:
    """What a forward takes."""

    input_ids: Tensor
    position_ids: Tensor | None
    labels: Tensor
    pixel_values: Tensor | None

    def outputs(self, model: Model, labels: bool = False, **changes: Any) -> FlorenceVLOutput:
        images = None if self.pixel_values is None else self.pixel_values.to(model.dtype)
        fields = {"input_ids": self.input_ids, "position_ids": self.position_ids, "pixel_values": images}
        return model(**fields | ({"labels": self.labels} if labels else {"use_cache": False}) | changes)


def supervision(document: Sequence[int]) -> list[int]:
    """Labels of all words, the first of the document too: nothing comes before it."""
    return [IGNORE_INDEX if token == IMAGE else token for token in document]


def documents() -> list[Row]:
    """Each document in a row of its own."""
    found, images = [], pixels(4)
    for ids in DOCUMENTS:
        count = ids.count(IMAGE) // TOKENS
        own, images = images[:count], images[count:]
        found.append(Row(torch.tensor([ids]), None, torch.tensor([supervision(ids)]), own if count else None))
    return found


def packed(pad_positions: str = "zero") -> Row:
    """The same documents in two rows of one batch, pads behind them."""
    ids, positions, labels = [], [], []
    for row in ROWS:
        texts = [DOCUMENTS[k] for k in row]
        pads = LENGTH - sum(map(len, texts))
        ids.append([token for text in texts for token in text] + [PAD] * pads)
        tail = [0] * pads if pad_positions == "zero" else list(range(pads))
        positions.append([place for text in texts for place in range(len(text))] + tail)
        labels.append([label for text in texts for label in supervision(text)] + [IGNORE_INDEX] * pads)
    return Row(torch.tensor(ids), torch.tensor(positions), torch.tensor(labels), pixels(4))


def parts(logits: Tensor) -> list[Tensor]:
    """The documents' shares of a packed batch's logits."""
    found = []
    for row, members in enumerate(ROWS):
        lengths = [len(DOCUMENTS[k]) for k in members]
        found += logits[row, : sum(lengths)].split(lengths)
    return found


def model_of(text_config: dict[str, Any], attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Model:
    model = tiny_model(llama=text_config).to(dtype)
    model.language_model.model.set_attn_implementation(attention)
    return model


def largest_difference(model: Model, row: Row, **changes: Any) -> float:
    """Between a packed batch's logits and those of the documents alone."""
    with torch.no_grad():
        found = parts(row.outputs(model, **changes).logits)
        alone = [document.outputs(model).logits[0] for document in documents()]
    return max(float((one - other).abs().max()) for one, other in zip(found, alone, strict=True))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("attention", "dtype"), [("sdpa", "float64"), ("sdpa", "float32"), ("eager", "float32")])
def test_each_document_sees_itself_alone(name: str, attention: str, dtype: str) -> None:
    model = model_of(EXACT[name], attention, getattr(torch, dtype))
    assert largest_difference(model, packed()) < (FLOAT64 if dtype == "float64" else FLOAT32)


@pytest.mark.parametrize("name", EXACT)
def test_without_the_block_diagonal_mask_documents_mix(name: str) -> None:
    """The control: the same rows with what transformers makes a plain causal mask of."""
    model = model_of(EXACT[name])
    inner = model.language_model.forward

    def with_mask(embeddings: Tensor, **inputs: Any) -> Any:
        return inner(embeddings, **inputs | {"attention_mask": torch.ones(embeddings.shape[:2], dtype=torch.long)})

    def with_cache(embeddings: Tensor, **inputs: Any) -> Any:
        return inner(embeddings, **inputs | {"use_cache": True})

    for spoilt in (with_mask, with_cache):
        model.language_model.forward = spoilt
        assert largest_difference(model, packed()) > MIXED_UP, spoilt.__name__


@pytest.mark.parametrize("name", ["llama", "phi3-window", "qwen2", "gpt2", "gpt_neox"])
def test_loss_and_gradients_are_sums_over_the_documents(name: str) -> None:
    """The first word of a document is no target, though its label is set: the document alone has none either."""
    model = model_of(EXACT[name], dtype=torch.float64)
    together = packed().outputs(model, labels=True)
    together.loss_sum.backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = [document.outputs(model, labels=True) for document in documents()]
    total = torch.stack([output.loss_sum for output in alone]).sum()
    total.backward()
    torch.testing.assert_close(together.loss_sum, total, atol=GRADIENT, rtol=0)
    assert int(together.tokens) == sum(int(output.tokens) for output in alone) > 10
    assert int(together.correct) == sum(int(output.correct) for output in alone)
    wanted = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == wanted.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[key], atol=GRADIENT, rtol=0, msg=key)


def test_positions_of_pads_may_choose_the_frequencies() -> None:
    """longrope looks at the longest position of a batch: pads had better all stand at 0 than count up."""
    model = model_of(EXACT["phi3-longrope"])
    row = packed("counted")
    row.input_ids = torch.cat([row.input_ids, torch.full((2, 14), PAD)], dim=1)
    row.position_ids = torch.cat([row.position_ids, torch.arange(14).expand(2, -1)], dim=1)
    assert largest_difference(model, row) > MIXED_UP
    row.position_ids[:, LENGTH:] = 0
    assert largest_difference(model, row) < FLOAT32


# What would mix documents in silence is refused.


def test_packed_rows_take_no_mask_and_no_cache() -> None:
    model, row = model_of(EXACT["llama"]), packed()
    words = "position_ids that restart within a row .* need attention_mask=None"
    ones = torch.ones_like(row.input_ids)
    for labels in (False, True):
        with pytest.raises(ValueError, match=words):
            row.outputs(model, labels=labels, attention_mask=ones)
    with pytest.raises(ValueError, match=words):
        row.outputs(model, attention_mask=ones[:, None, None, :].expand(-1, -1, LENGTH, -1))
    with pytest.raises(ValueError, match=words):
        row.outputs(model, use_cache=True)
    with pytest.raises(ValueError, match=words):
        model.generate(row.input_ids, pixel_values=row.pixel_values, position_ids=row.position_ids, max_new_tokens=2)


def test_packed_rows_turn_the_default_cache_off() -> None:
    """`use_cache: true` is what most configurations say."""
    model = model_of(EXACT["llama"])
    assert model.language_model.model.config.use_cache
    assert largest_difference(model, packed(), use_cache=None) < FLOAT32
    assert packed().outputs(model, use_cache=None).past_key_values is None


@pytest.mark.parametrize(
    ("positions", "mask", "restarts"),
    [
        ([0, 1, 2, 3], None, False),
        ([5, 6, 7], None, False),
        ([0, 1, 0, 1], None, True),
        ([0, 0], None, True),
        ([0, 1, 0, 1], [1, 1, 1, 1], True),
        ([0, 0, 0, 1], [0, 0, 1, 1], False),
        ([1, 1, 0, 1], [0, 0, 1, 1], False),
        ([0, 1, 1, 1], [1, 1, 0, 0], False),
        ([3, 4], [0, 1, 1, 1, 1], False),
        ([0, 0, 1, 0], [0, 1, 1, 1], True),
    ],
)
def test_what_counts_as_packed(positions: list[int], mask: list[int] | None, restarts: bool) -> None:
    attention_mask = None if mask is None else torch.tensor([mask])
    assert is_packed(torch.tensor([positions]), attention_mask) is restarts


@pytest.mark.parametrize("name", ["llama", "qwen2-window"])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_with_pads_on_the_left_is_not_taken_for_packed(cache: str | None, name: str) -> None:
    """Positions restart behind such pads, and with a static cache masks come ready made, for windows as a dict."""
    model = model_of(EXACT[name], dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.language_model.model.model.layers.parameters():
            parameter.mul_(3)  # or one word would be repeated, whatever is seen
    ids = torch.tensor([[PAD, PAD, PAD, BOS, 5, 6], [BOS, 7, 8, 9, 10, 11]])
    how: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "disable_compile": True}
    alone = model.generate(ids[:1, 3:], attention_mask=torch.ones(1, 3).long(), **how)[0, 3:]
    how |= {"cache_implementation": cache} if cache else {}
    written = model.generate(ids, attention_mask=(ids != PAD).long(), **how)
    assert written[0, 6:].tolist() == alone.tolist()
    assert alone.unique().numel() > 2


# The self-tests.


@pytest.mark.parametrize("name", EXACT)
def test_models_that_pack_exactly_pass(name: str) -> None:
    model = model_of(EXACT[name])
    check_causal(model)
    check_packing(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONTAMINATED)
def test_models_whose_documents_mix_are_refused(name: str, dtype: str) -> None:
    model = model_of(CONTAMINATED[name], dtype=getattr(torch, dtype))
    check_causal(model)
    type_ = CONTAMINATED[name]["model_type"]
    with pytest.raises(ConfigError, match=f"^data.packing: .* language model {type_}; write data.packing=none"):
        check_packing(model)
    assert largest_difference(model, packed()) > MIXED_UP


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_models_that_see_later_tokens_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^language_model.model: {name} sees later tokens"):
        check_causal(model_of(BIDIRECTIONAL[name]))


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2"])
def test_rounding_is_not_taken_for_mixing(name: str) -> None:
    model = model_of(EXACT[name], dtype=torch.bfloat16)
    check_causal(model)
    check_packing(model)


def test_float32_is_held_to_float32() -> None:
    """A small difference, as a weak mask would make, is found, and where the training itself rounds to bfloat16 too."""
    model = model_of(EXACT["llama"])
    inner = model.language_model.forward

    def leak(embeddings: Tensor, **inputs: Any) -> Any:
        output = inner(embeddings, **inputs)
        output.last_hidden_state = output.last_hidden_state + 1e-3 * embeddings.mean(1, keepdim=True)
        return output

    model.language_model.forward = leak
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ConfigError, match="sees later tokens"):
            check_causal(model)
        with pytest.raises(ConfigError, match="see each other"):
            check_packing(model)


@pytest.mark.parametrize("check", [check_causal, check_packing])
def test_a_check_leaves_nothing_behind(check: Any) -> None:
    """Dropout does not make a model look wrong, nor do modes, random numbers, gradients or values change."""
    model = model_of({**EXACT["gpt2"], "resid_pdrop": 0.5})
    model.language_model.train()
    modes = [module.training for module in model.modules()]
    values = {name: tensor.clone() for name, tensor in named_tensors(model)}
    state = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        check(model)
    assert [module.training for module in model.modules()] == modes
    assert any(modes)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, values[name]) for name, tensor in named_tensors(model))


@pytest.mark.slow
def test_a_placeholder_is_no_word_of_a_check() -> None:
    """Every id in turn as the placeholder, the last of the vocabulary and one beyond it too."""
    for image_token_id in (0, 3, 20, 39, 40):
        model = tiny_model(image_token_id=image_token_id)
        check_causal(model)
        check_packing(model)


class Narrow(torch.nn.Linear):
    """Computes in bfloat16 and returns float32, as a quantised layer does; the weights alone do not show it.

    A single row differs in the last bits of float32, as where a GPU has another kernel for its shape.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.bfloat16()
        inputs = inputs * (1 + 3e-6 * (len(inputs) == 1))
        return torch.nn.functional.linear(inputs.bfloat16(), self.weight.bfloat16(), bias).to(inputs.dtype)


def narrow(model: Model) -> Model:
    """The model with every linear layer of its language model computing in bfloat16."""
    for module in model.language_model.modules():
        if type(module) is torch.nn.Linear:
            module.__class__ = Narrow
    return model


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_layers_that_compute_in_bfloat16_and_return_float32_may_round(name: str) -> None:
    model = narrow(model_of({**EXACT[name], "num_hidden_layers": 8}))
    # Two documents alone may happen to round alike.
    documents = torch.randint(8, 30, (32, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = model(documents, position_ids=torch.arange(8).expand(32, 8).contiguous(), use_cache=False).logits
        row = model(documents.view(1, -1), position_ids=torch.arange(8).repeat(1, 32), use_cache=False).logits
    assert alone.dtype == torch.float32
    assert float((row.view_as(alone) - alone).norm() / alone.norm()) > FLOAT32_TOLERANCE, "more than float32 rounds"
    check_packing(model)
    check_causal(model)


@pytest.mark.parametrize("name", CONTAMINATED)
def test_layers_that_compute_in_bfloat16_hide_no_mixing(name: str) -> None:
    with pytest.raises(ConfigError, match="see each other"):
        check_packing(narrow(model_of(CONTAMINATED[name])))
