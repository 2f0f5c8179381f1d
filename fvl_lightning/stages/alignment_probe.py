"""The probe of arXiv 2412.04424, section 4: how well a trainable projection of image features fits captions.

Encoder and language model are frozen, so that the loss compares encoders, sources and fusions without training a model
of each. Losses are comparable only for the same number of captions N, temperature, language model and data.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.errors import ConfigError, DataError, unknown_name
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import Batch, PromptedBatch
from fvl_lightning.modeling.build import build_model
from fvl_lightning.modeling.contrastive.evaluation import Pairs, evaluate_pairs
from fvl_lightning.modeling.contrastive.model import ContrastiveModel, ContrastiveOutput
from fvl_lightning.modeling.contrastive.vectors import caption_numbers
from fvl_lightning.modeling.loss import TokenLoss
from fvl_lightning.stages.language import LanguageStage

INHERITED = ("encoder", "language_model")
"""The components that are not what the probe trains."""


class _ValidationBatch(NamedTuple):
    """The pairs of one batch of this rank, and a number for the text of each caption."""

    images: Tensor
    captions: Tensor
    texts: list[int]


@register("stage", "alignment_probe")
class AlignmentProbeStage(LanguageStage):
    """Captions; fusion and projector learn to tell the image's own caption from N - 1 others."""

    @dataclass
    class Config:
        """The loss, and what the probe is made of."""

        captions: int = number(32, at_least=2)
        """N: each image is compared with its own and N - 1 other captions. A batch, over all devices, has a multiple of
        N rows."""
        temperature: float = number(1.0, above=0)
        """Divides the cosine similarities; the paper names none, which is 1, and CLIP begins with 0.07."""
        inherit: list[str] = field(default_factory=lambda: list(INHERITED))
        """What `init_from` gives, of encoder and language_model. The rest has random weights: [language_model] probes a
        random encoder, for comparison."""

        def __post_init__(self) -> None:
            for name in self.inherit:
                if name not in INHERITED:
                    raise unknown_name("component", name, INHERITED, "stage.inherit")

    VIEWS: ClassVar = ("caption",)
    TRAINABLE: ClassVar = {"encoder": "frozen", "fusion": "full", "projector": "full", "language_model": "frozen"}

    def __init__(self, experiment: ExperimentConfig, model: nn.Module, tokenizer: Any) -> None:
        config, trainer = experiment.stage.config, experiment.trainer
        rows = trainer.batch_size * trainer.world_size
        if rows % config.captions:
            raise ConfigError(
                f"stage.captions: the {rows} rows of a batch (trainer.batch_size {trainer.batch_size} x "
                f"{trainer.world_size} devices) are no multiple of N = {config.captions}, and a smaller N would give a "
                "lower loss that compares with nothing"
            )
        if experiment.data.config.layout == "packed":
            raise ConfigError("data.packing: stage alignment_probe needs one caption per row, take packing: none")
        super().__init__(experiment, model, tokenizer)
        if self.model.inner_layers is not None:
            raise ConfigError(
                f"fusion: {experiment.fusion.name} brings features into inner layers of the language model, which "
                "stage alignment_probe does not read; take a fusion whose features are image tokens"
            )
        self.inherits = tuple(config.inherit)
        self.model.group, self.model.temperature = config.captions, config.temperature
        self._validation: list[_ValidationBatch] = []

    @classmethod
    def build(cls, experiment: ExperimentConfig, device: str = "cpu") -> "AlignmentProbeStage":
        """Returns the stage with a freshly initialised model."""
        built = build_model(experiment, device, ContrastiveModel)
        return cls(experiment, built.model, built.tokenizer)

    def compute(self, batch: Batch) -> tuple[TokenLoss, dict[str, Tensor]]:
        """Returns the loss of the pairs of a batch in place of tokens, with N and the temperature as diagnostics.

        Groups of N pairs go on from rank to rank, so that N does not depend on the number of ranks.
        """
        output = self._contrast(batch)
        temperature = output.captions.new_tensor(self.model.temperature)
        diagnostics = {"alignment/captions": output.captions, "alignment/temperature": temperature}
        loss = TokenLoss(output.loss_sum, output.tokens, output.correct)
        return loss, diagnostics if len(output.vectors.rows) else {}

    def read_log(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last call; the accuracy is one of pairs."""
        return {name.replace("token_accuracy", "accuracy"): value for name, value in super().read_log().items()}

    def validation_step(self, batch: Batch | PromptedBatch, batch_index: int) -> None:
        """Keeps the vectors of a batch for the end of the pass."""
        assert isinstance(batch, Batch), "VIEWS has no other"
        output = self._contrast(batch)
        images, captions, rows = output.vectors
        texts = caption_numbers(batch.token_ids, batch.labels, rows)
        self._validation.append(_ValidationBatch(images.cpu(), captions.cpu(), texts))
        self.validation_watch.add(output.loss_sum, batch.keys)

    def on_validation_epoch_end(self) -> None:
        """Logs loss, floor and retrieval over the pairs of all ranks, which do not depend on the number of ranks.

        Raises:
            DataError: the split has no pair of an image and a caption.
        """
        if self.sharded is not None:
            self.sharded.reshard()
        batches, self._validation = self._validation, []
        pairs = _joined(chain(*zip(*self._gather_from_ranks(batches), strict=True)))
        if not len(pairs.texts):
            raise DataError("validation: no sample has an image and a caption, so that nothing can be compared")
        found = evaluate_pairs(pairs, self.model.group, self.model.temperature)
        self.last_validation_loss = found["loss"]
        self.validation_watch.check(self.global_step, found["loss"], self._gather_from_ranks)
        values = {f"validation/{name}": value for name, value in found.items()}
        self.log_dict(values, logger=False)  # for callbacks; equal on all ranks
        for run_logger in () if self.trainer.sanity_checking else self.loggers:
            run_logger.log_metrics(values, self.global_step)

    def _contrast(self, batch: Batch) -> ContrastiveOutput:
        return self.model(
            batch.token_ids,
            pixel_values=batch.images,
            labels=batch.labels,
            image_sources=batch.features,
            question_ids=batch.questions,
        )


def _joined(batches: Iterable[_ValidationBatch]) -> Pairs:
    """Returns the pairs of all batches, in their order."""
    images, captions, texts = zip(*batches, strict=True)
    return Pairs(torch.cat(images), torch.cat(captions), torch.tensor(list(chain(*texts)), dtype=torch.long))
