"""The callback of `trainer.evaluate`: when it scores, who hears of it, and that a training is the same with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from fvl_lightning.core.config.evaluation import EvaluationConfig
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.training.callbacks.early_stopping import EarlyStoppingCallback
from fvl_lightning.training.callbacks.evaluation import EvaluationCallback, best_by, check_followed
from fvl_lightning.training.checkpointing.last_and_previous import BEST, LAST, read_checkpoint
from fvl_lightning.training.fault_tolerance.signals import Stop, StopSignals
from fvl_lightning.training.step_logging import LogWindow
from tests.stages.fitting import batches_of, build_stage, fit

F1, ERROR = "evaluation/signs/f1", "evaluation/boxes/error"
DIRECTIONS = {F1: True, ERROR: False}
STEPS = 5
LORA = {"trainable": {"language_model": "lora"}, "lora": {"rank": 2, "dropout": 0.5}}


class Scripted:
    """Gives the scores of a script by step; draws random numbers and generates, as a scoring model may."""

    def __init__(self, scores: dict[int, dict[str, float]] | None = None) -> None:
        self.script, self.steps = scores, []  # type: ignore[var-annotated]
        self.higher_is_better, self.identities, self.primary = DIRECTIONS, {}, [F1]  # type: ignore[var-annotated]

    def scores(self, stage: Any, answered: Callable[[], None], stopped: Callable[[], bool]) -> dict[str, float] | None:
        assert not any(module.training for module in stage.modules())
        torch.rand(5)
        answered()
        loss = stage.compute(batches_of("finetune", 1, first=50)[0])[0]
        assert not loss.sum.requires_grad
        if stopped():
            return None
        self.steps.append(stage.global_step)
        return {F1: 0.5} if self.script is None else self.script[stage.global_step]


class Seen(Callback):
    """Notes the metrics that callbacks see at the end of each evaluation and validation."""

    def __init__(self) -> None:
        self.evaluations: dict[int, float] = {}
        self.at_validations: dict[int, float | None] = {}

    def on_evaluation_end(self, trainer: Trainer, stage: Any) -> None:
        """Comes after the scores are published."""
        self.evaluations[trainer.global_step] = float(trainer.callback_metrics[F1])

    def on_validation_end(self, trainer: Trainer, stage: Any) -> None:
        """Comes after the checkpoint of the step."""
        score = trainer.callback_metrics.get(F1)
        self.at_validations[trainer.global_step] = None if score is None else float(score)


def train(
    folder: Path,
    scripted: Scripted | None,
    *callbacks: Callback,
    every: int = 2,
    signals: StopSignals | None = None,
    resume: Path | None = None,
    start: int = 0,
    stage: dict[str, Any] | None = None,
    **trainer: Any,
) -> Any:
    """Trains five steps, and returns the stage."""
    folder.mkdir(exist_ok=True)
    settings = {"max_steps": STEPS, "validate_every": 3, "checkpoint_every": 9, "log_every": 2} | trainer
    settings["evaluate"] = EvaluationConfig(["signs"], every)
    built = build_stage("finetune", folder, trainer=settings, **(stage or {}))
    built.adapt(folder)
    batches, validation = batches_of("finetune", STEPS), batches_of("finetune", 1, first=20)
    left = batches[start:] + batches[:start]
    config = built.experiment.trainer
    torch.manual_seed(0)
    evaluation = [EvaluationCallback(scripted, config.evaluate, signals or StopSignals())] if scripted else []  # type: ignore[arg-type]
    fit(built, left, folder, [LogWindow(2), *evaluation, *callbacks], resume, validation, better=DIRECTIONS)
    return built


def test_a_training_ends_in_the_same_bits_with_an_evaluation_and_without(tmp_path: Path) -> None:
    """Dropout draws random numbers in every step; the evaluation draws some in between."""
    seen = Seen()
    scored = train(tmp_path / "scored", script := Scripted(), seen, stage=LORA)
    plain = train(tmp_path / "plain", None, stage=LORA)
    assert script.steps == [2, 4, 5], "every second step, and the last"
    assert seen.evaluations == dict.fromkeys([2, 4, 5], 0.5)
    assert seen.at_validations == {3: 0.5}
    for (name, one), other in zip(scored.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    states = [read_checkpoint(tmp_path / name / LAST) for name in ("scored", "plain")]
    assert torch.equal(*(state["random_states"][0]["cpu"] for state in states))


def test_an_evaluation_that_a_signal_stops_is_made_once_the_training_goes_on(tmp_path: Path) -> None:
    signals = StopSignals()

    class Asks(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                signals.requested = Stop.CLUSTER

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop |= bool(signals.requested)  # as the checkpoint callback does with its signals

    stopped, resumed = Scripted(), Scripted()
    train(tmp_path, stopped, Asks(), signals=signals, checkpoint_every=4)
    assert stopped.steps == [2]
    train(tmp_path, resumed, resume=tmp_path / LAST, start=4, checkpoint_every=4)
    assert resumed.steps == [4, 5], "the one of step 2 is not made again"


def test_the_training_ends_and_the_best_weights_are_kept_by_a_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fvl_lightning")
    script = Scripted({1: {F1: 0.2}, 2: {F1: 0.6}, 3: {}, 4: {F1: 0.6}})
    stops = EarlyStoppingCallback(EarlyStoppingCallback.Config(monitor=F1, mode="max", patience=1))
    train(tmp_path, script, stops, every=1, validate_every=1, keep_best=True, keep_best_by=F1)
    found = read_checkpoint(tmp_path / BEST)
    assert (found["global_step"], found["evaluation"]) == (2, {F1: 0.6}), "as good as the best is no better"
    assert "step 4: the training ends early" in caplog.text, "validations and an evaluation without it do not count"
    assert "step 2: evaluation/signs/f1 0.6000" in caplog.text


def test_the_direction_of_the_best_weights_is_that_of_the_metric() -> None:
    config = ExperimentConfig().with_overrides(
        "trainer.keep_best=true", f"trainer.keep_best_by={ERROR}", "trainer.evaluate={tasks: [boxes]}"
    )
    best = best_by(config.trainer, DIRECTIONS)
    assert best is not None
    assert best.is_better(0.4, 0.5)
    assert best.is_better(0.5, None)
    assert not best.is_better(0.6, 0.5)
    assert not best.is_better(float("nan"), None)
    assert best_by(ExperimentConfig().trainer, DIRECTIONS) is None


EARLY = "trainer.callbacks=[{early_stopping: {monitor: %s, mode: %s}}]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([EARLY % ("evaluation/signs/f2", "max")], "early_stopping.monitor: unknown score .*did you mean '.*signs/f1'"),
        ([EARLY % (F1, "min")], "early_stopping.mode: a higher evaluation/signs/f1 is better; take max, not min"),
        ([EARLY % (ERROR, "max")], "early_stopping.mode: a lower evaluation/boxes/error is better; take min, not max"),
        (
            [EARLY.replace("early_stopping", "lightning.pytorch.callbacks.EarlyStopping") % (F1, "max")],
            "looks at evaluation/signs/f1 after each validation; take early_stopping",
        ),
        (
            ["trainer.keep_best=true", "trainer.keep_best_by=evaluation/sign/f1"],
            "trainer.keep_best_by: unknown score 'evaluation/sign/f1', .*did you mean 'evaluation/signs/f1'",
        ),
    ],
)
def test_a_score_that_nobody_gives_or_that_is_followed_the_wrong_way(words: list[str], message: str) -> None:
    config = ExperimentConfig().with_overrides("trainer.evaluate={tasks: [signs]}", *words)
    with pytest.raises(ConfigError, match=message):
        check_followed(config.trainer, DIRECTIONS)


def test_what_is_followed_must_be_evaluated() -> None:
    config = ExperimentConfig().with_overrides(EARLY % (F1, "max"))
    with pytest.raises(ConfigError, match=r"early_stopping.monitor: .*signs/f1 needs the task in trainer.evaluate"):
        check_followed(config.trainer, {})
    followed = ExperimentConfig().with_overrides("trainer.evaluate={tasks: [signs]}", EARLY % (F1, "max"))
    check_followed(followed.trainer, DIRECTIONS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.evaluate={tasks: [a], every: 9}", "trainer.max_steps=8"], "every: 9 is not reached in 8 steps"),
        (["trainer.evaluate={every: 9}"], "trainer.evaluate.tasks: name at least one task"),
        (["trainer.evaluate={tasks: [a], every: 0}"], "trainer.evaluate.every.* must be at least 1, not 0"),
        (["trainer.evaluate={tasks: [a], limit: 0}"], "trainer.evaluate.limit.* must be at least 1, not 0"),
        (["trainer.evaluate={task: [a]}"], "unknown key .*did you mean '.*tasks'"),
        (["trainer.keep_best_by=evaluation/a/b"], "keep_best_by.*: it chooses the weights of trainer.keep_best"),
        (
            ["trainer.keep_best=true", "trainer.keep_best_by=train/loss"],
            "keep_best_by.*: expected validation/loss or evaluation/",
        ),
        (["trainer.keep_best=true", "trainer.keep_best_by=evaluation/a/b"], "evaluation/a/b needs the task in trainer"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig().with_overrides(*words)
