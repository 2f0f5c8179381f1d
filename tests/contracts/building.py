"""How the components of each slot are built, small, and called by their contracts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.fusions.base import build_fusion
from tests.encoders.towers import CLIP, DINOV2, DINOV3, SIGLIP
from tests.tiny_models import LLAMA, encoder_config, pixels

Factory = Callable[[], Any]
"""Builds the component of a contract, on whatever device is the default one."""
IMAGES = 3
FUSED = FeatureSpec(9, 10, (2, 4), {"one": FeatureSpec(9, 4, (2, 4)), "two": FeatureSpec(9, 6, (2, 4))})
"""What projectors get: a pooled token and a map of 2 x 4, of two sources side by side."""
QUESTION = 5
"""Width of the question's embedding."""

TINY: dict[str, dict[str, list[dict[str, Any]]]] = {
    "encoder": {
        "florence2": [
            dataclasses.asdict(encoder_config()),
            dataclasses.asdict(
                encoder_config(
                    sources=["davit_stage_1", "grounding", "davit", "davit_stage_2", "ocr"],
                    pooled_token="keep",
                    prompt_pads="attend",
                    temporal_embedding=False,
                    position_std=0.5,
                )
            ),
        ],
        "hf_vision": [
            {"model": CLIP, "sources": ["layer_2"]},
            {"model": SIGLIP, "sources": ["layer_1", "last"]},
            {"model": DINOV2, "sources": ["last", "layer_3"], "prefix_tokens": "keep", "image_size": 24},
            {"model": DINOV3, "sources": ["layer_2", "last"], "image_size": 20},
        ],
        "ensemble": [
            {"members": {"clip": {"name": "hf_vision", "model": CLIP}}},
            {
                "members": {
                    "florence": {"name": "florence2", **dataclasses.asdict(encoder_config(sources=["ocr", "davit"]))},
                    "clip": {"name": "hf_vision", "model": CLIP, "sources": ["layer_1"]},
                    "dino": {"name": "hf_vision", "model": DINOV2, "image_size": 24},
                }
            },
        ],
    },
    "fusion": {
        "attention": [{}, {"query": "learned", "heads": 2}, {"dim": 8}, {"condition": "question"}],
        "bilinear": [{"rank": 5}],
        "dense": [{}, {"by": "sparse_token", "pool": 2}, {"by": "sparse_channel"}],
        "gated": [{}, {"gate": "sigmoid"}, {"dim": 6}, {"condition": "question"}],
        "interleave": [{"dim": 6}],
        "mean": [{}, {"dim": 6}],
        "concat": [{}, {"repeat": 3}],
        "token_concat": [{}, {"dim": 6}],
        "internal": [{}, {"mode": "direct"}],
        "moe": [{}, {"condition": "question"}, {"top": 1}],
        "mousi": [{"hidden": 5}],
        "sva": [{}, {"side": 3, "depth": 2, "heads": 2, "dim": 6}],
    },
    "projector": {
        "mlp": [{}, {"depth": 1}, {"depth": 2, "hidden": 5}],
        "pixel_shuffle": [{}, {"depth": 1, "norm": False}],
        "pool": [{}, {"by": "attention", "heads": 2}],
        "resampler": [{"queries": 5, "heads": 2, "depth": 2}],
        "c_abstractor": [{"hidden": 8, "depth": 1}],
        "per_source": [{}, {"projectors": {"one": {"name": "pool", "depth": 1}, "default": "pixel_shuffle"}}],
    },
    "language_model": {
        "causal": [
            {"model": LLAMA},
            {"model": {**LLAMA, "tie_word_embeddings": False, "model_type": "qwen2"}},
        ],
    },
}
"""Fields of small Configs by slot and name, more than one where options change what is built; {} otherwise."""


def tiny_configs(slot: str, name: str) -> list[dict[str, Any]]:
    """Fields of the Configs with which a registered component is checked."""
    return TINY[slot].get(name, [{}])


