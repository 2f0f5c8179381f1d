"""Checks of Florence-2's configuration, and the names and shapes of its feature sources."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BartConfig, Florence2Config
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

from fvl_lightning.core.errors import ConfigError, refuse_unknown_fields
from fvl_lightning.core.florence2_prompts import RELEASED_PROMPTS
from fvl_lightning.core.types import FeatureSpec

STAGE = re.compile(r"davit_stage_(\d+)")
"""The output of a stage of the tower, counted from 1."""


def is_depth(source: str) -> bool:
    """Returns whether a source is a depth of the tower rather than a prompt."""
    return source == "davit" or STAGE.fullmatch(source) is not None


def check_sources(config: Any) -> None:
    """Raises ConfigError for a source that is neither a depth nor a prompt with a text, or is named twice."""
    known = ["davit", "davit_stage_<k>", *(RELEASED_PROMPTS | config.prompts)]
    if not config.sources:
        raise ConfigError(f"encoder.sources: it is empty, name at least one of {', '.join(known)}")
    for name in config.sources:
        if not is_depth(name) and name not in RELEASED_PROMPTS | config.prompts:
            raise ConfigError(
                f"encoder.sources: '{name}' is neither a depth nor a prompt, known are {', '.join(known)}; "
                f"give its text as encoder.prompts.{name}"
            )
    if len(set(config.sources)) < len(config.sources):
        raise ConfigError(f"encoder.sources: a source is named twice in {', '.join(config.sources)}")


def check_model(model: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key of `encoder.model` that is no field of Florence-2's configuration."""
    refuse_unknown_fields(model, Florence2Config, "encoder.model")
    for part, config_class in (("vision_config", Florence2VisionConfig), ("text_config", BartConfig)):
        given = model.get(part, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"encoder.model.{part}: expected keys and values, found {given!r}")
        refuse_unknown_fields(given, config_class, f"encoder.model.{part}")


def check_prompts(ids: Sequence[Sequence[int]], rows: int) -> None:
    """Raises ConfigError for a token id of a prompt that is none of the `rows` of the encoder's token table."""
    if (highest := max((i for prompt in ids for i in prompt), default=0)) >= rows:
        raise ConfigError(
            f"encoder.tokenizer: a prompt holds token {highest}, the encoder's token table has {rows} rows; take the "
            "tokenizer that the encoder was trained with"
        )


class Prompts:
    """The token ids of an encoder's prompts, padded to the longest, and the lengths that attention covers.

    Args:
        ids: the token ids of each prompt.
        pad_id: the token after the shorter ones.
        attend_pads: whether attention covers the padding.
    """

    def __init__(self, ids: Sequence[Sequence[int]], pad_id: int, attend_pads: bool) -> None:
        length = max(map(len, ids), default=0)
        self.rows = [[*row, *[pad_id] * (length - len(row))] for row in ids]
        self.lengths = [length if attend_pads else len(row) for row in ids]
        self._copied: dict[tuple[torch.device, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def any_padded(self, prompts: tuple[int, ...]) -> bool:
        """Returns whether attention leaves out padding of one of these prompts."""
        return any(self.lengths[prompt] < len(self.rows[prompt]) for prompt in prompts)

    def on(self, device: torch.device, prompts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Returns the token ids [T, L] and the lengths [T] of prompts by their numbers; they are copied once.

        The host would wait for every copy, between the tower and the text encoder.
        """
        if (device, prompts) not in self._copied:
            rows, lengths = ([values[prompt] for prompt in prompts] for values in (self.rows, self.lengths))
            with torch.inference_mode(False):  # a pass in inference mode may be the first, and a training the second
                copied = torch.tensor(rows, device=device), torch.tensor(lengths, device=device)
            self._copied[device, prompts] = copied
        return self._copied[device, prompts]


def model_config(model: Mapping[str, Any]) -> Florence2Config:
    """Returns transformers' configuration; raises ConfigError for values that it refuses."""
    try:
        return Florence2Config(**copy.deepcopy(dict(model)))
    except Exception as error:  # each configuration class raises errors of its own
        raise ConfigError(f"encoder.model: it cannot be built: {' '.join(str(error).split())}") from None


def with_vocabulary(model: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Adds the tokenizer's vocabulary and special tokens to the configuration of a model from scratch."""
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
    }
    return {**model, "text_config": {**text, **model.get("text_config", {})}}


def feature_specs(config: Any, vision: Any, text: Any) -> dict[str, FeatureSpec]:
    """Returns {source: its shape}, computed from the configuration.

    Raises:
        ConfigError: the image size, the prompts or the stages do not fit the model.
    """
    side, sides = config.image_size, []
    for kernel, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        side = (side + 2 * padding - kernel) // stride + 1
        sides.append(side)
    if side < 1 or side > vision.max_position_embeddings:
        raise ConfigError(
            f"encoder.image_size: {config.image_size} px give a grid of {side} x {side}, "
            f"but the encoder supports 1 to {vision.max_position_embeddings} per side"
        )
    if vision.projection_dim != text.d_model:
        raise ConfigError(
            f"encoder.model: vision_config.projection_dim is {vision.projection_dim} and text_config.d_model "
            f"{text.d_model}, they must be equal"
        )
    prefix = 1 if config.pooled_token == "keep" else 0
    longest = side * side + 1 + max((len(ids) for ids in config.prompt_ids.values()), default=0)
    if longest > text.max_position_embeddings:
        raise ConfigError(
            f"encoder.image_size: {config.image_size} px and the longest prompt give {longest} tokens, "
            f"but the text encoder supports {text.max_position_embeddings}"
        )
    specs = {}
    for name in config.sources:
        stage = STAGE.fullmatch(name)
        index = int(stage[1]) - 1 if stage else len(sides) - 1
        if not 0 <= index < len(sides):
            raise ConfigError(f"encoder.sources: '{name}', the tower has stages 1 to {len(sides)}")
        dim = vision.embed_dim[index] if stage else text.d_model
        specs[name] = FeatureSpec(sides[index] ** 2 + prefix, dim, (sides[index], sides[index]))
    return specs


def stage_tokens(hidden_states: tuple[Tensor, ...], depths: Sequence[int], source: str) -> Tensor:
    """Returns the output of the stage of the tower that a source names as tokens [I, 1 + H*W, D], their mean first.

    Args:
        hidden_states: [I, D, H, W], the input of the first block and then the output of every block.
        depths: the number of blocks of each stage.
        source: such as davit_stage_2.
    """
    tokens = hidden_states[sum(depths[: int(source.rsplit("_", 1)[1])])].flatten(2).transpose(1, 2)
    return torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
