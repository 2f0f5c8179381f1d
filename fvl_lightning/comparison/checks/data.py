"""Checks that the data of every arm has the questions that a comparison scores."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from datamodules.base import BatchData
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import SeedPlan
from fvl_lightning.comparison.scoring.names import is_task_score
from fvl_lightning.core.config.loading import config_hash
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.answers import scored_questions
from fvl_lightning.evaluation.scoring import experiment_at_level
from fvl_lightning.runs.setup import prepare_data

NEEDS = "a comparison scores every arm on questions with answers, one image each (docs/comparison.md)"


def has_test_questions(
    config: ComparisonConfig,
    plans: Mapping[int, SeedPlan],
    data_of: Callable[[ExperimentConfig], BatchData | None] = prepare_data,
) -> bool:
    """Returns whether the split `test` is scored: not where arms are judged on tasks and some data has no questions.

    Args:
        config: the comparison.
        plans: {seed: its experiments}.
        data_of: returns the data of an experiment; None where it is not there.
    """
    if not is_task_score(config.metric) or config.unseen_splits or config.transfer_levels:
        return True
    experiments = {arm: stages[-1] for arm, stages in plans[config.seeds[0]].arms.items()}
    try:
        found = [data_of(experiment) for _, experiment in _distinct(experiments)]
        return all(data is None or data.questions("test") for data in found)
    except UserError:
        return False


def check_data(config: ComparisonConfig, plans: Mapping[int, SeedPlan], test_questions: bool = True) -> str:
    """Prepares the data of every arm, and checks that it has what the comparison scores.

    Args:
        config: the comparison.
        plans: {seed: its experiments}.
        test_questions: whether the split `test` is scored.

    Returns:
        How many questions the splits have.

    Raises:
        DataError: splits, questions or answers are missing; all problems in one sentence.
    """
    found: list[str] = []
    problems: list[str] = []
    plan = plans[config.seeds[0]]
    for arms, experiment in _distinct({arm: stages[-1] for arm, stages in plan.arms.items()}):
        whose = f"data of {', '.join(arms)}" if len(arms) < len(plan.arms) else "data"
        try:
            data = prepare_data(experiment)
            _check_cached(config, data)
            counts = _questions(config, experiment, data, test_questions)
            found += [f"{whose}: {text}" for text in counts]
        except UserError as error:
            problems.append(f"{whose}: {error}; {NEEDS}")
    if plan.encoder is not None:
        try:  # its own test score is part of the report
            prepare_data(plan.encoder).store("test")
        except UserError as error:
            problems.append(f"data of encoder_stage: {error}; the encoder is scored on this split")
    if problems:
        raise DataError("; ".join(problems))
    return "; ".join(found)


def _distinct(experiments: Mapping[str, ExperimentConfig]) -> Iterator[tuple[Sequence[str], ExperimentConfig]]:
    """Yields the arms that share one data configuration, and the experiment of one of them."""
    shared: dict[str, list[str]] = defaultdict(list)
    for arm, experiment in experiments.items():
        shared[config_hash(experiment.data)].append(arm)
    for arms in shared.values():
        yield arms, experiments[arms[0]]


def _check_cached(config: ComparisonConfig, data: BatchData) -> None:
    if config.lineage != "end_to_end" and config.feature_cache and data.STREAMS:
        raise DataError(
            "the features of the frozen encoder are cached, but samples of a stream have no numbers to keep "
            "features by; use data: shards, or lineage: end_to_end"
        )


def _questions(
    config: ComparisonConfig, experiment: ExperimentConfig, data: BatchData, test_questions: bool
) -> Iterator[str]:
    """Yields the number of questions of every split and level that is scored; DataError or ConfigError for none."""
    if not test_questions:
        yield "no questions in test, so that the arms are judged on tasks alone"
    tested = ["test"] if test_questions else []
    for split in [*tested, *config.unseen_splits, *(["validation"] if config.tune else [])]:
        yield f"{len(scored_questions(data, split))} questions in {split}"
    for level in config.transfer_levels:
        at_level = prepare_data(experiment_at_level(experiment, level))
        yield f"{len(scored_questions(at_level, 'test'))} questions in test of level {level}"
