"""What every component of a slot must do, as functions over a class: a component of your own can be checked too.

    from tests.contracts.checks import check_fusion
    check_fusion(MyFusion)                      # every contract of the slot, with the default Config
    check_fusion(MyFusion, MyFusion.Config(dim=8))

`SLOT_CHECKS[slot]` lists the single contracts, each a function of a factory () -> component.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fvl_lightning.core.types import FusionOutput
from fvl_lightning.fusions.base import build_fusion
from fvl_lightning.modeling.initialization import initialize
from tests.contracts.building import (
    FUSED,
    IMAGES,
    QUESTION,
    RUNS,
    Factory,
    factory,
    fusion_inputs,
    fusion_specs,
    run_language_model,
    run_projector,
    source_features,
    token_rows,
)
from tests.tiny_models import Holder, initialized, named_tensors, pixels

BRAND_NEW = 17
"""A seed that no contract initialises with otherwise."""


def check_encoder(component: type[Any], config: Any = None) -> None:
    """Every contract of an encoder."""
    _check("encoder", component, config)


def check_fusion(component: type[Any], config: Any = None) -> None:
    """Every contract of a fusion."""
    _check("fusion", component, config)


def check_projector(component: type[Any], config: Any = None) -> None:
    """Every contract of a projector."""
    _check("projector", component, config)


def check_language_model(component: type[Any], config: Any = None) -> None:
    """Every contract of a language model."""
    _check("language_model", component, config)


def _check(slot: str, component: type[Any], config: Any) -> None:
    for contract in SLOT_CHECKS[slot]:
        contract(factory(slot, component, config))


# Contracts of every slot.


def gradient_reaches_each_parameter(slot: str, build: Factory) -> None:
    """A backward pass leaves a finite gradient at each parameter, and one that is not zero at each matrix.

    A vector may have a gradient of zero for a reason: the softmax of attention does not see the bias of its keys.
    """
    component = initialized(slot, build()).train()
    if not any(True for _ in component.parameters()):
        return
    outputs = RUNS[slot](component)
    torch.manual_seed(1)
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    for name, parameter in component.named_parameters():
        assert parameter.grad is not None, f"no gradient reaches {name}"
        assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
        assert parameter.ndim < 2 or parameter.grad.count_nonzero(), f"the gradient of the matrix {name} is zero"


def bfloat16_stays_bfloat16(slot: str, build: Factory) -> None:
    """In bfloat16 the forward pass runs, is finite, and returns bfloat16."""
    component = initialized(slot, build()).to(torch.bfloat16).eval()
    for output in RUNS[slot](component, torch.bfloat16):
        assert output.dtype == torch.bfloat16, f"returns {output.dtype}"
        assert output.isfinite().all()


def builds_without_memory(slot: str, build: Factory) -> None:
    """Under the meta device every parameter and buffer is a shape alone."""
    with torch.device("meta"):
        component = build()
    allocated = [name for name, tensor in named_tensors(component) if not tensor.is_meta]
    assert not allocated, f"allocated on the meta device: {allocated}"


def initialises_after_a_meta_build(slot: str, build: Factory) -> None:
    """meta -> to_empty -> initialize sets every value there is, to the bits of a CPU build of the same seed."""
    reference = Holder(slot, build())
    initialize(reference, seed=5)
    with torch.device("meta"):
        holder = Holder(slot, build())
    holder.to_empty(device="cpu")
    _tie(holder)
    for _, tensor in named_tensors(holder):
        tensor.data.fill_(float("nan") if tensor.is_floating_point() else -7)
    initialize(holder, seed=5)
    expected = dict(named_tensors(reference))
    found = dict(named_tensors(holder))
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), f"{name} differs from the CPU build of the same seed"


def initialisation_is_the_seeds(slot: str, build: Factory) -> None:
    """Another seed gives other weights, the same one the same, whatever was drawn before."""
    one, other = initialized(slot, build(), seed=1), initialized(slot, build(), seed=2)
    torch.manual_seed(99)
    again = initialized(slot, build(), seed=1)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), f"{name} depends on more than the seed"
    matrices = [name for name, parameter in one.named_parameters() if parameter.ndim > 1]
    same = [name for name in matrices if torch.equal(one.get_parameter(name), other.get_parameter(name))]
    assert not same, f"matrices that no seed changes: {same}"


def state_round_trip(slot: str, build: Factory) -> None:
    """What state_dict() saves is all it takes to compute the same, bit for bit."""
    component = initialized(slot, build(), seed=0).eval()
    copy = initialized(slot, build(), seed=BRAND_NEW).eval()
    copy.load_state_dict({name: tensor.clone() for name, tensor in component.state_dict().items()})
    with torch.no_grad():
        for one, other in zip(RUNS[slot](component), RUNS[slot](copy), strict=True):
            assert torch.equal(one, other)


def deterministic_in_eval_mode(slot: str, build: Factory) -> None:
    """Two forward passes of the same input give the same bits, whatever the state of the random numbers."""
    component = initialized(slot, build()).eval()
    with torch.no_grad():
        torch.manual_seed(1)
        first = RUNS[slot](component)
        torch.manual_seed(2)
        second = RUNS[slot](component)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def has_blocks(slot: str, build: Factory) -> None:
    """blocks() names modules of the component, each once: the units of sharding."""
    component = build()
    blocks = component.blocks()
    assert blocks, "blocks() is empty"
    assert len({id(block) for block in blocks}) == len(blocks), "a block is named twice"
    inside = {id(module) for module in component.modules()}
    assert all(id(block) in inside for block in blocks), "blocks() names a module that is not the component's"
    assert all(any(True for _ in block.parameters()) for block in blocks), "a block has no parameters"


def _tie(module: nn.Module) -> None:
    for child in module.modules():
        if hasattr(child, "tie_weights"):
            child.tie_weights()


# Contracts of one slot.


def encoder_shapes(build: Factory) -> None:
    """Sources come in the declared order and shapes."""
    encoder = initialized("encoder", build()).eval()
    with torch.no_grad():
        sources = encoder(pixels(IMAGES, size=encoder.image_size))
    assert list(sources) == list(encoder.specs)
    for name, spec in encoder.specs.items():
        assert tuple(sources[name].shape) == (IMAGES, spec.tokens, spec.dim), name
        assert spec.prefix >= 0, name


def encoder_declares_pixels(build: Factory) -> None:
    """Size, mean and std are what images are prepared with."""
    encoder = build()
    assert encoder.image_size > 0
    assert len(encoder.mean) == len(encoder.std) == 3
    assert all(0 <= mean <= 1 for mean in encoder.mean)
    assert all(0 < std <= 1 for std in encoder.std)
    assert all(isinstance(task, str) for task in encoder.tasks)


def encoder_images_are_apart(build: Factory) -> None:
    """An image's features do not depend on the images beside it, to 1e-10 in float64."""
    encoder = initialized("encoder", build()).double().eval()
    images = pixels(IMAGES, size=encoder.image_size).double()
    with torch.no_grad():
        together, alone = encoder(images), encoder(images[1:2])
    for name, feature in alone.items():
        torch.testing.assert_close(feature, together[name][1:2], atol=1e-10, rtol=0)


