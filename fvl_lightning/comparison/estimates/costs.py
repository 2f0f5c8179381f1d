"""Operations, memory and disk of the stages of a comparison, found on shapes alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from datamodules.base import BatchData
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.estimates.rows import SplitCounts, StageRows
from fvl_lightning.core.errors import ConfigError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.cost import QUESTIONS
from fvl_lightning.evaluation.scoring import experiment_at_level
from fvl_lightning.inference.generation import ANSWER_TOKENS
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.shapes import in_own_code
from fvl_lightning.profiling.batch_shape import BatchShape
from fvl_lightning.profiling.flops import BatchFlops, estimate_flops, question_flops
from fvl_lightning.profiling.memory import estimate_memory
from fvl_lightning.runs.setup import data_context
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import count_parameters

T = TypeVar("T")

CONTROLS = 2
"""Further passes over the test split, whose images are zeroed or those of another sample."""
PROMPT_TOKENS = 32
"""Text tokens of a question, where there is no data to take them from."""


@dataclass(frozen=True)
class StageCost:
    """Costs of one training."""

    stage: Stage
    """On the meta device."""
    experiment: ExperimentConfig
    """As it is trained: `stage` has no quantised weights."""
    rows: StageRows
    batch: BatchFlops
    """Operations of a batch of `rows.counted`."""
    memory: int | None
    """Bytes on a device for the largest batch; None where a component reads values, which shapes lack."""
    flops: float
    """Operations of the whole training."""

    @property
    def sample_flops(self) -> int:
        """Operations of the forward and backward pass of a sample."""
        return self.batch.training // self.rows.counted.rows

    @property
    def samples(self) -> int:
        """Samples, or packed rows, of all steps."""
        return self.experiment.trainer.max_steps * self.experiment.trainer.samples_per_step

    @property
    def parameters(self) -> tuple[int, int]:
        """All parameters, and those that are trained."""
        counts = count_parameters(self.stage.model).values()
        return sum(count["parameters"] for count in counts), sum(count["trainable"] for count in counts)

    @property
    def image_tokens(self) -> int:
        """Tokens of an image in the language model; 0 where there is none.

        Where images become tiles it is the mean of those that were inspected, or else the largest number.
        """
        model, tiles = self.stage.model, self.experiment.data.config.tiles
        if not isinstance(model, FlorenceVLForConditionalGeneration):
            return 0
        return self.rows.image_tokens or model.image_spec.tokens_per_image * (1 if tiles is None else tiles.most)


def stage_cost(stage: Stage, experiment: ExperimentConfig, rows: StageRows, counts: SplitCounts) -> StageCost:
    """Returns the costs of one training.

    Args:
        stage: on the meta device.
        experiment: its experiment, as it is trained.
        rows: the rows that it trains on.
        counts: the samples that it validates on.
    """
    trainer = experiment.trainer
    batch = counted(experiment.name, lambda: estimate_flops(experiment, stage.model, stage.trainable, rows.counted))
    validations = trainer.max_steps // min(trainer.validate_every, trainer.max_steps)
    validated = validations * (counts.validation or 0)
    trained = trainer.max_steps * trainer.samples_per_step
    flops = (trained * batch.executed + validated * batch.forward) / rows.counted.rows
    return StageCost(stage, experiment, rows, batch, peak_memory(stage, experiment, rows.longest), flops)


def counted(stage: str, count: Callable[[], T]) -> T:
    """Returns the result of `count`, which runs a stage on shapes.

    Raises:
        ConfigError: a component reads values, which shapes lack.
    """
    try:
        return count()
    except UserError:
        raise
    except Exception as error:  # of a component of the user's own
        raise ConfigError(
            f"stage {stage}: its operations cannot be counted on shapes without values ({in_own_code(error)})"
        ) from error


def peak_memory(stage: Stage, experiment: ExperimentConfig, shape: BatchShape) -> int | None:
    """Returns the bytes that a step takes on a device; None where a component reads values, which shapes lack."""
    try:
        return estimate_memory(experiment, stage.model, stage.trainable, shape).peak
    except UserError:
        raise
    except Exception:  # of a component of the user's own
        return None


@dataclass(frozen=True)
class ScoringCost:
    """Costs of scoring a trained arm."""

    question_flops: int
    """Operations of an image and a question, up to the first token of the answer."""
    questions: int | None
    """Questions of all splits, levels and controls; None without the data."""
    flops: float | None


def scoring_cost(
    stage: Stage,
    experiment: ExperimentConfig,
    data: BatchData | None,
    questions: int | None,
    tasks: Sequence[tuple[int, int]] = (),
) -> ScoringCost:
    """Returns the costs of scoring an arm; an answer counts with as many tokens as it may have.

    Args:
        stage: the arm's last stage, on the meta device.
        experiment: that of the stage.
        data: its data, to take the length of a question from; None where it is not there.
        questions: how many of the data there are to answer.
        tasks: (number of questions, largest number of tokens of an answer) of every task.
    """
    asked, tiles = PROMPT_TOKENS, 1
    if data is not None:
        data.connect(data_context(stage.model, stage.tokenizer, experiment))
        asked, tiles = _prompt(data)
    first = counted(experiment.name, lambda: question_flops(stage.model, asked, tiles))
    counts = count_parameters(stage.model)
    table: Any = stage.model.get_input_embeddings().weight
    matrices = counts["language_model"]["parameters"]
    if stage.model.get_output_embeddings().weight is not table:
        matrices -= table.numel()  # looked up, not multiplied
    if questions is None:
        return ScoringCost(first, None, None)
    counts_of = [(questions, ANSWER_TOKENS), *tasks]
    flops = sum(number * (first + 2 * matrices * (tokens - 1)) for number, tokens in counts_of)
    return ScoringCost(first, sum(number for number, _ in counts_of), float(flops))


def count_questions(
    config: ComparisonConfig, experiment: ExperimentConfig, data: BatchData | None, test_questions: bool = True
) -> int | None:
    """Returns the questions that a cell answers: on the test split, with its controls, and on further splits.

    None where a split is not there.
    """
    if data is None:
        return None
    try:
        count = (1 + CONTROLS) * len(data.questions("test")) if test_questions else 0
        count += sum(len(data.questions(split)) for split in config.unseen_splits)
        for level in config.transfer_levels:
            at_level = experiment_at_level(experiment, level).data
            other: BatchData = at_level.component(at_level.config)
            count += len(other.questions("test"))
    except UserError:
        return None
    return count


def _prompt(data: BatchData) -> tuple[int, int]:
    """Returns text tokens and tiles of a question about an image, on average over the first ones of the test split."""
    encoder = data.encoder
    try:
        asked = [
            (encoder.prompt(data.sized("test", question.index, question.prompt_messages)), question.index)
            for question in data.questions("test")[:QUESTIONS]
        ]
        tiles = [sum(data.tile_counts("test", index)) for _, index in asked]
    except UserError:
        return PROMPT_TOKENS, 1
    if not asked:
        return PROMPT_TOKENS, 1
    length, shown = round(fmean(len(ids) for ids, _ in asked)), fmean(tiles)
    return max(1, length - round(shown * encoder.tokens_per_image)), max(1, round(shown))
