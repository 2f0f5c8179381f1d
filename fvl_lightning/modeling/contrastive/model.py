"""The model with a forward pass that contrasts images with captions instead of predicting tokens."""

from typing import Any, NamedTuple

from torch import Tensor

from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.contrastive.loss import contrastive_loss
from fvl_lightning.modeling.contrastive.vectors import PairVectors, pair_vectors
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration


class ContrastiveOutput(NamedTuple):
    """The loss of a batch under the names of a language model's output, and the vectors of its M pairs.

    Attributes:
        loss_sum: see ContrastiveLoss; also tokens, which counts pairs, and correct.
        captions: the number of captions that an image is compared with, N; a mean where groups differ.
        vectors: the vectors of the pairs.
    """

    loss_sum: Tensor
    tokens: Tensor
    correct: Tensor
    captions: Tensor
    vectors: PairVectors


class ContrastiveModel(FlorenceVLForConditionalGeneration):
    """Compares images with captions; parts, names and files are those of FlorenceVLForConditionalGeneration."""

    def __init__(self, config: FlorenceVLConfig) -> None:
        super().__init__(config)
        self.group, self.temperature = 2, 1.0
        """N and the temperature of the loss, which the stage sets."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        image_sources: dict[str, Tensor] | None = None,
        question_ids: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """Returns a ContrastiveOutput for rows of one sample each; with several ranks, each of them must call it.

        Without labels, the forward pass is that of the parent class, and returns logits.

        Args:
            input_ids: [B, S], with expanded image placeholders.
            pixel_values: [I, 3, P, P], or None.
            labels: [B, S], -100 outside of captions.
            image_sources: the encoder's output {source: [I, N_source, D_source]}, in place of pixel_values.
            question_ids: [I, L], for a conditioned fusion.
            others: arguments of the parent's forward pass, without effect where labels are given.
        """
        if labels is None:
            images = {"pixel_values": pixel_values, "image_sources": image_sources, "question_ids": question_ids}
            return super().forward(input_ids, **images, **others)
        assert input_ids is not None
        vectors = pair_vectors(self, input_ids, labels, pixel_values, image_sources, question_ids)
        loss = contrastive_loss(vectors.images, vectors.captions, self.temperature, self.group)
        captions = loss.captions.float() / loss.pairs.clamp(min=1)
        return ContrastiveOutput(loss.sum, loss.pairs, loss.correct, captions, vectors)
