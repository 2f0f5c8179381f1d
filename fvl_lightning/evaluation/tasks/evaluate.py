"""Asks models the questions of tasks, and keeps the answers in a folder, so that no question is asked twice."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from fvl_lightning.core.errors import DataError
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.evaluation.batched_answers import Asking
from fvl_lightning.evaluation.kept_answers import KeptAnswers, remove_kept
from fvl_lightning.evaluation.robustness.variations import Variation, variations_of
from fvl_lightning.evaluation.tasks.config import TaskConfig
from fvl_lightning.evaluation.tasks.question import QuestionSet
from fvl_lightning.evaluation.tasks.request import file_name
from fvl_lightning.evaluation.tasks.result import TaskResult
from fvl_lightning.evaluation.tasks.samples import outputs_for, write_samples
from fvl_lightning.evaluation.tasks.score import judged, score_task
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.runs.references import model_hash
from fvl_lightning.training.distributed.process_group import Ranks

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Callback with a description, the number of answered questions, and the number of all questions."""


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class AskingTasks:
    """Settings of an evaluation: output folder, questions, variations, precision and ranks."""

    output: Path
    """Folder of samples and scores; questions that the same model has answered there are not asked again."""
    questions: Callable[[TaskConfig], QuestionSet]
    """Reads the questions of a task that are asked."""
    precision: str = "32-true"
    variations: Sequence[str] = ()
    """Names of the controls and corruptions under which each task is asked, too; see variations_of."""
    ranks: Ranks = field(default_factory=Ranks)
    progress: Progress = silent


def evaluate_model(loaded: LoadedModel, label: str, tasks: Iterable[TaskConfig], how: AskingTasks) -> list[TaskResult]:
    """Scores a model on tasks, as they are and under each variation; all ranks must call it.

    Args:
        loaded: the model, on its device.
        label: its name in files and tables.
        tasks: the tasks.
        how: output folder, precision and so on.

    Returns:
        The results, task after task, each followed by those of its variations.

    Raises:
        ConfigError: a task has rows without a field that it names.
        DataError: rows or images cannot be read, a prompt leaves no room for an answer, or a file cannot be written.
        PeerFailedError: another rank has failed.
    """
    model = model_hash(loaded)
    results = []
    for task in tasks:
        for variation in (None, *variations_of(how.variations, task)):
            results.append(_evaluate(loaded, model, label, task, variation, how))
    return results


def _evaluate(
    loaded: LoadedModel, model: str, label: str, task: TaskConfig, variation: Variation | None, how: AskingTasks
) -> TaskResult:
    ranks, name = how.ranks, variation.name if variation else ""
    task = variation.task(task) if variation else task
    questions = ranks.rank0_first(partial(how.questions, task))
    files = SampleFiles(how.output / task.name, label, name)
    shown = f"{task.name}, {name}" if name else task.name
    key = _key(model, task, questions, name, how.precision)
    if (written := ranks.broadcast_from_rank0(partial(files.read, key, task, questions))) is not None:
        if variation is None:
            logger.info("%s: the %d answers of %s are there already", shown, len(written.samples), label)
        return written
    ranks.broadcast_from_rank0(partial(files.unfinished.mkdir, parents=True, exist_ok=True))
    asking = Asking(
        precision=how.precision,
        ranks=ranks,
        kept=KeptAnswers(files.unfinished, model, ranks.rank),
        progress=partial(how.progress, shown),
    )
    result = score_task(loaded, task, questions, asking, variation)
    ranks.on_rank0(partial(files.write, key, result))
    return result


@dataclass(frozen=True)
class SampleFiles:
    """The files of one model on one task: its samples, and its scores with the key of their inputs."""

    folder: Path
    label: str
    variation: str = ""

    @property
    def stem(self) -> str:
        """The beginning of the files' names."""
        return file_name(self.label) + (f"--{file_name(self.variation)}" if self.variation else "")

    @property
    def samples(self) -> Path:
        """The file with a line for every question."""
        return self.folder / f"{self.stem}.jsonl"

    @property
    def scores(self) -> Path:
        """The file with the scores."""
        return self.folder / f"{self.stem}.json"

    @property
    def unfinished(self) -> Path:
        """The folder of the answers while some questions are still open."""
        return self.folder / f".{self.stem}"

    def read(self, key: str, task: TaskConfig, questions: QuestionSet) -> TaskResult | None:
        """Returns the result that was written with `key`; None if it is missing or its files are damaged."""
        try:
            if read_sealed(self.scores).get("key") != key:
                return None
            outputs = outputs_for(self.samples, questions.questions)
        except (OSError, ValueError, DataError):
            return None
        return judged(task, questions, outputs, self.variation)

    def write(self, key: str, result: TaskResult) -> None:
        """Writes the samples, then the scores, which mark the samples as complete; DataError if that fails."""
        write_samples(self.samples, result)
        scores = {name: value for name, value in asdict(result).items() if name != "samples"}
        write_sealed(self.scores, {**scores, "score": result.score, "questions": len(result.samples), "key": key})
        remove_kept(self.unfinished)
        self.unfinished.rmdir()


def _key(model: str, task: TaskConfig, questions: QuestionSet, variation: str, precision: str) -> str:
    """Returns a hash of all inputs on which a model's answers to a task depend."""
    answer = asdict(task.answer) | {"clean": None}  # cleaning and judging are done again
    parts = [model, answer, questions.identity, variation, precision]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
