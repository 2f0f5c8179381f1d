"""What the stages with a language model share."""

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.types import Batch
from fvl_lightning.modeling.adapters.folders import save_adapter
from fvl_lightning.modeling.build import build_model
from fvl_lightning.modeling.loss import TokenLoss
from fvl_lightning.modeling.packing import check_causal, check_packing
from fvl_lightning.modeling.processing.processor import make_processor
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import children
from fvl_lightning.training.lora import adapted


class LanguageStage(Stage):
    """Trains on rows of text with images."""

    VIEWS: ClassVar = ("conversation", "caption")
    _packing_checked = False

    @classmethod
    def build(cls, experiment: ExperimentConfig, device: str = "cpu") -> "LanguageStage":
        """The stage over a whole model."""
        built = build_model(experiment, device)
        return cls(experiment, built.model, built.tokenizer)

    def on_fit_start(self) -> None:
        """Refuses a language model that sees the tokens it is asked for."""
        check_causal(self.model)

    def compute(self, batch: Batch) -> tuple[TokenLoss, dict[str, Tensor]]:
        """Rows [B, S] and images [I, 3, P, P] (or their features) -> loss over the supervised tokens.

        Raises:
            ConfigError: the first packed batch, where the language model lets documents of a row see each other.
        """
        if batch.positions is not None and not self._packing_checked:
            check_packing(self.model)
            self._packing_checked = True
        output = self.model(
            batch.token_ids,
            pixel_values=batch.images,
            image_sources=batch.features,
            labels=batch.labels,
            position_ids=batch.positions,
            dataset_ids=batch.dataset_ids,
            dataset_count=len(batch.datasets),
            return_logits=False,
        )
        loss = TokenLoss(
            output.loss_sum, output.tokens, output.correct, output.dataset_sums, output.dataset_tokens
        )
        return loss, output.diagnostics

    def save_model(self, folder: Path) -> None:
        """Model (safetensors) or adapter, configuration and processor, as transformers and peft load them."""
        if not adapted(self.trainable):
            self.save_whole(folder)
            return
        save_adapter(self.model, folder, self.base, self.frozen_hash, children(self.trainable, "full"))
        self._save_processor(folder)

    def save_whole(self, folder: Path) -> None:
        """Model, configuration and processor; of a model without adapters."""
        self.model.save_pretrained(folder)
        self._save_processor(folder)

    def _save_processor(self, folder: Path) -> None:
        data = self.experiment.data.config
        image = self.model.image_spec
        processor = make_processor(image, self.tokenizer, data.image_fit, data.scaled_decode, self.asking)
        processor.save_pretrained(folder)