def factory(slot: str, component: type[Any], config: Any = None) -> Factory:
    """() -> an uninitialised component of `slot`, from `config` or else the default one."""
    return FACTORIES[slot](component, component.Config() if config is None else config)


def source_specs(*dims: int) -> dict[str, FeatureSpec]:
    """Sources of these widths: a pooled token and a map of 2 x 3."""
    return {f"source_{k}": FeatureSpec(7, dim, (2, 3)) for k, dim in enumerate(dims)}


def source_features(specs: dict[str, FeatureSpec], seed: int = 0) -> dict[str, Tensor]:
    """Seeded features of `IMAGES` images."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(IMAGES, spec.tokens, spec.dim, generator=generator) for name, spec in specs.items()}


def _encoder(component: type[Any], config: Any) -> Factory:
    return lambda: component(component.resolve(config))


def fusion_specs(component: type[Any], *dims: int) -> dict[str, FeatureSpec]:
    """Sources of these widths as a fusion takes them: on one grid, or each on a grid of its own."""
    specs = source_specs(*dims)
    if component.grids == "shared":
        return specs
    grids = [(2, 3), (4, 6), (1, 3), (2, 3)]
    return {
        name: FeatureSpec(1 + grid[0] * grid[1], spec.dim, grid)
        for (name, spec), grid in zip(specs.items(), grids, strict=False)
    }


def _fusion(component: type[Any], config: Any) -> Factory:
    return lambda: build_fusion(component, config, fusion_specs(component, 8, 12, 16, 8), QUESTION)


def _projector(component: type[Any], config: Any) -> Factory:
    return lambda: component(config, FUSED, 6)


def _language_model(component: type[Any], config: Any) -> Factory:
    return lambda: component(component.resolve(config))


FACTORIES: dict[str, Callable[..., Factory]] = {
    "encoder": _encoder,
    "fusion": _fusion,
    "projector": _projector,
    "language_model": _language_model,
}


def run_encoder(encoder: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The sources of three images."""
    return list(encoder(pixels(IMAGES, size=encoder.image_size).to(dtype)).values())


def fusion_inputs(fusion: Any, sources: dict[str, Tensor], all_sources: bool = False) -> dict[str, Tensor]:
    """The further arguments of a fusion: questions, and routes of its own, or ones through all sources."""
    inputs = {}
    if fusion.question_dim:
        first = next(iter(sources.values()))
        question = torch.randn(len(first), fusion.question_dim, generator=torch.Generator().manual_seed(3))
        inputs["question"] = question.to(first.dtype)
    if fusion.routed:
        routes = fusion.route({name: sources[name] for name in fusion.routing_sources}, inputs.get("question"))
        inputs["routes"] = (routes + 1 / len(sources)) / 2 if all_sources else routes
    return inputs


def run_fusion(fusion: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The fused features of three images, and those for inner layers; a routed fusion gets all sources."""
    sources = {name: x.to(dtype) for name, x in source_features(fusion.sources).items()}
    output = fusion(sources, **fusion_inputs(fusion, sources, all_sources=True))
    return [output.features, *output.inner_layers.values()]


def run_projector(projector: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The image tokens of three images."""
    return [projector(source_features({"features": FUSED})["features"].to(dtype))]


def run_language_model(language_model: nn.Module, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Hidden states and logits of two rows, images left out; the token table in `dtype` sets what goes in."""
    hidden = language_model(language_model.embed(token_rows())).last_hidden_state
    return [hidden, language_model.logits(hidden)]


def token_rows() -> Tensor:
    """Two rows of small token ids [2, 6]."""
    return torch.randint(4, 30, (2, 6), generator=torch.Generator().manual_seed(0))


RUNS: dict[str, Callable[..., list[Tensor]]] = {
    "encoder": run_encoder,
    "fusion": run_fusion,
    "projector": run_projector,
    "language_model": run_language_model,
}
