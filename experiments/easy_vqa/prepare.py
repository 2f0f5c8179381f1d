"""Reads the wheel of easy-VQA, and writes its pictures and questions as this kit takes them.

    pip download --no-deps --dest downloads easy-vqa==1.0
    python experiments/easy_vqa/prepare.py downloads/easy_vqa-1.0-py3-none-any.whl downloads/easy_vqa

easy-VQA has 5,000 pictures and 48,248 questions. It is by Victor Zhou, under the MIT licence, and no part of it is in
this repository. Nothing is installed or imported from the wheel. The result is a folder with

    images/<split>/<number>.png     the pictures
    train.json                      conversations in LLaVA's format: for each picture one question of each kind
    test.jsonl                      all test questions as the rows of a task

Each question is a conversation of its own, because the answer to one gives away those of others about its picture.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

DATA = "easy_vqa/data"
"""The folder in the wheel."""
SHAPES = ("circle", "rectangle", "triangle")
SEED = 0
"""Seed of the choice of training questions."""

Question = tuple[str, str, int]
"""Question, answer and the number of the picture."""


def main(wheel: Path, out: Path) -> None:
    """Writes the pictures and questions of both splits.

    Args:
        wheel: the file from PyPI.
        out: the folder of the result.
    """
    with ZipFile(wheel) as archive:
        asked = {split: _read(archive, split) for split in ("train", "test")}
        for split, questions in asked.items():
            folder = out / "images" / split
            folder.mkdir(parents=True, exist_ok=True)
            for picture in {picture for _, _, picture in questions}:
                (folder / f"{picture}.png").write_bytes(archive.read(f"{DATA}/{split}/images/{picture}.png"))
    train, test = conversations(asked["train"]), task_rows(asked["test"])
    (out / "train.json").write_text(json.dumps(train, indent=1), encoding="utf-8")
    (out / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in test), encoding="utf-8")
    sys.stdout.write(f"{out}: {len(train):,} questions for training, {len(test):,} of the task\n")


def conversations(questions: list[Question]) -> list[dict[str, Any]]:
    """Returns one conversation for each picture and kind, about a question that is drawn at random."""
    by_kind: dict[tuple[int, str], list[Question]] = defaultdict(list)
    for question in questions:
        by_kind[question[2], kind(*question[:2])].append(question)
    draw = random.Random(SEED)
    found = []
    for (picture, name), choices in sorted(by_kind.items()):
        question, answer, _ = draw.choice(choices)
        turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
        row = {"id": f"{picture}-{name}", "image": f"train/{picture}.png", "conversations": turns, "kinds": [name]}
        found.append(row)
    return found


def task_rows(questions: list[Question]) -> list[dict[str, Any]]:
    """Returns a row for each question."""
    return [
        {
            "id": str(number),
            "image": f"test/{picture}.png",
            "question": question,
            "answer": answer,
            "kind": kind(question, answer),
        }
        for number, (question, answer, picture) in enumerate(questions)
    ]


def kind(question: str, answer: str) -> str:
    """Returns what is asked: colour, shape, presence (yes or no), or absence (yes or no, with a negation)."""
    if answer in ("yes", "no"):
        return "absence" if {"no", "not"} & set(question.split()) else "presence"
    return "shape" if answer in SHAPES else "colour"


def _read(archive: ZipFile, split: str) -> list[Question]:
    rows = json.loads(archive.read(f"{DATA}/{split}/questions.json"))
    return [(question, answer, int(picture)) for question, answer, picture in rows]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: prepare.py WHEEL FOLDER, where WHEEL is easy_vqa-1.0-py3-none-any.whl")
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (OSError, BadZipFile, KeyError) as error:
        sys.exit(f"{sys.argv[1]} is not the wheel of easy-VQA: {error}")
