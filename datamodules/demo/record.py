"""Makes one sample of the demo set: a PNG and a JSON record."""

import hashlib
from io import BytesIO
from typing import Any

from datamodules.demo.draw import draw_scene
from datamodules.demo.levels import Level
from datamodules.demo.scenes import make_scene, sample_random
from datamodules.demo.text import Turn, caption, labels, turns, words_in


def make_sample(seed: int, level: Level, split: str, index: int) -> tuple[str, dict[str, Any], bytes]:
    """Returns key, JSON record and PNG of sample `index`: a pure function of its arguments."""
    rng = sample_random(seed, level.name, split, index)
    scene = make_scene(rng, level, split)
    image, boxes = draw_scene(scene, level)
    order = rng.sample(range(len(boxes)), len(boxes))
    names = labels(scene)
    questions = turns(scene, level, rng)
    record = {
        "messages": messages(questions),
        "kinds": [turn.kind for turn in questions],
        "caption": caption(scene, level, order, rng.randrange(3)),
        "ocr": words_in(scene),
        "boxes": [{"label": names[i], "box": list(boxes[i])} for i in order],
        "scene": hashlib.sha256(scene.description.encode()).hexdigest()[:16],
        "description": scene.description,
        "level": level.name,
    }
    png = BytesIO()
    image.save(png, format="PNG")
    return f"{level.name}-{split}-{index:06d}", record, png.getvalue()


def messages(questions: list[Turn]) -> list[dict[str, Any]]:
    """Returns one conversation of all turns, with the image in front of the first question."""
    conversation: list[dict[str, Any]] = []
    for number, turn in enumerate(questions):
        question: Any = turn.question
        if number == 0:
            question = [{"type": "image"}, {"type": "text", "text": turn.question}]
        conversation.append({"role": "user", "content": question})
        conversation.append({"role": "assistant", "content": turn.answer})
    return conversation
