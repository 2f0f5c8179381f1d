"""The model: images -> encoder -> fusion -> projector -> rows of the language model -> loss, or words.

One class for everything: it trains in the stages, saves and loads as a Hugging Face model, and generates.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationMixin
from transformers.modeling_outputs import ModelOutput

from fvl_lightning.core.types import IGNORE_INDEX, ImageSpec
from fvl_lightning.modeling.alignment import SourceAlignment
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.initialization import initializers, reset_module
from fvl_lightning.modeling.loss import TokenLoss, token_loss
from fvl_lightning.modeling.packing import cache_for
from fvl_lightning.modeling.pretrained import FlorenceVLPreTrainedModel
from fvl_lightning.modeling.splice import splice_images


@dataclass
class FlorenceVLOutput(ModelOutput):
    """With labels: `loss` (mean over supervised tokens), `loss_sum`, `tokens`, `correct`; without: `logits` [B, S, V].

    diagnostics: what the fusion says of itself, such as {"mass/<source>": scalar}; dataset_sums and dataset_tokens: as
    in TokenLoss, with dataset_ids.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    loss_sum: Tensor | None = None
    tokens: Tensor | None = None
    correct: Tensor | None = None
    dataset_sums: Tensor | None = None
    dataset_tokens: Tensor | None = None
    diagnostics: dict[str, Tensor] | None = None


