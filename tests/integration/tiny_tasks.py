"""Two small tasks in a working folder: colours, by likelihood, and words, which are generated."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")
QUESTIONS = 12
TASKS: dict[str, dict[str, Any]] = {
    "colours": {
        "title": "Colours",
        "fields": {"choices": ["options"], "kind": "kind", "answers_as": "option", "slices": ["kind"]},
        "answer": {"by": "likelihood"},
    },
    "words": {"title": "Words", "fields": {"id": "name"}, "answer": {"tokens": 3}},
}


def write_tasks(folder: Path) -> None:
    """Writes colours.yaml and words.yaml with their rows and pictures; two questions are about one picture.

    Their validation rows are the same questions in another file.
    """
    (folder / "pictures").mkdir()
    rows = []
    for number in range(QUESTIONS):
        place = number // 2 % len(COLOURS)
        colour, other = COLOURS[place], COLOURS[place - 1]
        if number % 2 == 0:
            Image.new("RGB", (64, 64), colour).save(folder / "pictures" / f"{number}.png")
        rows.append(
            {
                "name": f"q{number}",
                "question": "what colour is it?",
                "image": f"{number - number % 2}.png",
                "answer": colour,
                "options": [colour, other] if number % 3 else [other, colour],
                "kind": ("plain", "again")[number % 2],
            }
        )
    for name in ("rows.jsonl", "validation.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, task in TASKS.items():
        files = {"data": "rows.jsonl", "validation": "validation.jsonl"}
        values = task | {key: {"files": file, "images": "pictures"} for key, file in files.items()}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
