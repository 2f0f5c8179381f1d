"""Each projector that compresses, compared with an independent computation; float64, largest difference 1e-12."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.fusions.concat import ConcatFusion
from fvl_lightning.fusions.token_concat import TokenConcatFusion
from fvl_lightning.projectors.c_abstractor import CAbstractorProjector
from fvl_lightning.projectors.mlp import MLPProjector
from fvl_lightning.projectors.per_source import PerSourceProjector
from fvl_lightning.projectors.pixel_shuffle import PixelShuffleProjector
from fvl_lightning.projectors.pool import PoolProjector
from fvl_lightning.projectors.resampler import ResamplerProjector
from tests.tiny_models import initialized

IMAGES, WIDTH = 2, 6
MAP = FeatureSpec(25, 8, (4, 6))
"""A pooled token and a map of 4 x 6."""
NO_MAP = FeatureSpec(10, 8, None)


def build(component: type[Any], features: FeatureSpec = MAP, **config: Any) -> Any:
    projector = component(component.Config(**config), features, WIDTH)
    return initialized("projector", projector, seed=2).double().eval().requires_grad_(False)


def inputs(features: FeatureSpec = MAP) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, features.tokens, features.dim, generator=generator, dtype=torch.float64)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def block(x: Tensor, row: int, column: int) -> list[Tensor]:
    """The four tokens of a block of a map of 4 x 6 with a token before it, in row-major order."""
    return [x[:, 1 + (2 * row + i) * 6 + 2 * column + j] for i in range(2) for j in range(2)]


BLOCKS = [(row, column) for row in range(2) for column in range(3)]


def test_pixel_shuffle_puts_a_block_side_by_side() -> None:
    projector, x = build(PixelShuffleProjector), inputs()
    assert projector.tokens == 7
    norm, first, _, second = projector.layers

    def layers(y: Tensor, norm: Any, first: Any, second: Any) -> Tensor:
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        y = (y * norm.weight + norm.bias) @ first.weight.T + first.bias
        return (y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))) @ second.weight.T + second.bias

    wanted = [layers(torch.cat(block(x, *place), dim=-1), norm, first, second) for place in BLOCKS]
    found = projector(x)
    close(found[:, 1:], torch.stack(wanted, dim=1))
    own, first, _, second = projector.prefix_layers
    close(found[:, 0], layers(x[:, 0], own, first, second))


def test_pixel_shuffle_has_the_order_of_released_code() -> None:
    """Idefics3's connector, as transformers has it: one linear layer without a norm, on a square map."""
    features = FeatureSpec(16, 3, (4, 4))
    projector, x = build(PixelShuffleProjector, features, depth=1, norm=False), inputs(features)
    vision, text = SimpleNamespace(hidden_size=3), SimpleNamespace(hidden_size=WIDTH)
    sizes: Any = SimpleNamespace(scale_factor=2, vision_config=vision, text_config=text)
    connector = Idefics3Connector(sizes).double()
    connector.modality_projection.proj.weight.data = projector.layers[0].weight.data
    close(projector(x), connector(x) + projector.layers[0].bias)


def test_pool_is_the_average_of_a_block() -> None:
    projector, x = build(PoolProjector), inputs()
    assert projector.tokens == 7
    wanted = [x[:, 0], *(sum(block(x, *place)) / 4 for place in BLOCKS)]
    close(projector(x), projector.layers(torch.stack(wanted, dim=1)))
    (linear,) = build(PoolProjector, depth=1).layers
    close(build(PoolProjector, depth=1)(x)[:, 0], x[:, 0] @ linear.weight.T + linear.bias)


def test_pool_by_attention_asks_with_the_average() -> None:
    projector, x = build(PoolProjector, by="attention", heads=2), inputs()

    def linear(layer: nn.Linear, y: Tensor) -> Tensor:
        return y @ layer.weight.T + layer.bias

    pooled = [x[:, 0]]
    for place in BLOCKS:
        tokens = torch.stack(block(x, *place), dim=1)
        query, both = linear(projector.query, tokens.mean(1)), linear(projector.key_value, tokens)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = (both[..., :8][..., head] * query[:, None, head]).sum(-1) / 2
            heads.append((scores.softmax(-1)[..., None] * both[..., 8:][..., head]).sum(1))
        pooled.append(linear(projector.out, torch.cat(heads, dim=-1)))
    close(projector(x), projector.layers(torch.stack(pooled, dim=1)))


def waves(place: float, dim: int) -> list[float]:
    half = (dim + 1) // 2
    angles = [place * 10000.0 ** (-2 * k / dim) for k in range(half)]
    return [*map(math.sin, angles), *map(math.cos, angles)][:dim]


