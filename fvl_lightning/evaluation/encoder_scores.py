"""What Florence-2 with its decoder can do by itself: write captions, read words, locate objects."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from fvl_lightning.core.types import IGNORE_INDEX

IMAGES_AT_ONCE = 64
LOCATED = re.compile(r"([^<>]+)((?:<loc_\d+>){4,})")
"""Florence-2's format: a label, then the corners of its boxes as location tokens, four for each of them."""
CORNERS = re.compile(r"<loc_(\d+)>" * 4)


@dataclass(frozen=True)
class Box:
    """A label and the corners x0, y0, x1, y1 of its box, in location bins."""

    label: str
    corners: tuple[int, int, int, int]

    def overlap(self, other: "Box") -> float:
        """Intersection over union of the two boxes, corners included."""
        left, top = max(self.corners[0], other.corners[0]), max(self.corners[1], other.corners[1])
        right, bottom = min(self.corners[2], other.corners[2]), min(self.corners[3], other.corners[3])
        shared = max(0, right - left + 1) * max(0, bottom - top + 1)
        union = self._area + other._area - shared
        return shared / union if union else 0.0

    @property
    def _area(self) -> int:
        return max(0, self.corners[2] - self.corners[0] + 1) * max(0, self.corners[3] - self.corners[1] + 1)


def parse_boxes(text: str) -> list[Box]:
    """The objects in a text such as 'red circle<loc_1><loc_2><loc_9><loc_9>'; what does not parse is skipped.

    Several boxes may follow one label, as in what released models write about objects of one kind.
    """
    return [
        Box(located[1].strip(), (int(corners[1]), int(corners[2]), int(corners[3]), int(corners[4])))
        for located in LOCATED.finditer(text)
        for corners in CORNERS.finditer(located[2])
    ]


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


def written_text(tokenizer: Any, ids: torch.Tensor) -> str:
    """Decoded without the special tokens around the text, but with the location tokens in it."""
    edges = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    return tokenizer.decode([token for token in ids.tolist() if token not in edges]).strip()


def _count(pair: list[int], right: int, asked: int) -> None:
    pair[0] += right
    pair[1] += asked
