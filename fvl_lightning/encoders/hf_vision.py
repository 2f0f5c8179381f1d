"""Vision towers of transformers as encoders: CLIP, SigLIP, DINO, ConvNeXt, Swin, SAM, RADIO, AIMv2, InternViT, ...

`layer_<k>` is the output of layer k, counted from 1, before any final norm: `layer_23` of CLIP ViT-L is the layer that
LLaVA reads (arXiv 2310.03744: the last but one of 24). `stage_<k>` is the same of a tower in stages, each with its own
grid. `depth_<p>` is the layer at p percent of the depth, and `group_<g>_of_<n>` the mean over a group of consecutive
layers. `last` is the output of the tower: for SigLIP and DINO after the final norm, for CLIP the output of the last
layer, since CLIP normalises only its pooled token.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.pretrained import check_number_types, loading_problem, open_saved, quiet_loading
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.core.weight_files import check_finite
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.encoders.hf_vision_shapes import LayerOutput, Layout, UnusableSizeError, build_tower, measure, prune
from fvl_lightning.encoders.hf_vision_sources import LAST, source_layers
from fvl_lightning.encoders.hf_vision_towers import (
    check_model,
    check_size,
    customary_normalisation,
    own_size,
    read_model,
    read_normalisation,
    tower_config,
)

PREFIXES = ("", "vision_model.")
"""The prefixes of a tower's names in its own checkpoint, and in one with a text tower."""