def resampled(projector: Any, x: Tensor, positions: list[list[float]], marks: list[int]) -> Tensor:
    """The formula of the docstring, with one head at a time."""
    f = projector.input_norm(projector.input(x)) + torch.tensor(positions, dtype=torch.float32).double()
    if projector.marks is not None:
        f = f + projector.marks.weight[marks]
    z = projector.queries.weight.expand(IMAGES, -1, -1)
    width = z.shape[-1]
    for layer in projector.layers:
        asked = layer.norm(z)
        both = layer.key_value(torch.cat([f, asked], dim=1))
        query, heads = layer.query(asked), []
        for k in range(layer.heads):
            part = slice(k * width // layer.heads, (k + 1) * width // layer.heads)
            key, value = both[..., :width][..., part], both[..., width:][..., part]
            weights = (query[..., part] @ key.transpose(1, 2) / math.sqrt(key.shape[-1])).softmax(-1)
            heads.append(weights @ value)
        z = z + layer.out(torch.cat(heads, dim=-1))
        z = z + layer.mlp(layer.mlp_norm(z))
    return projector.output(projector.output_norm(z))


def test_resampler_reads_a_map_in_rows_and_columns() -> None:
    projector, x = build(ResamplerProjector, queries=5, depth=2, heads=2, width=10), inputs()
    assert projector.tokens == 5
    places = [waves(0, 10)] + [[*waves(n // 6, 5), *waves(n % 6, 5)] for n in range(24)]
    torch.testing.assert_close(projector(x), resampled(projector, x, places, [0] + [1] * 24), atol=1e-6, rtol=0)


def test_resampler_tells_maps_that_follow_each_other_apart() -> None:
    sources = {"davit": FeatureSpec(4, 8, (2, 2)), "ocr": FeatureSpec(4, 8, (2, 2))}
    features = TokenConcatFusion(TokenConcatFusion.Config(), sources).output
    projector, x = build(ResamplerProjector, features, queries=3, depth=1, heads=1), inputs(features)
    places = [[*waves(n // 2, 3), *waves(n % 2, 3)] for n in range(4)]
    wanted = resampled(projector, x, places + places, [0] * 4 + [1] * 4)
    torch.testing.assert_close(projector(x), wanted, atol=1e-6, rtol=0)


def test_resampler_takes_tokens_without_a_map_in_their_order() -> None:
    projector, x = build(ResamplerProjector, NO_MAP, queries=2, depth=1, heads=3), inputs(NO_MAP)
    assert projector.marks is None
    wanted = resampled(projector, x, [waves(n, WIDTH) for n in range(10)], [])
    torch.testing.assert_close(projector(x), wanted, atol=1e-6, rtol=0)


def conv(layers: Any, x: Tensor, groups: int = 1) -> Tensor:
    """A convolution without bias and a LayerNorm over channels."""
    size, norm = layers[0].weight.shape[-1], layers[1]
    y = F.conv2d(x, layers[0].weight, padding=size // 2, groups=groups)
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return y * norm.weight[:, None, None] + norm.bias[:, None, None]


def res_block(layer: Any, x: Tensor, hidden: int) -> Tensor:
    """RegNet's block with squeeze-and-excitation."""
    y = F.silu(conv(layer.first, x))
    y = F.silu(conv(layer.spatial, y, groups=hidden))
    squeezed = F.silu(y.mean((2, 3)) @ layer.squeeze.weight[..., 0, 0].T + layer.squeeze.bias)
    gate = torch.sigmoid(squeezed @ layer.excite.weight[..., 0, 0].T + layer.excite.bias)
    y = conv(layer.last, y * gate[..., None, None])
    return F.silu(y + (x if x.shape[1] == hidden else conv(layer.shortcut, x)))


@pytest.mark.parametrize(("rows", "pooled"), [(None, (2, 3)), (3, (3, 4))])
def test_c_abstractor_is_blocks_pooling_blocks(rows: int | None, pooled: tuple[int, int]) -> None:
    projector, x = build(CAbstractorProjector, rows=rows, depth=2, hidden=8 if rows else 12), inputs()
    hidden = projector.config.hidden
    assert projector.tokens == 1 + pooled[0] * pooled[1]
    image = (x[:, 1:] + projector.positions.weight).transpose(1, 2).reshape(IMAGES, 8, 4, 6)
    for layer in projector.before:
        image = res_block(layer, image, hidden)
    image = F.adaptive_avg_pool2d(image, pooled)
    for layer in projector.after:
        image = res_block(layer, image, hidden)
    tokens = torch.cat([projector.prefix_layer(x[:, :1]), image.flatten(2).transpose(1, 2)], dim=1)
    close(projector(x), projector.layers(tokens))
    assert float(projector.positions.weight.std()) < 0.05


SOURCES = {"davit": FeatureSpec(5, 8, (2, 2)), "ocr": FeatureSpec(5, 4, (2, 2))}


def test_per_source_adds_what_lies_side_by_side_on_channels() -> None:
    features = ConcatFusion(ConcatFusion.Config(), SOURCES).output
    chosen = {"ocr": {"name": "linear"}}
    projector, x = build(PerSourceProjector, features, projectors=chosen), inputs(features)
    assert projector.tokens == 5
    assert isinstance(projector.projectors["davit"], MLPProjector)
    layer = projector.projectors["ocr"].layer
    close(projector(x), projector.projectors["davit"].layers(x[..., :8]) + x[..., 8:] @ layer.weight.T + layer.bias)


def test_per_source_keeps_the_order_of_tokens() -> None:
    features = TokenConcatFusion(TokenConcatFusion.Config(), SOURCES).output
    chosen = {"davit": "pixel_shuffle", "default": {"name": "pool", "factor": 1}}
    projector, x = build(PerSourceProjector, features, projectors=chosen), inputs(features)
    assert projector.tokens == 2 + 5
    close(projector(x)[:, :2], projector.projectors["davit"](x[:, :5]))
    close(projector(x)[:, 2:], projector.projectors["ocr"](x[:, 5:]))


def test_per_source_has_weights_for_every_copy() -> None:
    features = ConcatFusion(ConcatFusion.Config(repeat=2), SOURCES).output
    projector = build(PerSourceProjector, features)
    assert list(projector.projectors) == ["davit", "ocr", "davit_copy_2", "ocr_copy_2"]
    assert projector(inputs(features)).shape == (IMAGES, 5, WIDTH)


@pytest.mark.parametrize(
    ("component", "features", "config", "says"),
    [
        (PixelShuffleProjector, FeatureSpec(729, 8, (27, 27)), {}, "2 does not divide the map of 27 x 27 tokens that "
         "pixel_shuffle gets, take one of 1, 3, 9, 27"),
        (PoolProjector, FeatureSpec(6, 8, (2, 3)), {}, "2 does not divide the map of 2 x 3 .*, take one of 1"),
        (PoolProjector, NO_MAP, {}, "projector pool: it needs a map of the image, and the fusion returns 10 tokens"),
        (CAbstractorProjector, NO_MAP, {}, "projector c_abstractor: it needs a map"),
        (PoolProjector, MAP, {"by": "attention", "heads": 3}, "projector.heads: 3 heads do not divide the width 8"),
        (ResamplerProjector, MAP, {"heads": 4}, "projector.heads: 4 heads do not divide the width 6"),
        (CAbstractorProjector, MAP, {"rows": 5}, "projector.rows: 5 are more than the 4 rows of the map"),
        (PerSourceProjector, MAP, {}, "the fusion mixes its sources"),
        (PerSourceProjector, FeatureSpec(5, 12, (2, 2), SOURCES), {"projectors": {"davt": "mlp"}}, "'davit'"),
        (PerSourceProjector, FeatureSpec(5, 12, (2, 2), SOURCES), {"projectors": {"ocr": "pool"}},
         "same number of tokens, and not davit 5, ocr 2"),
        (PerSourceProjector, FeatureSpec(5, 12, (2, 2), SOURCES),
         {"projectors": {"ocr": {"name": "pool", "factor": 5}}}, "source ocr: projector.factor: 5 does not divide"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence(
    component: type[Any], features: FeatureSpec, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        build(component, features, **config)
    assert "\n" not in str(caught.value)


def test_the_numbers_of_tokens_to_choose_from() -> None:
    def options(component: type[Any], features: FeatureSpec = MAP, **config: Any) -> list[int]:
        return list(component.token_options(component.Config(**config), features))

    assert options(PoolProjector) == options(PixelShuffleProjector) == [7, 25]
    assert options(PoolProjector, FeatureSpec(576, 8, (24, 24))) == [1, 4, 9, 16, 36, 64, 144, 576]
    assert options(CAbstractorProjector) == [1 + 2, 1 + 2 * 3, 1 + 3 * 4, 1 + 4 * 6]
    assert options(ResamplerProjector) == list(range(1, 26))
    assert options(MLPProjector) == [25]
    on_tokens = TokenConcatFusion(TokenConcatFusion.Config(), SOURCES).output
    assert options(PerSourceProjector, on_tokens, projectors={"default": "pool"}) == [4, 10]