def fusion_shapes(build: Factory) -> None:
    """Four sources of three widths: the declared shape is the real one."""
    _fusion_shape(initialized("fusion", build()).eval())


def fusion_of_one_source(build: Factory) -> None:
    """A single source is fused too."""
    _fusion_shape(initialized("fusion", _with_widths(build, 8)).eval())


def fusion_of_one_width(build: Factory) -> None:
    """Four sources of one width, the usual case."""
    _fusion_shape(initialized("fusion", _with_widths(build, 8, 8, 8, 8)).eval())


def fusion_reads_every_source(build: Factory) -> None:
    """A gradient reaches every source, so none is dropped in silence."""
    fusion = initialized("fusion", build()).train()
    sources = {name: x.requires_grad_() for name, x in source_features(fusion.sources).items()}
    output = fusion(sources, **fusion_inputs(fusion, sources, all_sources=True))
    torch.manual_seed(1)
    sum((x * torch.randn_like(x)).sum() for x in (output.features, *output.inner_layers.values())).backward()
    for name, source in sources.items():
        assert source.grad is not None, f"{name} has no part in the output"
        assert source.grad.count_nonzero(), f"{name} has no part in the output"


def fusion_diagnostics(build: Factory) -> None:
    """Diagnostics are detached; the masses are scalars in [0, 1], of all sources or of none, and sum to one."""
    fusion = initialized("fusion", build()).train()
    sources = source_features(fusion.sources)
    diagnostics = fusion(sources, **fusion_inputs(fusion, sources)).diagnostics
    assert not [name for name, value in diagnostics.items() if value.requires_grad], "diagnostics hold the graph"
    masses = {name.removeprefix("mass/"): value for name, value in diagnostics.items() if name.startswith("mass/")}
    if masses:
        assert list(masses) == list(fusion.sources)
        values = torch.stack(list(masses.values()))
        assert values.ndim == 1
        assert bool(((values >= 0) & (values <= 1)).all()), masses
        assert abs(float(values.sum()) - 1) < 1e-5, masses


def fusion_reads_the_question(build: Factory) -> None:
    """A fusion that declares it changes its features, or its routes, with the question; the gradient reaches it."""
    fusion = initialized("fusion", build()).train()
    if not fusion.question_dim:
        return
    sources = source_features(fusion.sources)
    inputs = fusion_inputs(fusion, sources)
    question = inputs["question"].clone().requires_grad_()
    routes = fusion.route({name: sources[name] for name in fusion.routing_sources}, question) if fusion.routed else None
    output = fusion(sources, **inputs | {"question": question} | ({} if routes is None else {"routes": routes}))
    sum(x.square().sum() for x in (output.features, *output.inner_layers.values())).backward()
    assert question.grad is not None, "the question has no part in the output"
    assert question.grad.count_nonzero(), "the question has no part in the output"


