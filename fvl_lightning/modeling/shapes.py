"""Checks that encoder, fusion and projector return the shapes that they declare.

A wrong declaration would otherwise end in an error of another component, far from its cause. The first forward pass
with images checks it, and `try_connector` does so before any data or weight is needed.
"""

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError, UserError, first_line
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import build_fusion
from fvl_lightning.modeling.connector.alignment import SourceAlignment

TRIAL_IMAGES = 2
"""Images of a trial; with two, a component that adds up over images shows."""


def check_declarations(fusion: nn.Module, fusion_name: str) -> None:
    """Raises ConfigError where a fusion sets no `output`, from which the projector is built."""
    if not isinstance(getattr(fusion, "output", None), FeatureSpec):
        raise ConfigError(
            f"fusion {fusion_name} declares no output shape: its __init__ must set "
            "self.output = FeatureSpec(tokens, dim, grid)"
        )


def check_sources(encoder_name: str, specs: dict[str, FeatureSpec], sources: Any) -> None:
    """Raises ConfigError where an encoder returned other sources [I, N, D] than its `specs` declare."""
    what = f"encoder {encoder_name}"
    if not isinstance(sources, dict) or list(sources) != list(specs):
        found = ", ".join(map(str, sources)) if isinstance(sources, dict) else f"a {type(sources).__name__}"
        raise ConfigError(f"{what} declares the sources {', '.join(specs)} but returned {found}")
    for name, spec in specs.items():
        _check_shape(f"{what} (source {name})", spec.tokens, spec.dim, len(sources[next(iter(specs))]), sources[name])


def check_fused(fusion_name: str, fusion: Any, images: int, fused: Any) -> None:
    """Raises ConfigError where a fusion returned something else than the features [I, N, D] that it declares."""
    if not isinstance(fused, FusionOutput):
        raise ConfigError(f"fusion {fusion_name} must return a FusionOutput but returned a {type(fused).__name__}")
    _check_shape(f"fusion {fusion_name}", fusion.output.tokens, fusion.output.dim, images, fused.features)
    declared, returned = sorted(fusion.inner_layers), sorted(fused.inner_layers)
    if declared != returned:
        raise ConfigError(
            f"fusion {fusion_name} declares features for the blocks {declared or 'none'} of the language model but "
            f"returned {returned or 'none'}"
        )
    for number, spec in fusion.inner_layers.items():
        what = f"fusion {fusion_name} (block {number})"
        _check_shape(what, spec.tokens, spec.dim, images, fused.inner_layers[number])


def check_projected(projector_name: str, tokens: int, dim: int, images: int, projected: Any) -> None:
    """Raises ConfigError where a projector returned other shapes than [I, `tokens`, width of the language model]."""
    _check_shape(f"projector {projector_name}", tokens, dim, images, projected)


def try_connector(model: Any) -> None:
    """Sends features of zeros through fusion and projector of a model on the meta device.

    Where they do not work without values, copies with values on the CPU get the same features. Neither weights nor
    random streams change.

    Raises:
        ConfigError: a component returns another shape than it declares, or cannot compute with what it gets.
    """
    specs = model.encoder.specs
    if model.conditioned or model.fusion.routed:  # both choose by values, which tensors of the meta device lack
        return _try_with_values(model)
    try:
        model.embed_images(sources=_zeros(specs, "meta"))
    except UserError:
        raise
    except Exception:  # for instance a fusion that reads values, which a tensor without values does not have
        _try_with_values(model)


def _try_with_values(model: Any) -> None:
    config, specs = model.config, model.encoder.specs
    fusion, projector = config.choice("fusion"), config.choice("projector")
    dim = model.language_model.dim
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            native = fusion.component.grids == "native"
            alignment = SourceAlignment(specs, config.normalize_sources, native, config.fused_sources)
            built = build_fusion(fusion.component, fusion.config, alignment.specs, dim)
            inputs = {"question": torch.zeros(TRIAL_IMAGES, dim)} if model.conditioned else {}
            if built.routed:
                inputs["routes"] = torch.ones(TRIAL_IMAGES, len(built.sources)) / len(built.sources)
            fused = built(alignment(_zeros(specs, "cpu")), **inputs)
            check_fused(fusion.name, built, TRIAL_IMAGES, fused)
            connector = projector.component(projector.config, model.fusion.output, dim)
            projected = connector(fused.features)
            check_projected(projector.name, model.projector.tokens, dim, TRIAL_IMAGES, projected)
    except UserError:
        raise
    except Exception as error:
        names = f"fusion {fusion.name} and projector {projector.name}"
        raise ConfigError(f"{names} fail on features of {_shapes(specs)}: {in_own_code(error)}") from error


def in_own_code(error: Exception) -> str:
    """Returns an exception with the last line that is not of an installed package: film.py:23: TypeError: ..."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {first_line(error)}"


def _zeros(specs: dict[str, FeatureSpec], device: str) -> dict[str, Tensor]:
    return {name: torch.zeros(TRIAL_IMAGES, spec.tokens, spec.dim, device=device) for name, spec in specs.items()}


def _shapes(specs: dict[str, FeatureSpec]) -> str:
    return ", ".join(f"{name} [I, {spec.tokens}, {spec.dim}]" for name, spec in specs.items())


def _check_shape(what: str, tokens: int, dim: int, images: int, found: Any) -> None:
    if not isinstance(found, Tensor):
        raise ConfigError(f"{what} must return a tensor [I, N, D] but returned a {type(found).__name__}")
    shape = tuple(found.shape)
    if shape == (images, tokens, dim):
        return
    declared = f"[{images}, {tokens}, {dim}]"
    if len(shape) == 3 and shape[2] != dim:
        declared = f"width {dim}"
    elif len(shape) == 3 and shape[1] != tokens:
        declared = f"{tokens} tokens"
    raise ConfigError(
        f"{what} declares {declared} but returned {list(shape)}; expected [images, tokens, width] = "
        f"[{images}, {tokens}, {dim}]"
    )