class FlorenceVLForConditionalGeneration(FlorenceVLPreTrainedModel, GenerationMixin):
    """A causal language model that sees images through an encoder, a fusion and a projector."""

    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _supports_sdpa = True

    def __init__(self, config: FlorenceVLConfig) -> None:
        super().__init__(config)
        encoder, fusion = config.choice("encoder"), config.choice("fusion")
        projector, language_model = config.choice("projector"), config.choice("language_model")
        self.encoder = encoder.component(encoder.config)
        self.alignment = SourceAlignment(self.encoder.specs, normalize=config.normalize_sources)
        self.fusion = fusion.component(fusion.config, self.alignment.specs)
        self.output_norm = nn.LayerNorm(self.fusion.output.dim) if config.normalize_output else nn.Identity()
        self.language_model = language_model.component(language_model.config)
        # Of this, generation makes the masks of a static cache; unset, it makes none, and pads on the left are seen.
        config.get_text_config()._attn_implementation = self.language_model.model.config._attn_implementation
        self.projector = projector.component(projector.config, self.fusion.output, self.language_model.dim)
        self.post_init()

    @property
    def image_spec(self) -> ImageSpec:
        """How an image must look, and how many tokens it becomes."""
        return ImageSpec(self.encoder.image_size, self.encoder.mean, self.encoder.std, self.projector.tokens)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """[I, 3, P, P] -> what the language model sees of them, [I, N, D]."""
        return self.embed_images(pixel_values)[0]

    def embed_images(
        self, pixel_values: Tensor | None = None, sources: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[I, 3, P, P], or the encoder's sources {source: [I, N_source, D_source]} -> [I, N, D] and diagnostics.

        No images (I = 0) go through it as one blank, of which nothing is returned: with several ranks each must take
        part in every parameter's gradient, whatever its rows are.
        """
        if sources is None:
            assert pixel_values is not None
            images, sources = len(pixel_values), self.encoder(_one_at_least(pixel_values))
        else:
            images = len(next(iter(sources.values())))
            sources = {name: _one_at_least(source) for name, source in sources.items()}
        fused = self.fusion(self.alignment(sources))
        features = self.projector(self.output_norm(fused.features))
        return features[:images], fused.diagnostics if images else {}

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        image_sources: dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        dataset_ids: Tensor | None = None,
        dataset_count: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> FlorenceVLOutput:
        """Token ids with expanded image placeholders -> loss (with labels) or logits.

        Args:
            input_ids: [B, S]; `config.image_token_id` stands once per image token.
            pixel_values: [I, 3, P, P] in the order of the placeholders, or None.
            attention_mask: [B, S], 0 at pads; None where only the end of a row is padded, as in training.
            labels: [B, S], -100 where unsupervised.
            image_sources: the encoder's output, where it is at hand already, in place of pixel_values.
            position_ids: [B, S]; they restart with each document of a packed row, which then sees itself alone.
            logits_to_keep: only the last so many positions' logits; 0 for all.
            dataset_ids: [B, S], below `dataset_count`, for losses per data set.
            num_items_in_batch: what transformers' Trainer divides the sum of the losses by: the supervised tokens of
                all batches of its step.

        Raises:
            ValueError: placeholders and images do not match (the message has the counts), or packed rows come with an
                attention mask or a cache.
        """
        use_cache = cache_for(position_ids, attention_mask, past_key_values, False if labels is not None else use_cache)
        first_pass = past_key_values is None or not past_key_values.get_seq_length()
        embeddings, diagnostics = self._embed(input_ids, pixel_values, image_sources, first_pass)
        output = self.language_model(
            embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        hidden = output.last_hidden_state
        if labels is None:
            logits = self.language_model.logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
            return FlorenceVLOutput(logits=logits, past_key_values=output.past_key_values, diagnostics=diagnostics)
        if position_ids is not None:  # the last token of a document is not asked for the first of the next
            labels = labels.masked_fill(position_ids == 0, IGNORE_INDEX)
        loss = self._loss(hidden, labels, dataset_ids, dataset_count)
        divided = loss.mean if num_items_in_batch is None else loss.sum / num_items_in_batch
        counts = {name: getattr(loss, name) for name in ("tokens", "correct", "dataset_sums", "dataset_tokens")}
        return FlorenceVLOutput(loss=divided, loss_sum=loss.sum, diagnostics=diagnostics, **counts)

    def _embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_sources: dict[str, Tensor] | None,
        first_pass: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings [B, S, D] with the images in their places, and the fusion's diagnostics."""
        is_image = input_ids == self.config.image_token_id
        # The placeholder may lie beyond the table of a model whose vocabulary was not grown for it.
        embeddings = self.language_model.embed(input_ids.masked_fill(is_image, 0))
        if pixel_values is not None or image_sources is not None:
            images, diagnostics = self.embed_images(pixel_values, image_sources)
            return splice_images(embeddings, input_ids, images, self.config.image_token_id), diagnostics
        if first_pass and is_image.any():
            raise ValueError(f"{int(is_image.sum())} image placeholders in the batch, but no images")
        return embeddings, {}

    def _loss(self, hidden: Tensor, labels: Tensor, dataset_ids: Tensor | None, dataset_count: int) -> TokenLoss:
        """Hidden states [B, S, D] and the labels at their own places [B, S] -> losses of the next token."""
        return token_loss(
            hidden[:, :-1],
            labels[:, 1:],
            self.language_model.logits,
            self.config.get_text_config().vocab_size,
            None if dataset_ids is None else dataset_ids[:, 1:],
            dataset_count,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_sources: dict[str, Tensor] | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The inputs of one step; images go in with the prompt only, since the cache holds them afterwards."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values": pixel_values, "image_sources": image_sources}
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Every row `expand_size` times, for beams and for several answers; the encoder still runs once per image."""
        pixel_values, sources = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_sources", None)
        expanded, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if expand_size > 1 and input_ids is not None and (pixel_values is not None or sources is not None):
            sources, pixel_values = self.encoder(pixel_values) if sources is None else sources, None
            per_row = (input_ids == self.config.image_token_id).sum(1) // self.projector.tokens
            images = torch.arange(len(next(iter(sources.values()))), device=input_ids.device)
            if per_row.sum() == len(images):  # or the forward pass will say what does not match
                # Not each image as often, one after the other: the images of a row stay together.
                images = torch.cat([row.repeat(expand_size) for row in images.split(per_row.tolist())])
            sources = {name: source[images] for name, source in sources.items()}
        return expanded, model_kwargs | {"pixel_values": pixel_values, "image_sources": sources}

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token table."""
        return self.language_model.model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """Returns the language model's head, which `all-linear` of peft leaves out."""
        return self.language_model.model.get_output_embeddings()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """transformers' hook for modules that a checkpoint did not fill."""
        reset_module(module, initializers(self).get(module))


def _one_at_least(images: Tensor) -> Tensor:
    """The images or features [I, ...] themselves, or one blank in place of none."""
    return images if len(images) else images.new_zeros(1, *images.shape[1:])


AutoModelForImageTextToText.register(FlorenceVLConfig, FlorenceVLForConditionalGeneration)