def fusion_routes(build: Factory) -> None:
    """The routes of an image are weights that add up to one, and a source without weight has no part in the output."""
    fusion = initialized("fusion", build()).eval()
    if not fusion.routed:
        return
    sources = source_features(fusion.sources)
    inputs = fusion_inputs(fusion, sources)
    routes = inputs["routes"]
    assert tuple(routes.shape) == (IMAGES, len(sources))
    assert bool((routes >= 0).all())
    torch.testing.assert_close(routes.sum(1), torch.ones(IMAGES))
    other = {name: torch.where(routes[:, k, None, None] == 0, x + 1, x) for k, (name, x) in enumerate(sources.items())}
    assert torch.equal(fusion(sources, **inputs).features, fusion(other, **inputs).features)


def _with_widths(build: Factory, *dims: int) -> Any:
    built = build()
    return build_fusion(type(built), built.config, fusion_specs(type(built), *dims), QUESTION)


def _fusion_shape(fusion: nn.Module) -> None:
    sources = source_features(fusion.sources)
    with torch.no_grad():
        output = fusion(sources, **fusion_inputs(fusion, sources))
    assert isinstance(output, FusionOutput)
    spec = fusion.output
    assert tuple(output.features.shape) == (IMAGES, spec.tokens, spec.dim)
    assert spec.grid is None or spec.prefix >= 0
    assert output.inner_layers.keys() == fusion.inner_layers.keys()
    for number, inner in fusion.inner_layers.items():
        assert tuple(output.inner_layers[number].shape) == (IMAGES, inner.tokens, inner.dim)


def projector_shapes(build: Factory) -> None:
    """As many tokens as declared, of the language model's width."""
    projector = initialized("projector", build()).eval()
    with torch.no_grad():
        (output,) = run_projector(projector)
    assert tuple(output.shape) == (IMAGES, projector.tokens, 6)


def projector_token_options(build: Factory) -> None:
    """The numbers of tokens that a comparison may choose are those that the projector then makes; its own is one."""
    with torch.device("meta"):
        projector = build()
        options = type(projector).token_options(projector.config, FUSED)
        made = {count: type(projector)(config, FUSED, 6).tokens for count, config in options.items()}
    assert made == {count: count for count in options}
    assert projector.tokens in options
    assert list(options) == sorted(options)


def language_model_shapes(build: Factory) -> None:
    """Embeddings and hidden states have the declared width, logits a column for every token of the table."""
    language_model = initialized("language_model", build()).eval()
    with torch.no_grad():
        embeddings = language_model.embed(token_rows())
        hidden, logits = run_language_model(language_model)
    assert tuple(embeddings.shape) == tuple(hidden.shape) == (2, 6, language_model.dim)
    assert tuple(logits.shape[:2]) == (2, 6)
    assert logits.shape[2] > int(token_rows().max())


def language_model_is_causal(build: Factory) -> None:
    """What comes later changes nothing before it, to 1e-10 in float64; it does change itself."""
    language_model = initialized("language_model", build()).double().eval()
    changed = token_rows()
    changed[:, 4] += 1
    with torch.no_grad():
        one = language_model(language_model.embed(token_rows())).last_hidden_state
        other = language_model(language_model.embed(changed)).last_hidden_state
    torch.testing.assert_close(one[:, :4], other[:, :4], atol=1e-10, rtol=0)
    assert not torch.allclose(one[:, 4:], other[:, 4:], atol=1e-3)


_EVERYWHERE = (
    gradient_reaches_each_parameter,
    bfloat16_stays_bfloat16,
    builds_without_memory,
    initialises_after_a_meta_build,
    initialisation_is_the_seeds,
    state_round_trip,
    deterministic_in_eval_mode,
)


def _of_slot(slot: str, *contracts: Callable[[Factory], None], blocks: bool = False) -> list[Callable[..., None]]:
    return [*contracts, *(partial(contract, slot) for contract in (*_EVERYWHERE, *((has_blocks,) if blocks else ())))]


SLOT_CHECKS: dict[str, list[Callable[[Factory], None]]] = {
    "encoder": _of_slot("encoder", encoder_shapes, encoder_declares_pixels, encoder_images_are_apart, blocks=True),
    "fusion": _of_slot(
        "fusion",
        fusion_shapes,
        fusion_of_one_source,
        fusion_of_one_width,
        fusion_reads_every_source,
        fusion_diagnostics,
        fusion_reads_the_question,
        fusion_routes,
    ),
    "projector": _of_slot("projector", projector_shapes, projector_token_options),
    "language_model": _of_slot("language_model", language_model_shapes, language_model_is_causal, blocks=True),
}
"""The contracts of each slot of the model, functions of a factory."""
