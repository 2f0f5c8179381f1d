"""The components of parameters, and which of them are trained."""

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.training.components import (
    COMPONENT_OF_CHILD,
    blocks,
    component_of,
    count_parameters,
    freeze,
    resolve_trainable,
    set_modes,
)
from fvl_lightning.training.distributed.block_transforms import checkpoint_activations, compile_blocks
from tests.tiny_models import rows, tiny_model

FULL = dict.fromkeys(COMPONENTS, "full")


def test_every_child_of_the_model_belongs_to_a_component() -> None:
    model = tiny_model(normalize=True, fusion="deepstack", sources=["davit", "ocr"])
    assert {name for name, _ in model.named_children()} == set(COMPONENT_OF_CHILD)
    assert set(COMPONENT_OF_CHILD.values()) == set(COMPONENTS)
    assert component_of("output_norm.weight") == component_of("alignment.norms.davit.weight") == "fusion"
    assert component_of("language_model.model.lm_head.weight") == "language_model"


@pytest.mark.parametrize("frozen", COMPONENTS)
def test_freezing_takes_a_whole_component_and_no_other(frozen: str) -> None:
    model = tiny_model(fusion="gated", normalize=True)
    freeze(model, FULL | {frozen: "frozen"})
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (component_of(name) != frozen), name
    freeze(model, FULL)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_components_are_in_eval_mode_to_the_last_module() -> None:
    model = tiny_model(fusion="gated", normalize=True).train()
    set_modes(model, FULL | {"encoder": "frozen", "fusion": "frozen"})
    for name, child in model.named_children():
        expected = COMPONENT_OF_CHILD[name] not in ("encoder", "fusion")
        assert {module.training for module in child.modules()} == {expected}, name


def test_counts_are_the_models() -> None:
    """Tied weights once; the norms around the fusion are the fusion's."""
    model = tiny_model(fusion="mean", normalize=True)
    freeze(model, FULL | {"encoder": "frozen"})
    counts = count_parameters(model)
    assert sum(count["parameters"] for count in counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["fusion"] == {"parameters": 5 * 2 * 16, "trainable": 5 * 2 * 16}
    assert counts["encoder"]["parameters"] == sum(p.numel() for p in model.encoder.parameters())
    assert counts["encoder"]["trainable"] == 0


def test_a_component_that_is_not_there_counts_nothing() -> None:
    holder = nn.Module()
    holder.encoder = nn.Linear(2, 3)
    assert count_parameters(holder) == {
        name: dict.fromkeys(("parameters", "trainable"), 9 if name == "encoder" else 0) for name in COMPONENTS
    }


def test_an_experiment_overrides_its_stage() -> None:
    stage = {"encoder": "frozen", "fusion": "full"}
    assert resolve_trainable(stage, {"encoder": "full"}, "finetune") == {"encoder": "full", "fusion": "full"}
    assert resolve_trainable(stage, {}, "finetune") == stage
    assert stage == {"encoder": "frozen", "fusion": "full"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            {"encodr": "full"},
            "trainable of stage align: unknown component 'encodr', allowed: encoder, fusion; "
            "did you mean 'encoder'?",
        ),
        (
            {"fusion": "ful"},
            "trainable.fusion: unknown mode 'ful', allowed: frozen, full, lora; did you mean 'full'?",
        ),
        ({"fusion": "lora"}, "trainable.fusion: lora is for encoder and language_model, take full or frozen"),
        ({"fusion": "frozen"}, "trainable: every component is frozen, nothing would learn"),
    ],
)
def test_what_cannot_be_trained(overrides: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(says)}$"):
        resolve_trainable({"encoder": "frozen", "fusion": "full"}, overrides, "align")


def test_checkpointed_blocks_compute_twice_and_keep_their_names() -> None:
    model = tiny_model()
    names = [name for name, _ in model.named_parameters()]
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    block = blocks(model, "language_model")[0]
    block.mlp.register_forward_pre_hook(count)
    checkpoint_activations(blocks(model, "language_model"))
    assert [name for name, _ in model.named_parameters()] == names
    batch = rows(2)
    loss = model(batch.token_ids, pixel_values=batch.images, labels=batch.labels).loss
    assert passes == 1
    loss.backward()
    assert passes == 2
    assert blocks(model, "decoder") == []


def test_blocks_that_keep_products_compute_none_twice() -> None:
    """The gradients are the same bits; what lies between the products is computed again."""
    batch, found = rows(2), {}
    for keep in ("inputs", "products"):
        model = tiny_model().double()
        checkpoint_activations(blocks(model, "language_model"), keep)
        loss = model(batch.token_ids, pixel_values=batch.images.double(), labels=batch.labels).loss
        with Calls() as calls:
            loss.backward()
        found[keep] = calls.counts, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    (twice, wanted), (once, gradients) = found["inputs"], found["products"]
    torch.testing.assert_close(gradients, wanted, rtol=0, atol=0)
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert (once[attention], twice[attention]) == (0, 2)
    assert twice["aten::mm"] - once["aten::mm"] == 2 * 6, "all linear layers of two blocks but the last, never needed"
    assert once["aten::silu"] == twice["aten::silu"] == 2


class Calls(TorchDispatchMode):
    """Counts operations by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
def test_compiled_blocks_serve_all_row_lengths_and_numbers_of_images() -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    model = tiny_model().double().eval()
    plain = tiny_model().double().eval()
    made = []
    for component in ("encoder", "language_model"):
        compile_blocks(blocks(model, component), component == "language_model", counter)
    for count in (2, 3, 5):
        batch = rows(count)
        ids = torch.cat([batch.token_ids, batch.token_ids[:, -1:].expand(-1, count)], dim=1)
        pixels = torch.randn(count, *batch.images.shape[1:]).double()
        with torch.no_grad():
            found, wanted = (one(ids, pixel_values=pixels).logits for one in (model, plain))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        made.append(counter.frame_count)
    assert made[0] > 2
    assert made[1] == made[2] == made[0], "compiled again for another number"


@pytest.mark.parametrize(
    ("components", "backend", "tolerance"),
    [
        pytest.param(["language_model"], "aot_eager", 1e-10, marks=pytest.mark.slow),
        pytest.param(["encoder", "language_model"], "aot_eager", 1e-10, marks=pytest.mark.slow),
        pytest.param(["encoder", "language_model"], "inductor", 1e-6, marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks_compute_the_same_and_keep_their_names(
    components: list[str], backend: str, tolerance: float
) -> None:
    """Where activations are computed again, too; inductor rounds the parts that a model keeps in float32 otherwise."""
    torch.compiler.reset()
    batch = rows(2)
    counter = CompileCounterWithBackend(backend)
    found: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for compiled in (False, True):
        model = tiny_model().double()
        names = list(model.state_dict())
        checkpoint_activations(blocks(model, "language_model"))
        for component in components if compiled else ():
            compile_blocks(blocks(model, component), component == "language_model", counter)
        loss = model(batch.token_ids, pixel_values=batch.images.double(), labels=batch.labels).loss
        loss.backward()
        assert list(model.state_dict()) == names
        found.append((loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    assert counter.frame_count >= len(components), "nothing was compiled"
    (plain, gradients), (loss, others) = found
    torch.testing.assert_close(loss, plain, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(others, gradients, rtol=tolerance, atol=tolerance)
