"""Scores of what an encoder writes with its own decoder: captions, words in images, and boxes of objects."""

import torch
from transformers import PreTrainedTokenizerBase

from datamodules.base import BatchData
from fvl_lightning.core.device import autocast
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.inference.boxes import parse_boxes, written_text

IMAGES_PER_BATCH = 64
"""Images that are decoded in one batch."""


@torch.no_grad()
def encoder_scores(
    encoder: Florence2Encoder,
    tokenizer: PreTrainedTokenizerBase,
    data: BatchData,
    split: str,
    precision: str = "32-true",
) -> dict[str, float]:
    """Scores an encoder on a split of prompted targets.

    Args:
        encoder: an encoder with a decoder, such as Florence-2, on the device on which it computes.
        tokenizer: the tokenizer of the targets.
        data: a connected data module with the view `tasks`.
        split: the name of the split.
        precision: a key of COMPUTE_PRECISIONS.

    Returns:
        {name: fraction from 0 to 1}. caption_tokens: caption tokens that are predicted right with the true ones before
        them. words: images with a word on which the word is written exactly. boxes: true boxes for which a box of the
        same label with an overlap above 0.5 is written.
    """
    encoder.eval()
    like = next(encoder.parameters())
    counts = {name: [0, 0] for name in ("caption_tokens", "words", "boxes")}
    task = {name: index for index, name in enumerate(encoder.tasks)}
    for start in range(0, len(data.store(split)), IMAGES_PER_BATCH):
        indices = range(start, min(start + IMAGES_PER_BATCH, len(data.store(split))))
        batch = data.prompted(split, indices).to(like.device)
        images, captions = batch.images.to(like.dtype), batch.targets[:, task["caption"]]
        with autocast(like.device, precision):
            predicted = encoder.logits(encoder.decode(images, batch.targets)[:, task["caption"]]).argmax(-1)
            written = encoder.write(images, max_tokens=batch.targets.shape[2])
        supervised = captions != IGNORE_INDEX
        _count(counts["caption_tokens"], int((predicted == captions)[supervised].sum()), int(supervised.sum()))
        targets, written = batch.targets.cpu(), written.cpu()
        for row, index in enumerate(indices):
            truth = [written_text(tokenizer, target[target != IGNORE_INDEX]) for target in targets[row]]
            texts = [written_text(tokenizer, ids) for ids in written[row]]
            if "word" in data.store(split).record(index).get("kinds", []):
                _count(counts["words"], int(texts[task["ocr"]] == truth[task["ocr"]]), 1)
            predicted_boxes, boxes = parse_boxes(texts[task["grounding"]]), parse_boxes(truth[task["grounding"]])
            hits = sum(any(b.label == p.label and b.overlap(p) > 0.5 for p in predicted_boxes) for b in boxes)
            _count(counts["boxes"], hits, len(boxes))
    return {name: right / max(1, asked) for name, (right, asked) in counts.items()}


def _count(pair: list[int], right: int, asked: int) -> None:
    pair[0] += right
    pair[1] += asked
