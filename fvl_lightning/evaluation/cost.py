"""Cost of a trained model: image tokens and operations, counted on data it was trained on."""

import torch

from datamodules.base import BatchData
from fvl_lightning.core.errors import DataError
from fvl_lightning.inference.generation import pad_left
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.profiling.flops import count_flops, question_flops, training_flops
from fvl_lightning.runs.folder import RunFolder

QUESTIONS = 8
"""Questions over which the operations of one question are averaged."""


def count_cost(
    run: RunFolder, built: BuiltModel, data: BatchData, prompt_tokens: int | None = None
) -> dict[str, int]:
    """Returns image tokens per image in the language model, and operations per sample and per question.

    Training is one batch of the run's stage, forward and backward; the encoder's forward is included even if its
    features were cached. Inference is an image and a question, up to the first token of the answer.

    Args:
        run: a finished run.
        built: its model and tokenizer; the model is left in train mode.
        data: its data module, connected to the model.
        prompt_tokens: text tokens of a question, for data without any; None takes the first ones of the split test.

    Raises:
        DataError: the run has no stage.
    """
    asked = _inference(built, data) if prompt_tokens is None else question_flops(built.model, prompt_tokens)
    return {
        "image_tokens": built.model.image_spec.tokens_per_image,
        "inference_flops": asked,
        "training_flops": _training(run, built, data),
    }


def _inference(built: BuiltModel, data: BatchData) -> int:
    questions = list({question.index: question for question in data.questions("test")}.values())[:QUESTIONS]
    pixels = data.pixels("test", [question.index for question in questions])
    pixels = pixels.to(built.model.device, built.model.dtype)
    prompts = [data.encoder.prompt(question.prompt_messages) for question in questions]
    ids, mask = pad_left(prompts, built.tokenizer.pad_token_id, built.model.device)
    with torch.no_grad():
        flops = count_flops(lambda: built.model(ids, pixel_values=pixels, attention_mask=mask, logits_to_keep=1))
    return flops // len(questions)


def _training(run: RunFolder, built: BuiltModel, data: BatchData) -> int:
    experiment = run.experiment()
    if experiment.stage is None:
        raise DataError(f"{run.path}: its configuration names no stage")
    stage = experiment.stage.component(experiment, built.model, built.tokenizer)
    batch = next(iter(data.train_dataloader())).to(built.model.device)
    return training_flops(stage, batch) // len(batch.keys)
