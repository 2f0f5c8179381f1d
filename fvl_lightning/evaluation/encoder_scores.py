"""What Florence-2 with its decoder can do by itself: write captions, read words, locate objects."""

from typing import Any

import torch

from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.inference.boxes import parse_boxes, written_text

IMAGES_AT_ONCE = 64


@torch.no_grad()
def encoder_scores(encoder: Any, tokenizer: Any, data: Any, split: str) -> dict[str, float]:
    """Scores on a split of prompted targets.

    Returns:
        caption_tokens: share of caption tokens predicted right with the true ones before them.
        words: share of images with a drawn word on which the word is written exactly.
        boxes: share of true boxes for which a box of the same label with an overlap above 0.5 is written.
    """
    encoder.eval()
    counts = {name: [0, 0] for name in ("caption_tokens", "words", "boxes")}
    task = {name: index for index, name in enumerate(encoder.tasks)}
    for start in range(0, len(data.store(split)), IMAGES_AT_ONCE):
        indices = range(start, min(start + IMAGES_AT_ONCE, len(data.store(split))))
        batch = data.prompted(split, indices).to(next(encoder.parameters()).device)
        captions = batch.targets[:, task["caption"]]
        predicted = encoder.logits(encoder.decode(batch.images, batch.targets)[:, task["caption"]]).argmax(-1)
        supervised = captions != IGNORE_INDEX
        _count(counts["caption_tokens"], int((predicted == captions)[supervised].sum()), int(supervised.sum()))
        written = encoder.write(batch.images, max_tokens=batch.targets.shape[2])
        for row, index in enumerate(indices):
            truth = [
                written_text(tokenizer, target[target != IGNORE_INDEX]) for target in batch.targets[row]
            ]
            texts = [written_text(tokenizer, ids) for ids in written[row]]
            if "word" in data.store(split).record(index).get("kinds", []):
                _count(counts["words"], int(texts[task["ocr"]] == truth[task["ocr"]]), 1)
            found, boxes = parse_boxes(texts[task["grounding"]]), parse_boxes(truth[task["grounding"]])
            hits = sum(any(b.label == f.label and b.overlap(f) > 0.5 for f in found) for b in boxes)
            _count(counts["boxes"], hits, len(boxes))
    return {name: right / max(1, asked) for name, (right, asked) in counts.items()}


def _count(pair: list[int], right: int, asked: int) -> None:
    pair[0] += right
    pair[1] += asked
