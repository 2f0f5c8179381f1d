"""Florence-2 itself, with its decoder, learns to write what each prompt asks for (arXiv 2311.06242, section 3).

Caption -> a caption, ocr -> the text, grounding -> labels with boxes as location tokens. Without it the prompts of an
encoder from random weights mean nothing; on hub weights it is Florence-2's finetuning.
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
        """The stage over the encoder alone, its decoder kept."""
        if not hasattr(experiment.encoder.component, "decode"):
            raise ConfigError(f"encoder: {experiment.encoder.name} has no decoder to train, take florence2")
        if experiment.trainable.get("encoder") == "lora":
            raise ConfigError("trainable.encoder: stage encoder_pretrain trains an encoder in full")
        encoder_config = dataclasses.replace(experiment.encoder.config, decoder="keep")
        kept = dataclasses.replace(
            experiment, encoder=Choice("encoder", experiment.encoder.name, encoder_config)
        )
        tokenizer = kept.encoder.component.load_tokenizer(encoder_config)
        model = build_encoder(kept, device)
        model.encoder.check_tokenizer(tokenizer)
        return cls(experiment, model, tokenizer)

    def compute(self, batch: PromptedBatch) -> tuple[TokenLoss, dict[str, Tensor]]:
        """Images [I, 3, P, P] and targets [I, T, L] -> loss over all prompts' tokens."""
        return TokenLoss(*self.model(batch.images, batch.targets)), {}

    def save_model(self, folder: Path) -> None:
        """The encoder's weights under their names in the whole model, its resolved Config, and its tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.model.state_dict().items()},
                  folder / "model.safetensors")
        text = json.dumps(dataclasses.asdict(self.model.encoder.config), indent=2)
        write_text_atomically(folder / ENCODER_FILE, text)
        self.tokenizer.save_pretrained(folder)
