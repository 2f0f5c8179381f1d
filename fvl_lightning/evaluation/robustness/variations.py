"""Variations of a task: controls (blind, shuffled, paraphrase) and corrupted images, each applied by the engine.

A variation may change three things: the task's prompt, which questions see which images, and the pixels of an image.
Everything else can be reused: cached image features stay valid unless `pixels` is set.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fvl_lightning.core.errors import DataError, unknown_name
from fvl_lightning.evaluation.robustness.corruptions import CORRUPTIONS, STRENGTHS, Pixels, corrupt
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.question import TaskQuestion

BLIND, SHUFFLED, PARAPHRASE = "blind", "shuffled", "paraphrase"
ALL_CONTROLS, ALL_CORRUPTIONS = "controls", "corruptions"
"""Names that stand for all controls, and for all corruptions in all strengths."""
NEAREST_TRIED = 64
"""Number of other questions whose images are tried first; after them, any images of the set are taken."""


@dataclass(frozen=True)
class Variation:
    """A change of a task under which a model is asked again."""

    name: str
    """Name such as blind, paraphrase-1 or blur-3, as in `TaskResult.variation`."""
    title: str
    """Description of the change, for tables and figures."""
    family: Literal["control", "corruption"]
    pixels: Callable[[Pixels], Pixels] | None = None
    """Maps a decoded image, uint8 RGB `[H, W, 3]`, to the one that is shown, of the same size; None for no change."""
    reassign: Callable[[Sequence[TaskQuestion]], list[TaskQuestion]] | None = None
    """Maps all questions of a set to the same ones with other images of the set; None for no change."""
    prompt: str | None = None
    """The prompt that replaces the task's; None for no change."""

    def task(self, task: TaskConfig) -> TaskConfig:
        """Returns the task whose questions are asked."""
        return task if self.prompt is None else replace(task, prompt=self.prompt)

    def questions(self, questions: Sequence[TaskQuestion]) -> list[TaskQuestion]:
        """Returns the questions that are asked; ids, order and references are kept.

        Raises:
            DataError: a question's images cannot be replaced, because the set has too few other pictures.
        """
        return list(questions) if self.reassign is None else self.reassign(questions)

    def image(self, image: Pixels) -> Pixels:
        """Returns the image that is shown in place of a decoded one."""
        return image if self.pixels is None else self.pixels(image)


def variations_of(names: Iterable[str], task: TaskConfig, where: str = "controls") -> list[Variation]:
    """Returns the variations of these names, each once, in the order of `known_variations`.

    A task without images has no variations of images, and one without paraphrases has none of these.

    Args:
        names: names of variations; a corruption's name without a strength stands for all five, "paraphrase" for all,
            and "controls" and "corruptions" for all of these.
        task: the task.
        where: the place of the names, for messages.

    Raises:
        ConfigError: there is no such variation.
    """
    known = known_variations(task)
    groups = {ALL_CONTROLS, ALL_CORRUPTIONS, BLIND, SHUFFLED, PARAPHRASE, *CORRUPTIONS}
    strengths = {f"{name}-{strength}" for name in CORRUPTIONS for strength in STRENGTHS}
    wanted = list(names)
    for name in wanted:
        if name not in groups | strengths | known.keys() and not re.fullmatch(rf"{PARAPHRASE}-\d+", name):
            raise unknown_name("control", name, groups | strengths, where)
    return [
        variation
        for variation in known.values()
        if {variation.name, variation.name.partition("-")[0], f"{variation.family}s"} & set(wanted)
    ]


def known_variations(task: TaskConfig) -> dict[str, Variation]:
    """Returns {name: variation} of all that can be applied to a task."""
    found = []
    if task.fields.images:
        found += [
            Variation(BLIND, "all pixels are zero", "control", pixels=np.zeros_like),
            Variation(SHUFFLED, "the images of another question", "control", reassign=shuffled),
        ]
    for number, prompt in enumerate(task.paraphrases, start=1):
        found.append(Variation(f"{PARAPHRASE}-{number}", f"another prompt ({number})", "control", prompt=prompt))
    if task.fields.images:
        for name, corruption in CORRUPTIONS.items():
            for strength in STRENGTHS:
                spoil = functools.partial(corrupt, name=name, strength=strength)
                title = f"{corruption.title}, strength {strength}"
                found.append(Variation(f"{name}-{strength}", title, "corruption", pixels=spoil))
    return {variation.name: variation for variation in found}


def shuffled(questions: Sequence[TaskQuestion]) -> list[TaskQuestion]:
    """Returns the questions, each with the images of another one that has equally many and shares none with it.

    Questions about the same images get the same other images. The choice depends only on the questions' order.

    Raises:
        DataError: the set has too few pictures.
    """
    by_number: dict[int, list[tuple[int, ...]]] = {}
    for images in dict.fromkeys(question.images for question in questions if question.images):
        by_number.setdefault(len(images), []).append(images)
    pictures = sorted({number for question in questions for number in question.images})
    others = {
        images: _other_images(place, same_number, pictures)
        for same_number in by_number.values()
        for place, images in enumerate(same_number)
    }
    return [
        replace(question, images=others[question.images]) if question.images else question for question in questions
    ]


def _other_images(place: int, same_number: Sequence[tuple[int, ...]], pictures: Sequence[int]) -> tuple[int, ...]:
    """Returns the images that replace `same_number[place]`: those half the list away, or the next disjoint ones."""
    images, count = same_number[place], len(same_number)
    for step in range(min(count, NEAREST_TRIED)):
        candidate = same_number[(place + count // 2 + step) % count]
        if not set(candidate) & set(images):
            return candidate
    free = [number for number in pictures if number not in images]
    if not free:
        raise DataError(f"control {SHUFFLED}: every question has the same images, so none can have another one's")
    return tuple(free[(place + offset) % len(free)] for offset in range(len(images)))
