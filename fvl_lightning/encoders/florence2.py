"""Florence-2 (arXiv 2311.06242) as an encoder with features from several depths and for several prompts.

Depth: `davit` is the projected and normalised last stage of the DaViT tower (V in the paper), and `davit_stage_1`...
are the outputs of the stages. Breadth: any other source is a prompt; its feature is the image part of the text
encoder's last hidden state for the input [V, prompt] (arXiv 2412.04424, section 3.2). The tower runs once per image,
and all prompts go through the text encoder in one pass.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.bart.modeling_bart import BartDecoder, BartEncoder
from transformers.models.florence2.modeling_florence2 import (
    Florence2MultiModalProjector,
    Florence2VisionBackbone,
    Florence2VisionPositionalEmbeddingCosine1D,
)

from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.florence2_prompts import RELEASED_PROMPTS
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.core.weight_files import match_weights
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.encoders.florence2_files import check_decoder_tokenizer, read_sizes, read_tokenizer, read_values
from fvl_lightning.encoders.florence2_sources import (
    STAGE,
    Prompts,
    check_model,
    check_prompts,
    check_sources,
    feature_specs,
    is_depth,
    model_config,
    stage_tokens,
    with_vocabulary,
)


@register("encoder", "florence2")
class Florence2Encoder(Encoder):
    """Florence-2's tower, projector, text encoder and optional decoder, from transformers' native classes."""

    @dataclass
    class Config:
        """Fields of the encoder. `pretrained` loads it from the hub or a folder, `model` builds it from scratch."""

        pretrained: PathText | None = None
        """Hub id or folder in either layout: florence-community/Florence-2-large-ft, microsoft/Florence-2-large-ft."""
        revision: str | None = None
        """Hub revision; null for the newest."""
        model: dict[str, Any] = field(default_factory=dict)
        """Florence2Config's fields (vision_config, text_config); read from `pretrained` if that is given."""
        tokenizer: PathText | None = None
        """Hub id or folder of the tokenizer of the prompts; null for `pretrained`'s."""
        image_size: int = number(768, at_least=1)
        """Pixels per side."""
        sources: list[str] = field(default_factory=lambda: ["davit", *RELEASED_PROMPTS])
        """Feature sources, in the order of fusion: davit, davit_stage_<k>, or the name of a prompt."""
        prompts: dict[str, str] = field(default_factory=dict)
        """Texts of prompts, which add to or replace the released ones (caption, ocr, grounding)."""
        pooled_token: Literal["keep", "drop"] = "drop"
        """Whether to keep the spatial mean before the map: 577 tokens at 768 px, or the paper's 576."""
        prompt_pads: Literal["attend", "mask"] = "mask"
        """Whether attention includes the padding of shorter prompts, as in the original, or masks it."""
        decoder: Literal["drop", "keep"] = "drop"
        """Whether to keep the decoder, which encoder_pretrain needs; the features do not."""
        temporal_embedding: bool = True
        """False zeroes the constant embedding of video frames, which dominates the features of a random tower."""
        position_std: float | None = number(None, at_least=0)
        """Standard deviation of the initial row and column embeddings; null for the model's initializer_range."""
        prompt_ids: dict[str, list[int]] = number(default_factory=dict, at_least=0)
        """Token ids of each prompt; empty to compute them from the texts."""

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.model_config = model_config(config.model)
        vision, text = self.model_config.vision_config, self.model_config.text_config
        # Separate attributes: a Florence2Model without its decoder would lose the tied token embeddings when loaded.
        vision._attn_implementation = text._attn_implementation = "sdpa"
        try:
            self.vision_tower = Florence2VisionBackbone(vision)
            self.image_projector = Florence2MultiModalProjector(self.model_config)
            self.text_encoder = BartEncoder(text)
            self.decoder = BartDecoder(text) if config.decoder == "keep" else None
        except ValueError as error:
            raise ConfigError(f"encoder.model: it cannot be built: {' '.join(str(error).split())}") from None
        if self.decoder is not None:
            self.decoder.embed_tokens = None  # the decoder gets embeddings from the text encoder's table
        self.image_size = config.image_size
        self.tasks = tuple(name for name in config.sources if not is_depth(name))
        self.specs = feature_specs(config, vision, text)
        self.end_id, self.pad_id = text.eos_token_id, text.pad_token_id
        ids = [config.prompt_ids[task] for task in self.tasks]
        check_prompts(ids, text.vocab_size)
        self.prompts = Prompts(ids, self.pad_id, attend_pads=config.prompt_pads == "attend")

    @classmethod
    def resolve(cls, config: Config) -> Config:
        """Reads the model's configuration and the token ids of the prompts from the hub or a folder."""
        check_sources(config)
        if not config.pretrained:
            check_model(config.model)
        model = config.model
        tasks = [name for name in config.sources if not is_depth(name)]
        named = config.tokenizer or config.pretrained
        if model and all(task in config.prompt_ids for task in tasks) and (tasks or named is None):
            return config
        if config.pretrained and not model:
            model = read_sizes(config.pretrained, config.revision)
        tokenizer = cls.load_tokenizer(config)
        if not model:
            raise ConfigError("encoder: give `pretrained` (hub id or folder) or `model` (sizes, from scratch)")
        if not config.pretrained:
            model = with_vocabulary(model, tokenizer)
        texts = RELEASED_PROMPTS | config.prompts
        prompt_ids = {task: config.prompt_ids.get(task) or tokenizer(texts[task]).input_ids for task in tasks}
        return dataclasses.replace(config, model=model, prompt_ids=prompt_ids)

    @classmethod
    def load_tokenizer(cls, config: Config) -> Any:
        """Returns the tokenizer of the prompts and of the decoder; raises ConfigError if it cannot be read."""
        if config.tokenizer is not None:
            return read_tokenizer(config.tokenizer, None)
        if config.pretrained is None:
            raise ConfigError("encoder.tokenizer: the prompts need a tokenizer; name its hub id or folder")
        return read_tokenizer(config.pretrained, config.revision)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raises ConfigError if a token has no row in the token embeddings, or the end tokens differ."""
        check_decoder_tokenizer(tokenizer, self.model_config.text_config)

    def load_pretrained(self) -> None:
        """Loads tower, projector, text encoder and, if kept, decoder from a checkpoint of either layout."""
        pretrained = self.config.pretrained
        if pretrained is not None:
            values = read_values(pretrained, self.config.revision, keep_decoder=self.decoder is not None)
            self.load_state_dict(match_weights(values, self.state_dict(), pretrained))

    def feature_state(self) -> dict[str, Tensor]:
        """Returns all tensors but the decoder's, which do not influence the features."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("decoder.")}

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises modules outside of transformers' models: the projector and its submodules."""
        PreTrainedModel._init_weights(self.vision_tower, module)
        position: Any = self.image_projector.image_position_embed
        if self.config.position_std is not None and module in (position.row_embeddings, position.column_embeddings):
            init.normal_(module.weight, std=self.config.position_std)
        if isinstance(module, Florence2VisionPositionalEmbeddingCosine1D):
            sine, cosine = module.get_sinusoid_embeddings(module.max_seq_len, module.embed_dim)
            table = torch.stack([sine, cosine], dim=-1).flatten(1)  # interleaved: sine on even channels
            init.copy_(module.pos_idx_to_embed, table if self.config.temporal_embedding else torch.zeros_like(table))

    def blocks(self) -> list[nn.Module]:
        """Returns DaViT's blocks, and then the layers of the text encoder and of the decoder."""
        towers = [block for stage in self.vision_tower.blocks for block in stage]
        return [*towers, *self.text_encoder.layers, *(self.decoder.layers if self.decoder is not None else [])]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Returns {source: [I, N, D]}, in the order of `config.sources`, for images [I, 3, P, P]."""
        features, projected = self._depths(images)
        if self.tasks:
            states, _ = self._read(projected)  # [I, T, 1 + H*W + L, D]
            prompted = states[:, :, : projected.shape[1]].unbind(1)
            features |= dict(zip(self.tasks, prompted, strict=True))
        return {name: self._without_pooled(features[name]) for name in self.specs}

    def on_demand(self, images: Tensor) -> Callable[[str, Tensor], Tensor]:
        """Returns a function (source, rows) -> [R, N, D]; the tower runs once, the text encoder where it is asked."""
        features, projected = self._depths(images)

        def source(name: str, rows: Tensor) -> Tensor:
            if name not in self.tasks:
                return self._without_pooled(features[name][rows])
            states, _ = self._read(projected[rows], [name])
            return self._without_pooled(states[:, 0, : projected.shape[1]])

        return source

    def decode(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns the decoder's hidden states [I, T, L, D] under teacher forcing.

        Each prompt is decoded up to its own longest target, with zeros after it, since their lengths differ much.

        Args:
            images: [I, 3, P, P].
            targets: token ids [I, T, L] for T prompts, IGNORE_INDEX after the end.
        """
        states, mask = self._read(self.image_projector(self.vision_tower(images).last_hidden_state))
        masks = [None] * len(self.tasks) if mask is None else mask.unflatten(0, states.shape[:2]).unbind(1)
        length = targets.shape[-1]
        longest = (targets != IGNORE_INDEX).sum(-1).amax(0).tolist()
        start = torch.full_like(targets[:, 0, :1], self._start_id)
        hidden = []
        for task, end in enumerate(longest):
            rows = targets[:, task, : max(1, end)]
            rows = rows.masked_fill(rows == IGNORE_INDEX, self.pad_id)
            decoded = self._decoder(torch.cat([start, rows[:, :-1]], dim=1), states[:, task], masks[task])
            hidden.append(nn.functional.pad(decoded, (0, 0, 0, length - rows.shape[1])))
        return torch.stack(hidden, dim=1)

    @torch.no_grad()
    def write(self, images: Tensor, max_tokens: int, tasks: Sequence[str] | None = None) -> Tensor:
        """Generates text greedily for each prompt, and returns token ids [I, T, L], padded after the end.

        Args:
            images: [I, 3, P, P].
            max_tokens: the largest number of tokens of a text.
            tasks: the names of the prompts, in order; None for all.
        """
        states, mask = self._read(self.image_projector(self.vision_tower(images).last_hidden_state), tasks)
        count = states.shape[1]
        states = states.flatten(0, 1)
        config = self.model_config.text_config
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        token = torch.full((states.shape[0], 1), self._start_id, device=states.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        written = []
        for _ in range(max_tokens):
            hidden = self._decoder(token, states, mask, cache)
            token = self.logits(hidden[:, -1:]).argmax(-1).masked_fill(ended, self.pad_id)
            written.append(token)
            ended |= token == self.end_id
            if ended.all():
                break
        return torch.cat(written, dim=1).unflatten(0, (images.shape[0], count))

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] of the decoder's hidden states [..., D]; the head is tied to the token embeddings."""
        return nn.functional.linear(hidden, self.text_encoder.embed_tokens.weight)

    @property
    def _start_id(self) -> int:
        return self.model_config.text_config.decoder_start_token_id

    def _depths(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the depths of the tower {source: [I, 1 + H*W, D]}, pooled token first, and its projected output."""
        stages = [name for name in self.specs if STAGE.fullmatch(name)]
        tower = self.vision_tower(images, output_hidden_states=bool(stages))
        projected = self.image_projector(tower.last_hidden_state)
        features = {name: stage_tokens(tower.hidden_states, self.vision_tower.config.depths, name) for name in stages}
        return {"davit": projected, **features}, projected

    def _without_pooled(self, features: Tensor) -> Tensor:
        """Drops the pooled token if it is configured so: last, since the text encoder reads it as in the original."""
        return features[:, 1 if self.config.pooled_token == "drop" else 0 :]

    def _read(self, projected: Tensor, tasks: Sequence[str] | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns hidden states [I, T, N + L, D] of [V, prompt] for image tokens V [I, N, D], and a mask [I*T, N + L].

        The mask is None if no prompt is padded.
        """
        images, tokens, _ = projected.shape
        chosen = tuple(self.tasks.index(task) for task in (self.tasks if tasks is None else tasks))
        # A single prompt keeps the padding of the whole batch, which is part of it with prompt_pads `attend`.
        prompt_ids, prompt_lengths = self.prompts.on(projected.device, chosen)
        prompts = self.text_encoder.embed_tokens(prompt_ids)  # [T, L, D]
        count, length = prompt_ids.shape
        shown = projected.unsqueeze(1).expand(-1, count, -1, -1)
        asked = prompts.to(projected.dtype).unsqueeze(0).expand(images, -1, -1, -1)
        rows = torch.cat([shown, asked], dim=2).flatten(0, 1)
        mask = None
        if self.prompts.any_padded(chosen):
            places = torch.arange(tokens + length, device=projected.device)
            mask = (places < prompt_lengths.unsqueeze(1) + tokens).repeat(images, 1)
        attended = mask
        if mask is not None and self.text_encoder.config._attn_implementation == "sdpa":
            attended = mask[:, None, None]  # taken as it is; else the host waits to see whether it masks anything
        states = self.text_encoder(inputs_embeds=rows, attention_mask=attended).last_hidden_state
        return states.unflatten(0, (images, count)), mask

    def _decoder(
        self, token_ids: Tensor, states: Tensor, mask: Tensor | None, cache: EncoderDecoderCache | None = None
    ) -> Tensor:
        """Returns hidden states [I*T, L, D] for token ids [I*T, L] and encoder states [I*T, N + L', D]."""
        if self.decoder is None:
            raise ConfigError("encoder.decoder: it is drop, and only an encoder with decoder=keep writes text")
        return self.decoder(
            inputs_embeds=self.text_encoder.embed_tokens(token_ids),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
