"""The model: images -> encoder -> fusion -> projector -> rows of the language model -> loss, or text.

The same class trains in the stages, saves and loads as a Hugging Face model, and generates.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.attention.kernels import without_mask
from fvl_lightning.modeling.composed import ComposedModel
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.connector.image_embeddings import ImageEmbedder
from fvl_lightning.modeling.generation import ImageGenerationMixin
from fvl_lightning.modeling.initialization import initializers, reset_module
from fvl_lightning.modeling.loss import token_loss
from fvl_lightning.modeling.outputs import FlorenceVLOutput, language_model_inputs
from fvl_lightning.modeling.packing import cache_for
from fvl_lightning.modeling.splice import splice_images

ImageInputs = tuple[Tensor | None, dict[str, Tensor] | None, Tensor | None]
"""pixel_values, image_sources and question_ids."""


class FlorenceVLForConditionalGeneration(ComposedModel, ImageEmbedder, ImageGenerationMixin):
    """A causal language model that sees images through an encoder, a fusion and a projector."""

    main_input_name = "input_ids"
    input_modalities = ("image", "text")

    def __init__(self, config: FlorenceVLConfig) -> None:
        super().__init__(config)
        self.build_image_parts(config)
        self.compose()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        image_sources: dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        dataset_ids: Tensor | None = None,
        dataset_count: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        inputs_embeds: Tensor | None = None,
        return_logits: bool | None = None,
        question_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> FlorenceVLOutput:
        """Returns the loss (with labels), the logits, or both; other arguments and errors are those of `run`.

        Args:
            input_ids: [B, S], with expanded image placeholders.
            labels: [B, S], -100 for unsupervised tokens.
            logits_to_keep: the number of last positions to compute logits for, or their indices; 0 for all.
            dataset_ids: [B, S], below `dataset_count`, for the loss of each dataset.
            dataset_count: the number of datasets.
            num_items_in_batch: the divisor of the sum of the losses: in transformers' Trainer the supervised tokens of
                all batches of a step.
            return_logits: whether to compute logits in addition to a loss; None: in eval mode only, for metrics.
        """
        use_cache = False if labels is not None else use_cache
        prompt = (input_ids, pixel_values, attention_mask, image_sources, position_ids)
        output, diagnostics = self.run(*prompt, past_key_values, use_cache, inputs_embeds, question_ids, **kwargs)
        hidden, logits = output.last_hidden_state, None
        if labels is None or (not self.training if return_logits is None else return_logits):
            logits = self.language_model.logits(_select_positions(hidden, logits_to_keep))
        losses: dict[str, Any] = {}
        if labels is not None:
            losses = self._losses(hidden, labels, position_ids, dataset_ids, dataset_count, num_items_in_batch)
        return FlorenceVLOutput(
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=getattr(output, "hidden_states", None),
            attentions=getattr(output, "attentions", None),
            diagnostics=diagnostics,
            **losses,
        )

    def run(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_sources: dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        inputs_embeds: Tensor | None = None,
        question_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Runs the model up to its head.

        Args:
            input_ids: [B, S]; with `config.image_token_id` once per image token.
            pixel_values: [I, 3, P, P] in the order of the placeholders, or None.
            attention_mask: [B, S], 0 for padding; None if only the ends of rows are padded, as in training.
            image_sources: the encoder's output {source: [I, N_source, D_source]}, in place of pixel_values.
            position_ids: [B, S]; they restart with each document of a packed row, which then sees only itself.
            inputs_embeds: [B, S, D], in place of input_ids and images.
            question_ids: [I, L], the tokens of the question about each image, for a conditioned fusion.
            kwargs: `output_attentions`, `output_hidden_states` and other arguments of transformers' causal models, such
                as `cu_seq_lens_q` and the others of flash attention, for an attention without a mask over packed rows.

        Returns:
            The language model's output, with `last_hidden_state` [B, S, D], and the fusion's diagnostics.

        Raises:
            TypeError: an unknown keyword argument.
            ValueError: placeholders and images do not match (the message gives the counts), or packed rows come with an
                attention mask or a cache.
        """
        self._check_cache(past_key_values)
        use_cache = cache_for(position_ids, attention_mask, past_key_values, use_cache)
        first_pass = past_key_values is None or not past_key_values.get_seq_length()
        images = (pixel_values, image_sources, question_ids)
        embeddings, diagnostics = self._embeddings(input_ids, images, inputs_embeds, first_pass)
        inputs = language_model_inputs(kwargs, self.config)
        if attention_mask is None:
            implementation = self.config.get_text_config()._attn_implementation
            attention_mask = without_mask(inputs, implementation, embeddings.device)
        output = self.language_model(
            embeddings,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **inputs,
        )
        if self.inner_layers is not None and not (self.training and self.is_activation_checkpointing):
            self.inner_layers.hide()  # a recomputation in the backward pass needs them again
        return output, diagnostics

    def _check_cache(self, past_key_values: Any) -> None:
        """Raises ValueError for a cache that the layers would drop."""
        if self.training and past_key_values is not None and self.is_activation_checkpointing:
            raise ValueError(
                "with activation checkpointing in training mode the layers would drop the cache, and a new token would "
                "see the last one alone; call model.eval() first, or generate with use_cache=False"
            )

    def _embeddings(
        self, input_ids: Tensor | None, images: ImageInputs, inputs_embeds: Tensor | None, first_pass: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the embeddings [B, S, D] with the images in their places, and the fusion's diagnostics."""
        if inputs_embeds is None and input_ids is not None:
            return self._embed(input_ids, images, first_pass)
        if inputs_embeds is None or input_ids is not None or images[0] is not None or images[1] is not None:
            raise ValueError("give input_ids and their images, or inputs_embeds, which hold the images already")
        if self.inner_layers is not None and first_pass:
            raise ValueError("give input_ids and images: inputs_embeds do not hold the features of inner layers")
        return inputs_embeds, {}

    def _embed(self, input_ids: Tensor, images: ImageInputs, first_pass: bool) -> tuple[Tensor, dict[str, Tensor]]:
        is_image = input_ids == self.config.image_token_id
        # The id of the placeholder may lie beyond the token embeddings.
        embeddings = self.language_model.embed(input_ids.masked_fill(is_image, 0))
        embedded = None if images[0] is None and images[1] is None else self.embed_images(*images)
        if self.inner_layers is not None:
            self.inner_layers.show(is_image, embedded.inner_layers if embedded else {})
        if embedded is not None:
            spliced = splice_images(embeddings, input_ids, embedded.features, self.config.image_token_id)
            return spliced, embedded.diagnostics
        if first_pass and is_image.any():
            raise ValueError(f"{int(is_image.sum())} image placeholders in the batch, but no images")
        return embeddings, {}

    def _losses(
        self,
        hidden: Tensor,
        labels: Tensor,
        position_ids: Tensor | None,
        dataset_ids: Tensor | None,
        dataset_count: int,
        items: Tensor | int | None,
    ) -> dict[str, Any]:
        """Returns the losses among the outputs, given hidden states [B, S, D] and labels [B, S] that are not shifted.

        Args:
            items: the divisor of the sum of losses; None for the number of supervised tokens of these rows.
        """
        if position_ids is not None:  # the last token of a document does not predict the next document
            labels = labels.masked_fill(position_ids == 0, IGNORE_INDEX)
        loss = token_loss(
            hidden[:, :-1],
            labels[:, 1:].to(hidden.device),
            self.language_model.logits,
            self.config.vocab_size,
            None if dataset_ids is None else dataset_ids[:, 1:],
            dataset_count,
        )
        losses = {name: getattr(loss, name) for name in ("tokens", "correct", "dataset_sums", "dataset_tokens")}
        return losses | {"loss": loss.mean if items is None else loss.sum / items, "loss_sum": loss.sum}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises a module that a checkpoint did not fill; transformers calls it."""
        reset_module(module, initializers(self).get(module))


def _select_positions(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """Returns the last `logits_to_keep` positions of [B, S, D], or those at these indices; 0 for all."""
    if isinstance(logits_to_keep, Tensor):
        return hidden[:, logits_to_keep]
    return hidden[:, -logits_to_keep:] if logits_to_keep else hidden


AutoModelForImageTextToText.register(FlorenceVLConfig, FlorenceVLForConditionalGeneration)
AutoModelForMultimodalLM.register(FlorenceVLConfig, FlorenceVLForConditionalGeneration)
# Label smoothing of transformers' Trainer shifts the labels of the classes in this table.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[FlorenceVLConfig.model_type] = FlorenceVLForConditionalGeneration.__name__
