"""Pretraining of Florence-2 with its decoder: it learns to write what each prompt asks (arXiv 2311.06242, section 3).

The prompt caption asks for a caption, ocr for the text, and grounding for labels with boxes as location tokens. An
encoder with random weights needs this stage, since its prompts mean nothing yet; on hub weights it is finetuning.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from safetensors.torch import save_file
from torch import Tensor

from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import Choice
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import PromptedBatch
from fvl_lightning.modeling.build import ENCODER_FILE, build_encoder
from fvl_lightning.modeling.loss import TokenLoss
from fvl_lightning.stages.base import Stage


@register("stage", "encoder_pretrain")
class EncoderPretrainStage(Stage):
    """Images and prompts -> text, all prompts of an image in one pass; fusion and language model have no part."""

    @dataclass
    class Config:
        """Nothing to set."""

    VIEWS: ClassVar = ("tasks",)
    TRAINABLE: ClassVar = {"encoder": "full"}

    @classmethod
    def build(cls, experiment: ExperimentConfig, device: str = "cpu") -> "EncoderPretrainStage":
        """Returns the stage with a freshly initialised encoder and its decoder.

        Raises:
            ConfigError: the encoder has no decoder, or `trainable` asks for LoRA.
        """
        if not experiment.encoder.component.can_decode():
            raise ConfigError(f"encoder: {experiment.encoder.name} has no decoder to train, take florence2")
        if experiment.trainable.get("encoder") == "lora":
            raise ConfigError("trainable.encoder: stage encoder_pretrain trains an encoder in full")
        encoder_config = dataclasses.replace(experiment.encoder.config, decoder="keep")
        with_decoder = dataclasses.replace(
            experiment, encoder=Choice("encoder", experiment.encoder.name, encoder_config)
        )
        tokenizer = with_decoder.encoder.component.load_tokenizer(encoder_config)
        model = build_encoder(with_decoder, device)
        model.encoder.check_tokenizer(tokenizer)
        return cls(experiment, model, tokenizer)

    def compute(self, batch: PromptedBatch) -> tuple[TokenLoss, dict[str, Tensor]]:
        """Returns the loss over the target tokens [I, T, L] of all T prompts of the images [I, 3, P, P]."""
        return TokenLoss(*self.model(batch.images, batch.targets)), {}

    def save_model(self, folder: Path) -> None:
        """Writes the weights, under their names in the whole model, the resolved Config and the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()},
            folder / "model.safetensors",
        )
        text = json.dumps(dataclasses.asdict(self.model.encoder.config), indent=2)
        write_text_atomically(folder / ENCODER_FILE, text)
        self.tokenizer.save_pretrained(folder)