@register("encoder", "hf_vision")
class HfVisionEncoder(Encoder):
    """A vision tower of transformers (CLIP, SigLIP, DINO, ConvNeXt, Swin, SAM, ...); its sources are layers of it."""

    @dataclass
    class Config:
        """Fields of the encoder. From the hub or a folder with `pretrained`, from scratch with `model`."""

        pretrained: PathText | None = None
        """Hub id or folder, such as openai/clip-vit-large-patch14; of CLIP and SAM only the vision tower is read."""
        revision: str | None = None
        """Hub revision; null for the newest."""
        model: dict[str, Any] = field(default_factory=dict)
        """The tower's configuration, with `model_type`; read from `pretrained` if that is given."""
        image_size: int | None = number(None, at_least=1)
        """Pixels per side; null for the size in the model's configuration, the only one that some towers accept."""
        sources: list[str] = field(default_factory=lambda: [LAST])
        """Feature sources, in the order of fusion: layer_<k>, stage_<k>, depth_<percent>, group_<g>_of_<n>, or last.
        Deeper layers are not built."""
        prefix_tokens: Literal["keep", "drop"] = "drop"
        """The CLS token and the registers before the map; SigLIP has none."""
        mean: tuple[float, float, float] | None = number(None, at_least=0, at_most=1)
        """Mean per channel, for values in [0, 1]; null for the checkpoint's, or from scratch the family's."""
        std: tuple[float, float, float] | None = number(None, above=0)
        """Standard deviation per channel; null as for mean."""

    tasks = ()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if not (config.image_size and config.mean and config.std):
            raise ConfigError("encoder: image_size, mean and std are not set, resolve the Config first")
        layout = self._layout = measure(config.model, config.image_size)
        self._layers = source_layers(config.sources, layout)
        self.tower = build_tower(tower_config(config.model))
        read = tuple(sorted({number for layers in self._layers.values() for number in layers}))
        prune(self.tower, config.model, config.image_size, read, last=LAST in config.sources)
        indices = [number - 1 + layout.first for number in read]
        self._recorded: Any = layout.reshaped or indices if read else None
        self.image_size = config.image_size
        self.mean = (config.mean[0], config.mean[1], config.mean[2])
        self.std = (config.std[0], config.std[1], config.std[2])
        self._keep_prefix = config.prefix_tokens == "keep"
        self._states = {name: _state_of(layout, layers) for name, layers in self._layers.items()}
        self.specs = {name: _shown(state.spec, self._keep_prefix) for name, state in self._states.items()}

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """Reads the tower's configuration and image normalisation from the hub or a folder, and checks the fields.

        Raises:
            ConfigError: the model cannot be read, or a field does not fit it.
        """
        model = config.model
        if config.pretrained is None:
            if not model:
                raise ConfigError("encoder: give `pretrained` (hub id or folder) or `model` (sizes, from scratch)")
            check_model(model)
        elif not model:
            model = read_model(config.pretrained, config.revision)
        tower = tower_config(model)
        image_size = own_size(tower) if config.image_size is None else config.image_size
        if image_size is None:
            raise ConfigError(
                f"encoder.image_size: the configuration of {tower.model_type} has none, write the pixels per side"
            )
        check_size(image_size, tower)
        source_layers(config.sources, _measure_at(model, tower, image_size))
        mean, std = config.mean, config.std
        if mean is None or std is None:
            defaults: Any = customary_normalisation(tower)
            if config.pretrained is not None:
                defaults = read_normalisation(config.pretrained, config.revision, tower)
            mean, std = mean or defaults[0], std or defaults[1]
        if min(std) <= 0:
            raise ConfigError(f"encoder.std: standard deviations must be above 0, found {list(std)}")
        return dataclasses.replace(config, model=model, image_size=image_size, mean=mean, std=std)

    def load_pretrained(self) -> None:
        """Loads the tower from the safetensors files of a checkpoint, without its text tower and heads.

        Raises:
            ConfigError: the checkpoint cannot be read, lacks a weight, has one in another shape, or has more layers.
            DataError: a weight holds NaN or inf.
        """
        name = self.config.pretrained
        if name is None:
            return
        with quiet_loading():
            pretrained, report = open_saved(
                type(self.tower),
                name,
                "encoder",
                config=tower_config(self.config.model),
                revision=self.config.revision,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        needed = self.tower.state_dict().keys()  # pooling heads and norms that no source reads may be missing
        report = {**report, "missing_keys": set(report["missing_keys"]) & needed}
        own = re.compile(rf"({'|'.join(PREFIXES)}){re.escape(self._layout.layers)}\.")
        if problem := loading_problem(report, unused=lambda key: own.match(key) is None):
            raise ConfigError(f"encoder: {name} {problem}")
        weights = pretrained.state_dict()
        numbers = [key for key, value in weights.items() if value.is_floating_point()]  # batch norms count batches
        check_number_types(name, self.config.revision, {f"{p}{key}" for key in numbers for p in PREFIXES}, "encoder")
        check_finite(dict(pretrained.named_parameters()), f"encoder: {name}")
        self.tower.load_state_dict({key: weights[key] for key in needed})

    def blocks(self) -> list[nn.Module]:
        """Returns the layers or stages of the tower."""
        layers: Any = self.tower.get_submodule(self._layout.layers)
        return list(layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {source: [I, N, D]}, in the order of `config.sources`, for images [I, 3, P, P]."""
        output = self.tower(pixel_values=images, output_hidden_states=self._recorded)
        return {name: self._source(output, layers, self._states[name]) for name, layers in self._layers.items()}

    def _source(self, output: Any, layers: tuple[int, ...], state: LayerOutput) -> Tensor:
        """Returns the mean over layers, or the tower's output, as tokens [I, N, D]."""
        if not layers:
            return state.tokens(output.last_hidden_state, self._keep_prefix)
        first, *others = [self._layout.state_of(output, number) for number in layers]
        mean = first if not others else sum(others, first) / len(layers)
        return state.tokens(mean, self._keep_prefix)


def _state_of(layout: Layout, layers: tuple[int, ...]) -> LayerOutput:
    """Returns the form and shape of a source; its layers are alike."""
    state = layout.states[layers[0] - 1] if layers else layout.last
    assert isinstance(state, LayerOutput), "source_layers refuses others"
    return state


def _shown(spec: FeatureSpec, keep_prefix: bool) -> FeatureSpec:
    """Returns the shape with or without the tokens before the map."""
    return spec if keep_prefix else dataclasses.replace(spec, tokens=spec.tokens - spec.prefix)


def _measure_at(model: dict[str, Any], tower: Any, image_size: int) -> Layout:
    """Returns the layout at an image size; the error says if only the configuration's own size is possible."""
    try:
        return measure(model, image_size)
    except UnusableSizeError:
        own = own_size(tower)
        if own is None or own == image_size:
            raise
        measure(model, own)
        raise ConfigError(
            f"encoder.image_size: {image_size} px, but this tower has positions for {own} px only"
        ) from None
