"""Images in transformers' generate: they enter at the first step and are repeated with their rows."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin


class ImageGenerationMixin(GenerationMixin):
    """Generation for a model with `encoder`, `projector` and `config.image_token_id`, whose prompts hold images."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_sources: dict[str, Tensor] | None = None,
        question_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the inputs of one step; only the first has images, since the cache holds them afterwards."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs |= {"pixel_values": pixel_values, "image_sources": image_sources, "question_ids": question_ids}
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeats every row `expand_size` times, for beams and for several answers; the encoder runs once per image."""
        pixel_values, sources = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_sources", None)
        questions = model_kwargs.pop("question_ids", None)
        expanded, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        if expand_size > 1 and input_ids is not None and (pixel_values is not None or sources is not None):
            sources, pixel_values = self.encoder(pixel_values) if sources is None else sources, None
            per_row = (input_ids == self.config.image_token_id).sum(1) // self.projector.tokens
            images = torch.arange(len(next(iter(sources.values()))), device=input_ids.device)
            if per_row.sum() == len(images):  # otherwise the forward pass raises an error
                # Repeats the images of a row together, rather than each image by itself.
                images = torch.cat([row.repeat(expand_size) for row in images.split(per_row.tolist())])
            sources = type(sources)({name: source[images] for name, source in sources.items()})
            questions = None if questions is None else questions[images.to(questions.device)]
        given = {"pixel_values": pixel_values, "image_sources": sources, "question_ids": questions}
        return expanded, model_kwargs | given
