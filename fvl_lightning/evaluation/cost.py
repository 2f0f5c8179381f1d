"""Cost of a trained model: image tokens and operations, counted on data it was trained on."""

from statistics import fmean

import torch

from datamodules.base import BatchData
from datamodules.images.tiling import Size
from datamodules.storage.sample import spread
from fvl_lightning.core.errors import DataError
from fvl_lightning.inference.generation import pad_left, question_inputs
from fvl_lightning.modeling.build import BuiltModel
from fvl_lightning.profiling.flops import count_flops, question_flops, training_flops
from fvl_lightning.runs.folder import RunFolder

QUESTIONS = 8
"""Questions over which the operations of one question are averaged."""
SAMPLES = 64
"""Samples over whose images tiles and tokens are averaged."""


def count_cost(
    run: RunFolder, built: BuiltModel, data: BatchData, prompt_tokens: int | None = None
) -> dict[str, int]:
    """Returns image tokens per image in the language model (on average), and operations per sample and per question.

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
    tiles = max(1, round(mean_tiles(data)))
    asked = _inference(built, data) if prompt_tokens is None else question_flops(built.model, prompt_tokens, tiles)
    return {
        "image_tokens": round(mean_image_tokens(data)),
        "inference_flops": asked,
        "training_flops": _training(run, built, data),
    }


def mean_tiles(data: BatchData) -> float:
    """Returns the mean number of tiles of an image, over some images of the split validation; 1 without tiles."""
    tiling, sizes = data.reader.tiling, _some_sizes(data)
    return fmean(tiling.grid(size).tiles for size in sizes) if tiling is not None and sizes else 1.0


def mean_image_tokens(data: BatchData) -> float:
    """Returns the mean number of tokens of an image with the marks between its tiles, over the images of mean_tiles."""
    encoder, sizes = data.encoder, _some_sizes(data)
    return len(encoder.image_ids(sizes)) / len(sizes) if sizes else float(encoder.tokens_per_image)


def _some_sizes(data: BatchData) -> list[Size]:
    """Returns the sizes of some images of the split validation; none where images do not become tiles."""
    if data.reader.tiling is None:
        return []
    store = data.store("validation")
    return [size for i in spread(len(store), SAMPLES) for size in store.image_sizes(i)]


def _inference(built: BuiltModel, data: BatchData) -> int:
    questions = list({question.index: question for question in data.questions("test")}.values())[:QUESTIONS]
    pixels = data.pixels("test", [question.index for question in questions])
    pixels = pixels.to(built.model.device, built.model.dtype)
    prompts = [
        data.encoder.prompt(data.sized("test", question.index, question.prompt_messages)) for question in questions
    ]
    ids, mask = pad_left(prompts, built.tokenizer.pad_token_id, built.model.device)
    with torch.no_grad():
        inputs = question_inputs(built, [data.encoder.question(question.prompt_messages) for question in questions])
        flops = count_flops(lambda: built.model(ids, pixels, mask, logits_to_keep=1, **inputs))
    return flops // len(questions)


def _training(run: RunFolder, built: BuiltModel, data: BatchData) -> int:
    experiment = run.experiment()
    if experiment.stage is None:
        raise DataError(f"{run.path}: its configuration names no stage")
    stage = experiment.stage.component(experiment, built.model, built.tokenizer)
    batch = next(iter(data.train_dataloader())).to(built.model.device)
    return training_flops(stage, batch) // len(batch.keys)
