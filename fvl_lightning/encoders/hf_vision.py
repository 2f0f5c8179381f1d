"""Vision transformers of transformers as encoders: CLIP, SigLIP, DINOv2, DINOv3.

`layer_<k>` is the output of layer k, counted from 1, before any final norm: `layer_23` of CLIP ViT-L is the layer that
LLaVA reads (arXiv 2310.03744: the last but one of 24). `last` is the output of the tower: for SigLIP and DINO after the
final norm, for CLIP the output of the last layer, since CLIP normalises only its pooled token.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from transformers import AutoModel

from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.pretrained import check_number_types, loading_problem, open_saved, quiet_loading
from fvl_lightning.core.registry import register
from fvl_lightning.core.weight_files import check_finite
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.encoders.hf_vision_towers import (
    FAMILIES,
    LAST,
    check_model,
    check_size,
    check_sources,
    feature_specs,
    layer_number,
    read_model,
    read_normalisation,
    remove_unused,
    side_length,
    tower_config,
)

PREFIXES = ("", "vision_model.")
"""The prefixes of a tower's names in its own checkpoint, and in one with a text tower."""


@register("encoder", "hf_vision")
class HfVisionEncoder(Encoder):
    """A vision transformer of transformers (CLIP, SigLIP, DINOv2, DINOv3); its sources are outputs of its layers."""

    @dataclass
    class Config:
        """Fields of the encoder. From the hub or a folder with `pretrained`, from scratch with `model`."""

        pretrained: PathText | None = None
        """Hub id or folder, such as openai/clip-vit-large-patch14; of CLIP and SigLIP only the vision tower is read."""
        revision: str | None = None
        """Hub revision; null for the newest."""
        model: dict[str, Any] = field(default_factory=dict)
        """The tower's configuration, with `model_type`; read from `pretrained` if that is given."""
        image_size: int | None = number(None, at_least=1)
        """Pixels per side; null for the size in the model's configuration, the only one that CLIP and SigLIP accept."""
        sources: list[str] = field(default_factory=lambda: [LAST])
        """Feature sources, in the order of fusion: layer_<k>, or last. Deeper layers are not built."""
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
        model_config = tower_config(config.model)
        model_config._attn_implementation = "sdpa"
        self.family = FAMILIES[model_config.model_type]
        try:
            self.tower = AutoModel.from_config(model_config, trust_remote_code=False)
        except Exception as error:  # each model class raises errors of its own
            raise ConfigError(f"encoder.model: it cannot be built: {' '.join(str(error).split())}") from None
        remove_unused(self.tower, self.family, config.sources)
        self.image_size = config.image_size
        self.mean = (config.mean[0], config.mean[1], config.mean[2])
        self.std = (config.std[0], config.std[1], config.std[2])
        keep = config.prefix_tokens == "keep"
        self.specs = feature_specs(config.sources, config.image_size, model_config, keep)
        self._dropped = 0 if keep else self.family.prefix(model_config)
        self._layers = {name: number for name in config.sources if (number := layer_number(name)) is not None}

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
        check_sources(config.sources, tower.num_hidden_layers)
        image_size = side_length(tower, "image_size") if config.image_size is None else config.image_size
        check_size(image_size, tower)
        mean, std = config.mean, config.std
        if mean is None or std is None:
            family = FAMILIES[tower.model_type]
            defaults: Any = (family.mean, family.std)
            if config.pretrained is not None:
                defaults = read_normalisation(config.pretrained, config.revision, family)
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
        own = re.compile(rf"({'|'.join(PREFIXES)}){re.escape(self.family.layers)}\.")
        if problem := loading_problem(report, unused=lambda key: own.match(key) is None):
            raise ConfigError(f"encoder: {name} {problem}")
        weights = pretrained.state_dict()
        check_number_types(name, self.config.revision, {f"{p}{key}" for key in weights for p in PREFIXES}, "encoder")
        check_finite(dict(pretrained.named_parameters()), f"encoder: {name}")
        self.tower.load_state_dict({key: weights[key] for key in self.tower.state_dict()})

    def blocks(self) -> list[nn.Module]:
        """Returns the layers of the tower."""
        layers: Any = self.tower.get_submodule(self.family.layers)
        return list(layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {source: [I, N, D]}, in the order of `config.sources`, for images [I, 3, P, P]."""
        output = self.tower(images, output_hidden_states=list(self._layers.values()) or None)
        # hidden_states[0] is the input of the first layer, hidden_states[k] the output of layer k.
        states = {name: output.hidden_states[number] for name, number in self._layers.items()}
        states[LAST] = output.last_hidden_state
        return {name: states[name][:, self._dropped :] for name in self.specs}
