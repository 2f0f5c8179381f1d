"""The base class of the stages that train a whole model on text with images."""

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import Batch
from fvl_lightning.modeling.adapters.folders import save_adapter
from fvl_lightning.modeling.attention.choice import choose_attention, use_attention
from fvl_lightning.modeling.attention.kernels import document_inputs
from fvl_lightning.modeling.build import LoadedModel, build_model
from fvl_lightning.modeling.loss import TokenLoss
from fvl_lightning.modeling.packing import check_causal, check_packing
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor, make_processor
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import children_with_mode
from fvl_lightning.training.lora import lora_components


class LanguageStage(Stage):
    """Trains a model on rows of text with images."""

    VIEWS: ClassVar[tuple[str, ...]] = ("conversation", "caption")
    _packing_checked = False

    def __init__(self, experiment: ExperimentConfig, model: nn.Module, tokenizer: Any) -> None:
        super().__init__(experiment, model, tokenizer)
        self.attention = choose_attention(experiment, model)
        use_attention(model, self.attention.name)

    @classmethod
    def build(cls, experiment: ExperimentConfig, device: str = "cpu") -> "LanguageStage":
        """Returns the stage with a freshly initialised model."""
        built = build_model(experiment, device)
        return cls(experiment, built.model, built.tokenizer)

    def on_fit_start(self) -> None:
        """Raises ConfigError if the language model can see the tokens that it must predict."""
        check_causal(self.model)

    def compute(self, batch: Batch) -> tuple[TokenLoss, dict[str, Tensor]]:
        """Returns the loss over the supervised tokens of rows [B, S] with images [I, 3, P, P] or their features.

        Raises:
            ConfigError: the batch is packed, and the language model lets the documents of a row see each other.
        """
        if batch.positions is not None and not self._packing_checked:
            check_packing(self.model, batch.boundaries is not None)
            self._packing_checked = True
        output = self.model(
            batch.token_ids,
            pixel_values=batch.images,
            image_sources=batch.features,
            question_ids=batch.questions,
            labels=batch.labels,
            position_ids=batch.positions,
            dataset_ids=batch.dataset_ids,
            dataset_count=len(batch.datasets),
            return_logits=False,
            **document_inputs(batch.boundaries, batch.longest),
        )
        loss = TokenLoss(output.loss_sum, output.tokens, output.correct, output.dataset_sums, output.dataset_tokens)
        return loss, output.diagnostics

    def save_model(self, folder: Path) -> None:
        """Writes the model or its adapter, the configuration and the processor, as transformers and peft load them."""
        if not lora_components(self.trainable):
            self.save_whole(folder)
            return
        save_adapter(self.model, folder, self.base, self.frozen_hash, children_with_mode(self.trainable, "full"))
        self._save_processor(folder)

    def save_whole(self, folder: Path) -> None:
        """Writes a model without adapters, its configuration and its processor."""
        self.model.save_pretrained(folder)
        self._save_processor(folder)

    def answering(self) -> LoadedModel:
        """Returns the model that is being trained, with its processor, in the mode that it has."""
        return LoadedModel(self.model, self.tokenizer, self._processor())

    def _save_processor(self, folder: Path) -> None:
        self._processor().save_pretrained(folder)

    def _processor(self) -> FlorenceVLProcessor:
        data, model = self.experiment.data.config, self.model
        fit, scaled, tiles = data.image_fit, data.scaled_decode, data.tiles
        return make_processor(model.image_spec, self.tokenizer, fit, scaled, self.asking, tiles, model.conditioned)
