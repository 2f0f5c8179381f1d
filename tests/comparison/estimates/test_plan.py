"""`fvl compare X --plan`: what a comparison would take, from shapes, without training, data or the hub."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvl_lightning.comparison.cell import RESULT
from fvl_lightning.comparison.checks.before_start import trainings
from fvl_lightning.comparison.estimates import estimate, measured_steps, summary
from fvl_lightning.comparison.estimates.costs import scoring_cost
from fvl_lightning.comparison.estimates.estimate import ENCODER, Estimates
from fvl_lightning.comparison.estimates.measured_steps import FILE, MeasuredSteps, step_seconds
from fvl_lightning.comparison.estimates.summary import plan_of
from fvl_lightning.comparison.estimates.tables import hours_in_words, plan_tables, short
from fvl_lightning.comparison.result_files.plan import ComparisonPlan
from fvl_lightning.core.jsonl import read_sealed, write_sealed
from fvl_lightning.launchers.resources import ResourcesConfig
from fvl_lightning.profiling.batch_shape import BatchShape
from fvl_lightning.profiling.devices import GPUS, SUSTAINED, Device
from tests.conftest import ROOT, TINY_DATA, Run, furnish
from tests.stages.fitting import build_stage

STEPS = 5
COMPARISON: dict[str, Any] = {
    "name": "mine",
    "encoder_stage": "experiments/demo/encoder_pretrain.yaml",
    "stages": ["experiments/demo/finetune.yaml"],
    "arms": {"concat": {"set": ["fusion=concat"]}},
    "seeds": [0, 1, 2],
    "jobs": 2,
    "set": [*TINY_DATA, "trainer.batch_size=8", f"trainer.max_steps={STEPS}", f"trainer.validate_every={STEPS}"],
}
HERE = Device("CPU", 10**10, None, None, here=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    folder = furnish(tmp_path_factory.mktemp("planned"), tiny_data)
    (folder / "mine.yaml").write_text(yaml.safe_dump(COMPARISON, sort_keys=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def printed(work: Path, fvl_here: Run) -> tuple[str, Estimates]:
    """What `--plan --device rtx4090` prints, and the estimates that it was made of."""
    found: list[Estimates] = []
    estimate = summary.estimate_comparison
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "estimate_comparison", lambda *given: found.append(estimate(*given)) or found[0])
        done = fvl_here(work, "compare", "mine.yaml", "--plan", "--device", "rtx4090")
    assert done.returncode == 0, done.stderr
    return done.stdout, found[0]


def errors(done: Any) -> list[str]:
    """The lines on standard error; on a busy machine what is under way is printed there too."""
    return [line for line in done.stderr.splitlines() if not line.startswith("under way: ")]


@pytest.fixture
def estimates(printed: tuple[str, Estimates], work: Path, monkeypatch: pytest.MonkeyPatch) -> Estimates:
    monkeypatch.chdir(work)
    return printed[1]


def on(estimates: Estimates, device: Device) -> Estimates:
    """The same estimates for another device."""
    clock = dataclasses.replace(estimates.clock, device=device, measured=MeasuredSteps(Path("runs/mine"), device))
    return dataclasses.replace(estimates, device=device, clock=clock)


def test_a_plan_says_what_is_trained_and_trains_nothing(work: Path, printed: tuple[str, Estimates]) -> None:
    said, _ = printed
    assert [path.name for path in (work / "runs").rglob("*") if path.is_file()] == ["plan.json"]
    assert not (work / "mlflow.db").exists()
    plan = ComparisonPlan.read(read_sealed(work / "runs" / "mine" / "plan.json"))
    assert [stage.arm for stage in plan.stages] == [ENCODER, "concat"]
    assert [stage.stage for stage in plan.stages] == ["encoder_pretrain", "finetune"]
    assert (plan.cells.total, plan.cells.finished, plan.encoders.total, plan.trials.total) == (3, 0, 3, 0)
    for stage in plan.stages:
        assert (stage.steps, stage.samples, stage.rows) == (STEPS, 8 * STEPS, "64 rows of the shards")
        assert 0 < stage.trained <= stage.parameters
        assert stage.memory_bytes is not None
        assert stage.memory_bytes > 4 * stage.parameters
        validated = 16  # samples of the validation split, forward alone
        assert 8 * STEPS * stage.sample_flops < stage.flops < (8 * STEPS + validated) * stage.sample_flops
        assert stage.disk_bytes > 4 * stage.trained
    assert [stage.image_tokens for stage in plan.stages] == [0, 16]
    cache = plan.feature_cache
    assert cache is not None
    assert (cache.encoders, cache.images) == (3, 64 + 16)
    assert cache.bytes == 3 * 80 * 4 * 16 * 128 * 4, "four sources of 16 tokens and 128 channels in float32"
    (arm,) = plan.scoring
    assert arm.questions is not None
    assert arm.questions % 3 == 0, "real images, no image, another image"
    assert arm.flops is not None
    assert arm.flops > arm.questions * arm.question_flops
    for line in ("1 arm x 3 seeds = 3, 0 finished, 2 at a time", "shared encoders, one for each seed: 3, 0 finished"):
        assert line in said


def test_computed_hours_name_their_assumption(printed: tuple[str, Estimates], estimates: Estimates) -> None:
    said, plan = printed[0], plan_of(estimates)
    speed = SUSTAINED * GPUS["rtx4090"].float32 * 1e12
    for stage in plan.stages:
        assert stage.hours_from == "computed"
        assert stage.hours == pytest.approx(stage.flops / speed / 3600)
    assert "assume that rtx4090 sustains 30% of its published peak of 82.6 TFLOP/s in 32-true" in said
    assert "an assumption, not a measurement" in said
    cache = plan.feature_cache
    assert cache is not None
    assert cache.flops is not None
    assert plan.totals.flops == pytest.approx(
        3 * sum(stage.flops for stage in plan.stages) + 3 * (plan.scoring[0].flops or 0) + cache.flops
    )
    assert plan.totals.device_hours == pytest.approx(plan.totals.flops / speed / 3600)
    assert plan.totals.device_hours_left == plan.totals.device_hours
    assert plan.totals.hours_left is not None
    assert plan.totals.hours_left < plan.totals.device_hours, "two cells at a time"


def test_measured_steps_are_kept_until_something_changes(estimates: Estimates, monkeypatch: pytest.MonkeyPatch) -> None:
    here = on(estimates, HERE)
    assert {stage.hours_from for stage in plan_of(here).stages} == {"not known"}
    assert plan_of(here).totals.device_hours is None
    measured: list[BatchShape] = []
    monkeypatch.setattr(measured_steps, "step_seconds", lambda experiment, shape: measured.append(shape) or 36.0)
    for cost in [*here.costs.values(), *here.costs.values()]:
        assert here.clock.measured.measure(cost) == ""
    assert [shape.rows for shape in measured] == [8, 8], "each stage once"
    assert len(read_sealed(Path("runs/mine") / FILE)) == 2
    for stage in plan_of(here).stages:
        assert stage.hours_from == "measured here"
        assert stage.hours is not None
        assert STEPS * 36 / 3600 < stage.hours < 1.4 * STEPS * 36 / 3600, "and a pass over the validation split"
    cost = here.costs["concat", "finetune"]
    trainer = dataclasses.replace(cost.experiment.trainer, batch_size=4)
    other = dataclasses.replace(cost, experiment=dataclasses.replace(cost.experiment, trainer=trainer))
    assert here.clock.measured.seconds(other) is None
    assert on(here, dataclasses.replace(HERE, name="another")).clock.measured.seconds(cost) is None
    far = MeasuredSteps(Path("runs/mine"), dataclasses.replace(HERE, name="h100", here=False))
    assert far.measure(cost) == "h100 is not this machine's device"
    monkeypatch.setattr(measured_steps, "MAX_CPU_FLOPS", 1)
    assert "too many for a CPU" in here.clock.measured.measure(other)


def test_a_step_is_measured_with_recomputed_activations_and_accumulated_batches(tmp_path: Path) -> None:
    trainer = {"accumulate": 3, "checkpoint_activations": ["language_model"], "accelerator": "cpu"}
    stage = build_stage("finetune", tmp_path, "meta", trainer=trainer)
    with pytest.MonkeyPatch.context() as patch:
        ticks = iter(range(1000))
        patch.setattr(measured_steps.time, "perf_counter", lambda: float(next(ticks)))
        here = build_stage("finetune", tmp_path, trainer=trainer)
        patch.setattr(measured_steps, "build_stage", lambda experiment: here)
        seconds = step_seconds(stage.experiment, BatchShape(2, 12, 2))
    assert seconds == pytest.approx(3 * 1 / measured_steps.STEPS + 1), "three batches and an update"


def test_finished_cells_are_counted_with_their_own_time(estimates: Estimates) -> None:
    cell = Path("runs/mine/concat/1")
    (cell / "finetune").mkdir(parents=True)
    write_sealed(cell / "finetune" / "run.json", {"name": "finetune", "status": "finished", "seconds": 7200.0})
    before = plan_of(estimates)
    (cell / RESULT).write_text("{}", encoding="utf-8")
    plan = plan_of(estimates)
    assert (before.cells.finished, plan.cells.total, plan.cells.finished) == (0, 3, 1)
    assert (plan.stages[1].hours, plan.stages[1].hours_from) == (2.0, "those of finished cells")
    assert plan.totals.flops_left < plan.totals.flops
    assert plan.totals.device_hours == pytest.approx((plan.totals.device_hours_left or 0) + 2, rel=0.01)
    assert any("3, 1 finished" in str(line) for line in plan_tables(plan))


def test_stages_are_planned_on_the_devices_of_a_cell(estimates: Estimates) -> None:
    config = dataclasses.replace(estimates.planned.config, resources=ResourcesConfig(devices=2))
    encoder, stage = trainings(dataclasses.replace(estimates.planned, config=config), estimates.built)
    assert (encoder.experiment.trainer.world_size, stage.experiment.trainer.world_size) == (1, 2)
    assert stage.experiment.trainer.samples_per_step == 8


def test_a_device_that_is_too_small_is_noted(estimates: Estimates) -> None:
    small = on(estimates, dataclasses.replace(HERE, memory=10**6))
    (note,) = [note for note in plan_of(small).notes if note.startswith("concat, finetune takes ")]
    assert "which does not fit into the 1.0 MB of CPU: try " in note
    assert not any("fit" in note for note in plan_of(on(estimates, HERE)).notes)


@pytest.mark.slow
def test_neither_data_nor_tokenizer_nor_hub(tmp_path: Path, fvl_here: Run) -> None:
    """Sizes come with the kit; shards and tokenizers are not there."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    stages = [str(ROOT / "experiments" / "small" / "fusions" / "finetune.yaml")]
    values = COMPARISON | {"encoder_stage": "", "stages": stages, "set": []}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done = fvl_here(tmp_path, "compare", "mine.yaml", "--plan", "set=[language_model.pretrained=nowhere/llama]")
    assert done.returncode == 2
    assert "a plan without the hub needs the sizes: write them as `model` beside `pretrained`" in done.stderr
    assert len(errors(done)) == 1
    found: list[ComparisonPlan] = []
    for words in ((), ("--row-tokens", "700")):
        done = fvl_here(tmp_path, "compare", "mine.yaml", "--plan", "--device-tflops", "2", *words)
        assert done.returncode == 0, done.stderr
        found.append(ComparisonPlan.read(read_sealed(tmp_path / "runs" / "mine" / "plan.json")))
    plan, shorter = found
    assert {stage.row_tokens for stage in plan.stages} == {1024}
    assert "the most that data.sequence_length allows (no shards to inspect)" in plan.stages[0].rows
    assert all(stage.hours == pytest.approx(stage.flops / 2e12 / 3600) for stage in plan.stages)
    assert {arm.questions for arm in plan.scoring} == {None}
    assert any("left out of the sums" in note for note in plan.notes)
    assert not (tmp_path / "data").exists()
    assert {stage.row_tokens for stage in shorter.stages} == {700}
    assert shorter.stages[0].sample_flops < plan.stages[0].sample_flops


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "h100"), "--device: it is an option of a plan, add --plan"),
        (("--measure",), "--measure: it is an option of a plan, add --plan"),
    ],
)
def test_what_is_refused(work: Path, fvl_here: Run, words: tuple[str, ...], said: str) -> None:
    done = fvl_here(work, "compare", "mine.yaml", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(errors(done)) == 1


def test_numbers_in_words() -> None:
    assert [short(n) for n in (0, 999, 1000, 462_000_000, 1.234e15)] == ["0", "999", "1 k", "462 M", "1.23 P"]
    assert [hours_in_words(h) for h in (None, 0.0123, 3.41, 1234.5)] == ["?", "0.012", "3.4", "1,234"]


def test_tasks_count_in_the_scoring(estimates: Estimates) -> None:
    stage, experiment = estimates.built["concat"][-1], estimates.planned.plans[0].arms["concat"][-1]
    few, more = (scoring_cost(stage, experiment, None, 6, tasks) for tasks in ([], [(10, 16), (4, 1)]))
    assert few.flops is not None
    assert more.flops == pytest.approx(few.flops * 16 / 6 + 4 * few.question_flops), "as of the split test"
    assert (few.questions, more.questions) == (6, 20)
    plan = plan_of(dataclasses.replace(estimates, tasks={"pope": (10, 16)}))
    titles = [table.title for table in plan_tables(plan) if not isinstance(table, str)]
    assert titles[-1] == "scoring of one cell, controls, further splits and 1 task included"
    assert ComparisonPlan.read(plan.plain()).tasks == {"pope": 10}
    assert "tasks" not in plan_of(estimates).plain()


def test_tasks_are_counted_without_shards(estimates: Estimates, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_tasks", lambda estimates: {"pope": (10, 16)})
    monkeypatch.setattr(estimate, "count_questions", lambda *given: None)
    monkeypatch.setattr(estimate, "feature_sets", lambda *given: [])
    without = dataclasses.replace(estimates, scoring={}, notes=[])
    estimate._score_and_share(without, lambda name: None)
    assert without.scoring["concat"].questions == 10
    assert without.notes == ["The data is not there, so that of the questions only those of the tasks are counted."]
    monkeypatch.setattr(estimate, "_tasks", lambda estimates: {})
    estimate._score_and_share(without, lambda name: None)
    assert without.scoring["concat"].questions is None
