"""Labels of images: the answers to a question that is asked in the same words about many images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.encoding.messages import parts_of
from datamodules.encoding.questions import Question

FEWEST_FITTED, FEWEST_TESTED = 40, 10
"""Images with the question in the two splits, below which it is left out."""
UNSEEN = -1
"""The label of an answer that no fitted image has."""


@dataclass(frozen=True)
class ImageLabels:
    """A question that is asked about many images, and its answers."""

    question: str
    kind: str
    answers: tuple[str, ...]
    """The classes; a label is the number of one of them."""
    fitted_samples: tuple[int, ...]
    fitted: Tensor
    """Labels [n] of the samples of the first split."""
    tested_samples: tuple[int, ...]
    tested: Tensor
    """Labels [m] of the samples of the second split, UNSEEN where no fitted image has the answer."""

    @property
    def most_frequent(self) -> int:
        """The most frequent label of the fitted images."""
        return int(self.fitted.bincount().argmax())


def image_labels(fitted: Sequence[Question], tested: Sequence[Question]) -> list[ImageLabels]:
    """Returns the labels for every question with at least two answers and enough images, in the order of the questions.

    "How many bars are there?" is about the image; a question that names an object is so too where it is asked about
    images that have the object. A question counts once per image.

    Args:
        fitted: the questions of the split on which a classifier is fitted.
        tested: the questions of the split on which it is tested.
    """
    first, second = _by_text(fitted), _by_text(tested)
    found = []
    for text, known in first.items():
        new, answers = second.get(text, {}), tuple(sorted({question.answer for question in known.values()}))
        if len(answers) < 2 or len(known) < FEWEST_FITTED or len(new) < FEWEST_TESTED:
            continue
        number = {answer: place for place, answer in enumerate(answers)}
        found.append(
            ImageLabels(
                text,
                next(iter(known.values())).kind,
                answers,
                tuple(known),
                torch.tensor([number[question.answer] for question in known.values()]),
                tuple(new),
                torch.tensor([number.get(question.answer, UNSEEN) for question in new.values()]),
            )
        )
    return found


def _by_text(questions: Sequence[Question]) -> dict[str, dict[int, Question]]:
    """Returns {text of a question: {sample: question}}."""
    found: dict[str, dict[int, Question]] = {}
    for question in questions:
        parts = parts_of(question.prompt_messages[-1])
        text = " ".join(part["text"].strip() for part in parts if part["type"] == "text")
        found.setdefault(text, {}).setdefault(question.index, question)
    return found
