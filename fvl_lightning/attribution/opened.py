"""A trained run, opened once for all sections: its model, its data, the questions asked, their images' features.

A section gets one `OpenedRun` and shares the features with the others, so that an image is encoded once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from datamodules.base import BatchData
from datamodules.encoding.questions import Question
from fvl_lightning.core.device import autocast
from fvl_lightning.evaluation.answers import Scoring, asked_questions, scored_questions
from fvl_lightning.evaluation.scoring import open_model
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.training.feature_files import images_per_pass

Progress = Callable[[str, int, int], None]
"""Called with what is computed, the number of finished items, and the number of all."""
IMAGES_READ = 64
"""Images that are read and encoded at once; on a GPU fewer where its memory does not hold them."""


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class OpenedRun:
    """A trained model in eval mode on its device, its data, and the questions that are asked about it."""

    run: RunFolder
    built: LoadedModel
    data: BatchData
    """Connected to the model."""
    split: str
    questions: Sequence[Question]
    """The questions that are asked, each about one image."""
    limit: int | None = None
    """The number of questions that were asked for, spread evenly over the split; None for all."""
    precision: str = "32-true"
    progress: Progress = silent

    @property
    def scoring(self) -> Scoring:
        """Model and questions in the form in which `evaluation/answers.py` takes them."""
        shown = Scoring(self.built, self.data, self.split, limit=self.limit, precision=self.precision)
        return replace(shown, progress=self.progress)

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """The numbers of the samples that the questions are about, each once, in ascending order."""
        return tuple(sorted({question.index for question in self.questions}))

    @cached_property
    def rows(self) -> dict[int, range]:
        """{number of a sample: rows of its image in `features`}; an image in tiles has several rows."""
        found, start = {}, 0
        for sample in self.samples:
            (tiles,) = self.data.tile_counts(self.split, sample)
            found[sample] = range(start, start + tiles)
            start += tiles
        return found

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """The encoder's output for all images, {source: [I, N, D]} in main memory, in the type that it has.

        The encoder runs over each image once, in the first use.
        """
        model, parts = self.built.model, []
        with torch.inference_mode(False), torch.no_grad(), autocast(model.device, self.precision):
            for start in range(0, len(self.samples), IMAGES_READ):
                samples = self.samples[start : start + IMAGES_READ]
                pixels = self.data.pixels(self.split, samples).to(model.device, model.dtype)
                for part in pixels.split(images_per_pass(pixels, model.device, IMAGES_READ)):
                    parts.append({name: source.cpu() for name, source in model.encoder(part).items()})
                self.progress("encoding images", start + len(samples), len(self.samples))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def sources_of(self, samples: Sequence[int]) -> dict[str, Tensor]:
        """Returns the features of these samples' images, in their order, {source: [I, N, D]} on the model's device."""
        rows, model = [row for sample in samples for row in self.rows[sample]], self.built.model
        return {name: source[rows].to(model.device) for name, source in self.features.items()}


def open_for_explaining(
    run: RunFolder,
    split: str = "test",
    limit: int | None = None,
    accelerator: str | None = None,
    progress: Progress = silent,
) -> OpenedRun:
    """Opens a finished run; its features are computed when a section first uses them.

    Args:
        run: a run of a stage with a language model.
        split: the split whose questions are asked.
        limit: how many of them, spread evenly over the split; None for all.
        accelerator: auto, cpu, cuda or mps; None for that of the run's training.
        progress: called as images are encoded and questions answered.

    Raises:
        ConfigError: there is no such device, or the run's plugins are not known.
        DataError: there is no such split, it has no questions, or a question has several images; files are damaged.
    """
    built, data = open_model(run, split=split, accelerator=accelerator)
    scored_questions(data, split)
    questions = asked_questions(Scoring(built, data, split, limit=limit))
    return OpenedRun(run, built, data, split, tuple(questions), limit, progress=progress)
