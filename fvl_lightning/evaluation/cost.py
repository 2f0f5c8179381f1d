"""What a trained model costs beside what it scores: counted on one batch of the data it was trained on."""

from typing import Any

import torch

from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.inference.generation import left_padded
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.profiling.flops import count_flops, training_flops
from fvl_lightning.runs.folder import RunFolder

QUESTIONS = 8
"""Over so many the operations of a question are averaged."""


def count_cost(run: RunFolder, built: BuiltModel, data: Any) -> dict[str, int]:
    """Image tokens that the language model sees per image, and operations per sample and per question.

    Training is one batch of the run's last stage, forwards and backwards, the encoder's forward included, wherever its
    features were kept. Inference is an image and a question up to the first token of the answer. `built` is left in
    train mode.
    """
    return {
        "image_tokens": built.model.image_spec.tokens_per_image,
        "inference_flops": _inference(built, data),
        "training_flops": _training(run, built, data),
    }


def _inference(built: BuiltModel, data: Any) -> int:
    questions = list({question.index: question for question in data.questions("test")}.values())[:QUESTIONS]
    pixels = data.pixels("test", [question.index for question in questions]).to(built.model.device)
    prompts = [data.encoder.prompt(question.prompt_messages) for question in questions]
    ids, mask = left_padded(prompts, built.tokenizer.pad_token_id, built.model.device)
    with torch.no_grad():
        flops = count_flops(lambda: built.model(ids, pixel_values=pixels, attention_mask=mask, logits_to_keep=1))
    return flops // len(questions)


def _training(run: RunFolder, built: BuiltModel, data: Any) -> int:
    experiment = check_config(ExperimentConfig, run.config)
    assert experiment.stage is not None
    stage = experiment.stage.component(experiment, built.model, built.tokenizer)
    batch = next(iter(data.train_dataloader()))
    return training_flops(stage, batch) // len(batch.keys)
