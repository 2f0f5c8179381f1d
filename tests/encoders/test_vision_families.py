"""Vision towers of every family: transformers' own hidden states on the right grid, pruned, saved and refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.encoders.hf_vision import HfVisionEncoder
from fvl_lightning.encoders.hf_vision_shapes import LayerOutput, Layout, build_tower, measure
from fvl_lightning.encoders.hf_vision_towers import tower_config
from tests.encoders.families import FAMILIES, REFUSED, entry_of
from tests.encoders.towers import DINOV2, encoder_of
from tests.tiny_models import named_tensors, pixels

KEPT = ("pvt", "sam2_vision_model")
"""Towers that do not run without what follows the layers that are read."""
QUICK = ("convnextv2", "radio")


def marked(names: Any, quick: tuple[str, ...]) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def from_scratch(name: str, **changes: Any) -> HfVisionEncoder:
    """The encoder in float64 and eval mode."""
    return encoder_of(entry_of(name, FAMILIES[name], **changes)).double().eval()


def usable(layout: Layout) -> list[str]:
    """All sources of single layers, and `last`."""
    kind = "stage" if layout.staged else "layer"
    names = [f"{kind}_{k}" for k, state in enumerate(layout.states, 1) if isinstance(state, LayerOutput)]
    return [*names, *(["last"] if isinstance(layout.last, LayerOutput) else [])]


def as_tokens(state: Tensor, dim: int, tokens: int) -> Tensor:
    """A state as [I, N, D]: [I, D, H, W] and [I, H, W, D] row by row."""
    if state.ndim == 4:
        state = state.flatten(2).transpose(1, 2) if state.shape[1] == dim else state.flatten(1, 2)
    assert state.shape[1:] == (tokens, dim)
    return state


@pytest.mark.parametrize("name", marked(FAMILIES, QUICK))
@torch.no_grad()
def test_sources_are_transformers_own_states(name: str) -> None:
    """All at once, each alone, and what the modules of `blocks()` return; row by row, over a state dict."""
    entry = entry_of(name, FAMILIES[name])
    choice = choose("encoder", entry)
    size = choice.component.resolve(choose("encoder", entry | {"sources": _one_of(name)}).config).image_size
    layout = measure(entry["model"], size)
    names = usable(layout)
    every = from_scratch(name, sources=names, prefix_tokens="keep")
    theirs = build_tower(tower_config(entry["model"])).double().eval()
    own = every.tower.state_dict()
    theirs.load_state_dict(own, strict=False)
    images = pixels(2, size=size).double()
    outputs: list[Any] = []
    for block in theirs.get_submodule(layout.layers):
        block.register_forward_hook(lambda _, args, output: outputs.append(output))
    output = theirs(pixel_values=images, output_hidden_states=True)
    count = len(layout.states)
    states = (getattr(output, "reshaped_hidden_states", None) or output.hidden_states)[-count:]
    found = every(images)
    assert list(found) == names
    for source in names:
        spec = every.specs[source]
        k = int(source.rpartition("_")[2]) - 1 if source != "last" else None
        state = output.last_hidden_state if k is None else states[k]
        assert torch.equal(found[source], as_tokens(state, spec.dim, spec.tokens)), source
        if k is not None and name not in ("poolformer", "segformer", "glpn", "pvt", "pvt_v2"):
            made = outputs[k][0] if isinstance(outputs[k], tuple) else outputs[k]
            assert made.reshape(-1).equal(output.hidden_states[-count:][k].reshape(-1)), source
    for source in {names[0], names[len(names) // 2], names[-1]}:
        alone = from_scratch(name, sources=[source])
        alone.tower.load_state_dict({key: own[key] for key in alone.tower.state_dict()})
        wanted = found[source][:, every.specs[source].prefix :]
        torch.testing.assert_close(alone(images)[source], wanted, atol=1e-10, rtol=0)
    check_order(every, images, flat=not layout.staged)


def check_order(encoder: HfVisionEncoder, images: Tensor, flat: bool) -> None:
    """A change in one cell of the grid changes the tokens around that cell most; of the first flat layer its own."""
    before = encoder(images)
    for k, (source, spec) in enumerate(encoder.specs.items()):
        rows, columns = spec.grid
        if rows < 4:
            continue
        cell, row, column = images.shape[-1] // rows, 1, columns // 2
        changed = images.clone()
        changed[:, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] += 3
        difference = (encoder(changed)[source] - before[source]).abs().sum((0, 2))[spec.prefix :].view(rows, columns)
        if flat and k == 0:
            assert int(difference.argmax()) == row * columns + column
        near = torch.zeros(rows, columns, dtype=torch.bool)
        near[row - 1 : row + 2, column - 1 : column + 2] = True
        assert difference[near].mean() > difference[~near].mean(), source


@pytest.mark.parametrize("name", marked(FAMILIES, ("convnextv2", "sam_vision_model")))
def test_every_parameter_learns_and_a_meta_tower_has_the_same_names(name: str) -> None:
    entry = entry_of(name, FAMILIES[name], sources=_one_of(name))
    encoder = encoder_of(entry)
    (feature,) = encoder(pixels(2, size=encoder.image_size)).values()
    (feature * torch.randn_like(feature)).sum().backward()
    without = [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
    assert bool(without) == (name in KEPT)
    choice = choose("encoder", entry)
    with torch.device("meta"):
        empty = choice.component(choice.component.resolve(choice.config))
    shapes = {key: tensor.shape for key, tensor in named_tensors(encoder)}
    assert {key: tensor.shape for key, tensor in named_tensors(empty)} == shapes
    assert name == "levit" or all(tensor.is_meta for _, tensor in named_tensors(empty))  # it writes numbers of its own
    assert empty.specs == encoder.specs


@pytest.mark.parametrize("name", marked(REFUSED, ("siglip2_vision_model", "vit_mae", "bert")))
def test_what_cannot_be_a_tower_is_refused_in_a_sentence(name: str) -> None:
    fields, says = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        encoder_of(entry_of(name, fields))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# Layers by depth and by group.


@torch.no_grad()
def test_depths_and_groups_are_layers() -> None:
    model = {**DINOV2, "num_hidden_layers": 5}
    sources = ["depth_1", "depth_50", "depth_80", "depth_100", "group_1_of_2", "group_2_of_2", "group_1_of_1", "last"]
    images = pixels(2)
    found = encoder_of({"name": "hf_vision", "model": model, "sources": sources})(images)
    layers = [f"layer_{k}" for k in range(1, 6)]
    states = list(encoder_of({"name": "hf_vision", "model": model, "sources": layers})(images).values())
    for name, k in (("depth_1", 1), ("depth_50", 3), ("depth_80", 4), ("depth_100", 5)):
        assert torch.equal(found[name], states[k - 1])
    for name, members in (("group_1_of_2", (1, 2)), ("group_2_of_2", (3, 4, 5)), ("group_1_of_1", (1, 2, 3, 4, 5))):
        mean = torch.stack([states[k - 1] for k in members]).mean(0)
        torch.testing.assert_close(found[name], mean, atol=1e-6, rtol=0)
    assert len(encoder_of({"name": "hf_vision", "model": model, "sources": ["group_1_of_2"]}).blocks()) == 2


@pytest.mark.parametrize(
    ("model", "sources", "says"),
    [
        (DINOV2, ["depth_0"], "'depth_0' is not one of last, layer_1 to layer_3, depth_1 to depth_100, group_1_of"),
        (DINOV2, ["depth_101"], "'depth_101' is not one of"),
        (DINOV2, ["group_2_of_1"], "'group_2_of_1' is not one of"),
        (DINOV2, ["group_1_of_4"], "'group_1_of_4' is not one of"),
        (DINOV2, ["layer_2", "depth_67"], "layer_2 and depth_67 are equal"),
        (DINOV2, ["depth_67", "group_2_of_3"], "depth_67 and group_2_of_3 are equal"),
        ({**FAMILIES["swinv2"], "model_type": "swinv2"}, ["layer_1"],
         "'layer_1' is not one of last, stage_1 to stage_3; did you mean 'stage_1'?"),
    ],
)  # fmt: skip
def test_a_source_that_is_none_is_refused(model: dict[str, Any], sources: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=r"^encoder\.sources: ") as caught:
        encoder_of({"name": "hf_vision", "model": model, "sources": sources})
    assert says in str(caught.value)


def test_a_tower_without_an_image_size_needs_one() -> None:
    model = {**FAMILIES["resnet"], "model_type": "resnet"}
    with pytest.raises(ConfigError, match=r"encoder.image_size: the configuration of resnet has none, write the"):
        encoder_of({"name": "hf_vision", "model": model})


def test_a_tower_that_normalises_images_itself_gets_plain_pixels() -> None:
    assert from_scratch("radio").mean == (0.0, 0.0, 0.0)
    assert from_scratch("radio").std == (1.0, 1.0, 1.0)


def _one_of(name: str) -> list[str]:
    """The first layer or stage."""
    flat = FAMILIES[name].get("num_hidden_layers") is not None
    return ["layer_1" if flat else "stage_1"]
