"""A comparison of three arms with three seeds, stopped in the middle and started again; two of the arms are the same.

Its cells run in this process, where importing everything for each of them would take most of the time.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from fvl_lightning.comparison import worker as cell_process
from fvl_lightning.comparison.cell import Cell
from fvl_lightning.evaluation.tasks.samples import read_samples
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.links import cells_search
from tests.conftest import TINY_DATA, Run, furnish
from tests.integration.from_mlflow import FromMlflow
from tests.integration.runs import assert_same_run
from tests.integration.tiny_tasks import TASKS, write_tasks

SEEDS = (0, 1, 2)
ARMS = {"concat": ["fusion=concat"], "again": ["fusion=concat"], "gated": ["fusion=gated"]}
COMPARISON: dict[str, Any] = {
    "name": "tiny",
    "encoder_stage": "encoder_pretrain.yaml",
    "stages": ["finetune.yaml"],
    "arms": {arm: {"set": words} for arm, words in ARMS.items()},
    "seeds": list(SEEDS),
    "smallest_effect": 0.01,
    "evaluate": {
        "tasks": [f"{name}.yaml" for name in TASKS], "limit": 8, "macro": {"both": list(TASKS)}, "pairs": "all",
    },
    "set": [*TINY_DATA, "trainer.batch_size=8", "trainer.log_every=2", "optimizer.warmup_steps=2"],
}
STEPS = {"encoder_pretrain.yaml": 4, "finetune.yaml": 20}
"""Enough for answers that are right by chance, or there would be no differences to speak of."""
STOPPED_AFTER = 4
MEASURED = ("seconds", "tokens_per_second", "peak_memory_bytes", "mlflow", "test_readings")
"""Parts of a report that differ from time to time."""


class Here:
    """Runs cells in this process, one after the other, and a Ctrl-C behind so many of them."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.ran: list[tuple[str, int]] = []

    def run(self, cells: Sequence[Cell], watch: Callable[[], None]) -> None:
        for cell in cells:
            if len(self.ran) == self.stop_after:
                raise KeyboardInterrupt
            cell.prepare()
            with cell.log.open("w", encoding="utf-8") as log, contextlib.redirect_stderr(log):
                cell.code = cell_process.main(cell.folder / "cell.json")
            self.ran.append((cell.arm, cell.seed))
            watch()


def start(folder: Path, fvl_here: Run, *words: str, stop_after: int | None = None) -> tuple[Any, list[tuple[str, int]]]:
    """`fvl compare` with its cells here; what it said, and the cells it ran."""
    launcher = Here(stop_after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fvl_lightning.comparison.run.LocalLauncher", lambda jobs: launcher)
        return fvl_here(folder, "compare", "tiny.yaml", *words), launcher.ran


def workplace(folder: Path, data: Path, store: Path, **changes: Any) -> Path:
    furnish(folder, data)
    shutil.copy(store, folder / "mlflow.db")
    write_tasks(folder)
    files: dict[str, Any] = {"tiny.yaml": COMPARISON | changes}
    for name, steps in STEPS.items():
        trainer: dict[str, Any] = {"max_steps": steps, "validate_every": steps, "checkpoint_every": steps}
        if name == "finetune.yaml":
            trainer["evaluate"] = {"tasks": ["words.yaml"], "every": steps}
        files[name] = {"base": f"experiments/demo/{name}", "trainer": trainer}
    for name, values in files.items():
        (folder / name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny" / "comparison.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stopped_once(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, empty_store: Path, fvl_here: Run
) -> tuple[Path, list[list[tuple[str, int]]]]:
    """A working folder with the comparison, which was stopped in the middle, and the cells that each start ran."""
    folder = workplace(tmp_path_factory.mktemp("comparison"), tiny_data, empty_store)
    done, first = start(folder, fvl_here, stop_after=STOPPED_AFTER)
    assert "stopped" in done.stderr
    done, second = start(folder, fvl_here)
    assert done.returncode == 0, done.stderr
    return folder, [first, second]


@pytest.fixture(scope="module")
def folder(stopped_once: tuple[Path, list[list[tuple[str, int]]]]) -> Path:
    return stopped_once[0]


@pytest.fixture(scope="module")
def comparison(folder: Path) -> dict[str, Any]:
    return report_of(folder)


@pytest.fixture(scope="module")
def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


@pytest.fixture(scope="module")
def children(client: MlflowClient, comparison: dict[str, Any]) -> dict[tuple[str, int], MlflowRun]:
    """The last stage of every cell, found as the report says."""
    experiment = client.get_experiment_by_name(comparison["mlflow"]["experiment"])
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], comparison["mlflow"]["search"])
    assert len(found) == len(ARMS) * len(SEEDS)
    search = f"tags.`mlflow.parentRunId` = '{comparison['mlflow']['run_id']}'"
    found = client.search_runs([experiment.experiment_id], search)
    cells = [run for run in found if run.data.params["stage"] == "finetune"]
    assert len(found) - len(cells) == len(SEEDS), "one encoder per seed"
    return {(run.data.tags["fvl.arm"], int(run.data.tags["fvl.seed"])): run for run in cells}


def test_no_finished_cell_runs_twice(stopped_once: tuple[Path, list[list[tuple[str, int]]]]) -> None:
    first, second = stopped_once[1]
    assert len(first) == STOPPED_AFTER
    assert sorted([*first, *second]) == sorted((arm, seed) for arm in ARMS for seed in SEEDS)


def test_identical_arms_give_bit_equal_runs(folder: Path, comparison: dict[str, Any]) -> None:
    for seed in SEEDS:
        one, other = (RunFolder(folder / "runs" / "tiny" / arm / str(seed) / "finetune") for arm in ("concat", "again"))
        assert_same_run(one, other)
    assert comparison["arms"]["concat"]["accuracy"] == comparison["arms"]["again"]["accuracy"]
    assert comparison["arms"]["again"]["same_start"] == 1
    assert 0.5 < comparison["arms"]["gated"]["same_start"] < 1
    contrast = next(c for c in comparison["statistics"]["contrasts"] if c["arm"] == "again")
    assert contrast["estimate"] == 0
    assert contrast["verdict"] in ("equivalent", "not separated")


def test_seeds_differ_in_everything(folder: Path, comparison: dict[str, Any]) -> None:
    hashes = {RunFolder(folder / "runs" / "tiny" / "encoders" / str(seed) / "encoder_pretrain").info["encoder_hash"]
              for seed in SEEDS}  # fmt: skip
    assert len(hashes) == len(SEEDS)
    assert {cell["encoder_hash"] for cell in comparison["cells"]} == hashes


def test_a_child_says_which_cell_it_is(children: dict[tuple[str, int], MlflowRun]) -> None:
    assert set(children) == {(arm, seed) for arm in ARMS for seed in SEEDS}
    for (arm, seed), run in children.items():
        tags = run.data.tags
        assert tags["fvl.axis.fusion"] == ARMS[arm][0].removeprefix("fusion=")
        assert tags["fvl.comparison"] == "tiny"
        assert run.info.run_name == f"{arm}/seed {seed}/finetune"
        assert 0 <= run.data.metrics["evaluation/words/overall"] <= 1, "scored in training, too"


def test_every_number_of_the_report_is_in_mlflow(folder: Path, comparison: dict[str, Any], tmp_path: Path) -> None:
    assert_in_mlflow(f"sqlite:///{folder / 'mlflow.db'}", comparison, tmp_path)


def assert_in_mlflow(uri: str, comparison: dict[str, Any], folder: Path) -> FromMlflow:
    """The report on the parent run has the tables and words that its runs in MLflow give, without the working folder.

    Args:
        comparison: comparison.json, to know the parent by, and to hold the statistics against at full precision.
        folder: for what is downloaded.
    """
    there = FromMlflow(uri, comparison["mlflow"]["run_id"], folder)
    assert list(there.cells) == [(arm, seed) for arm in ARMS for seed in SEEDS]
    assert_close(there.statistics(), comparison["statistics"])
    text = there.artifact(there.parent, "report.md")
    tables = there.tables(comparison["statistics"])
    assert len(tables) >= 6
    for table in tables:
        assert f"## {table.title}\n" in text
        for row in table.rows:
            assert f"| {' | '.join(row)} |\n" in text, table.title
    metrics = there.parent.data.metrics
    shares = " | ".join(f"{metrics[f'same_start/{arm}']:.1%}" for arm in ARMS)
    assert f"| weights that start as concat's | {shares} |\n" in text
    for name in ("caption_tokens", "words", "boxes"):
        average = mean(run.data.metrics[f"encoder/{name}"] for run in there.encoders)
        assert f"{name.replace('_', ' ')} {average:.3f}" in text
    verdicts = {c["arm"]: c["verdict"] for c in comparison["statistics"]["contrasts"]}
    assert {arm: there.parent.data.tags[f"fvl.verdict.{arm}"] for arm in ("again", "gated")} == verdicts
    for entry in comparison["statistics"]["arms"]:
        assert [metrics[f"{name}/{entry['arm']}"] for name in ("score", "sd")] == [
            pytest.approx(entry["mean"]), pytest.approx(entry["sd"])
        ]  # fmt: skip
    for contrast in comparison["statistics"]["contrasts"]:
        found = [metrics[f"{name}/{contrast['arm']}"] for name in ("difference", "standard_error", "p_holm")]
        assert found == [contrast["estimate"], contrast["standard_error"], contrast["p_holm"]]
    assert_tasks_in_mlflow(there, comparison)
    assert (there.parent.info.status, there.parent.data.tags["fvl.seeds"]) == ("FINISHED", "0, 1, 2")
    assert "fvl.seed" not in there.parent.data.tags
    rows = [line.split(" | ")[0] for line in there.parent.data.tags["mlflow.note.content"].splitlines() if "| " in line]
    assert sorted(rows) == sorted(["| arm", *(f"| {arm}" for arm in ARMS)])
    assert "data:image/png;base64," in there.artifact(there.parent, "report.html")
    return there


def assert_tasks_in_mlflow(there: FromMlflow, comparison: dict[str, Any]) -> None:
    """The parent has every arm's scores on tasks, and the family's contrasts and verdicts."""
    metrics, tags = there.parent.data.metrics, there.parent.data.tags
    for arm, result in comparison["arms"].items():
        assert {name: metrics[f"tasks/{name}/{arm}"] for name in TASKS} == {
            name: pytest.approx(result["tasks"][name]["scores"]["macro"]) for name in TASKS
        }  # fmt: skip
        assert metrics[f"macro/both/{arm}"] == pytest.approx(result["macro"]["both"])
    family = comparison["statistics"]["tasks"]["family"]
    assert family["scores"] == ["tasks/colours/macro", "tasks/words/macro", "macro/both"]
    assert len(family["contrasts"]) == 3 * 3, "all pairs of three arms"
    for contrast in family["contrasts"]:
        pair = contrast["arm"] + ("" if contrast["against"] == "concat" else f" - {contrast['against']}")
        named = f"{contrast['score'].removesuffix('/macro')}/{pair}"
        assert metrics[f"difference/{named}"] == pytest.approx(contrast["estimate"])
        assert tags[f"fvl.verdict.{named}"] == contrast["verdict"]
        if contrast["p_adjusted"] is None:
            assert f"p_adjusted/{named}" not in metrics
        else:
            assert metrics[f"p_adjusted/{named}"] == contrast["p_adjusted"]


def test_every_cell_was_asked_the_same_questions(folder: Path, comparison: dict[str, Any]) -> None:
    evaluation = comparison["evaluation"]
    assert (evaluation["tasks"]["colours"]["questions"], evaluation["tasks"]["words"]["questions"]) == (8, 8)
    for cell in comparison["cells"]:
        own = folder / "runs" / "tiny" / cell["arm"] / str(cell["seed"])
        for name, scores in cell["tasks"].items():
            assert scores["identity"] == evaluation["tasks"][name]["identity"]
            samples = read_samples(own / f"samples-{name}.jsonl", "accuracy")
            assert len({sample.id for sample in samples}) == 8
            assert scores["scores"]["overall"] == pytest.approx(mean(sample.score for sample in samples))
        assert not list(own.glob("answers-*.jsonl")), "kept until the result is written"


def test_every_cell_has_its_axes_its_model_and_its_data(
    client: MlflowClient, children: dict[tuple[str, int], MlflowRun]
) -> None:
    for (arm, seed), run in children.items():
        assert run.data.params["arm"] == arm
        assert run.data.params["axis.fusion"] == run.data.params["fusion"]
        context = {given.dataset.name: given.tags[0].value for given in run.inputs.dataset_inputs}
        assert context == {"demo": "training", "demo/test": "evaluation"}
        [output] = run.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert (model.name, model.params["arm"]) == (f"{arm}-seed {seed}-finetune", arm)
        assert output.step == STEPS["finetune.yaml"]
        assert (Path(model.tags["fvl.model_folder"]) / "config.json").is_file()
        assert {m.value for m in model.metrics if m.key == "accuracy/macro"} == {run.data.metrics["accuracy/macro"]}
    digests = {given.dataset.digest for run in children.values() for given in run.inputs.dataset_inputs}
    assert len(digests) == 2, "the same data in every cell"


def test_the_pages_of_the_comparison_are_named(
    folder: Path, comparison: dict[str, Any], fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []

    def serve(uri: str, host: str, port: int, before: Callable[[], None]) -> None:
        served.append((uri, host, port))
        before()

    monkeypatch.setattr("fvl_lightning.cli.mlflow.serve_ui", serve)
    done = fvl_here(folder, "ui", "runs/tiny", "--port", "5001")
    assert done.returncode == 0, done.stderr
    run = comparison["mlflow"]["run_id"]
    pages = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert pages["verdict"].startswith("http://127.0.0.1:5001/#/experiments/")
    assert f"/runs/{run}/artifacts/report.html" in pages["report"]
    assert pages["scores by arm"].endswith(f"viewStateShareKey={run}")
    local = {name: page.replace(":5001", ":5000") for name, page in pages.items()}
    assert comparison["mlflow"]["pages"] == local
    assert served == [("sqlite:///mlflow.db", "127.0.0.1", 5001)]
    said = (folder / "runs" / "tiny" / "report.md").read_text(encoding="utf-8")
    assert "`fvl ui runs/tiny`" in said
    assert f"```\n{cells_search(comparison['mlflow']['run_id'], 'accuracy/macro')}\n```" in said
    assert fvl_here(folder, "ui", "runs").returncode == 2


def test_the_report_is_written_again_from_what_is_stored(
    folder: Path, comparison: dict[str, Any], fvl_here: Run
) -> None:
    file = folder / "runs" / "tiny" / "report.md"
    before = file.read_text(encoding="utf-8")
    file.unlink()
    done, ran = start(folder, fvl_here, "--report")
    assert done.returncode == 0, done.stderr
    assert ran == []
    assert file.read_text(encoding="utf-8") == before
    assert report_of(folder) == comparison


@pytest.mark.slow
def test_a_failed_cell_is_named_and_left_until_asked_for(
    tmp_path: Path, fvl_here: Run, tiny_data: Path, empty_store: Path
) -> None:
    changes = {"seeds": [0], "arms": {"concat": COMPARISON["arms"]["concat"], "broken": {"set": ["fusion=gated"]}}}
    work = workplace(tmp_path, tiny_data, empty_store, **changes)
    words = ("set=[" + ", ".join([*COMPARISON["set"], "trainer.max_steps=2"]) + "]",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cell_process, "main", failing("broken"))
        done, ran = start(work, fvl_here, *words)
    assert done.returncode == 2
    assert "1 of 2 cells failed (broken with seed 0: no space left); `--retry-failed` tries again" in done.stderr
    assert ran == [("concat", 0), ("broken", 0)]
    assert list(report_of(work)["arms"]) == ["concat"]
    parent = parent_of(work)
    assert parent.info.status == "FAILED"
    assert "**Incomplete:** 1 of 2 cells failed (broken with seed 0" in parent.data.tags["mlflow.note.content"]
    done, ran = start(work, fvl_here, *words)
    assert (done.returncode, ran) == (2, [])
    done, ran = start(work, fvl_here, *words, "--retry-failed")
    assert (done.returncode, ran) == (0, [("broken", 0)]), done.stderr
    assert (work / "runs" / "tiny" / "broken" / "finetune").is_dir(), "no folder for the seed where there is one alone"
    assert list(report_of(work)["arms"]) == ["concat", "broken"]
    parent = parent_of(work)
    assert (parent.info.status, "Incomplete" in parent.data.tags["mlflow.note.content"]) == ("FINISHED", False)

    smaller = COMPARISON | changes | {"arms": {"concat": COMPARISON["arms"]["concat"]}}
    (work / "tiny.yaml").write_text(yaml.safe_dump(smaller, sort_keys=False), encoding="utf-8")
    done, ran = start(work, fvl_here, *words)
    assert (done.returncode, ran) == (0, []), done.stderr
    assert "will be replaced; changed since: broken with seed 0" in " ".join(done.stdout.split())
    parent, entry = parent_of(work), report_of(work)["mlflow"]
    client = MlflowClient(tracking_uri=f"sqlite:///{work / 'mlflow.db'}")
    [cell] = client.search_runs([parent.info.experiment_id], entry["search"])
    assert cell.data.params["arm"] == "concat"
    assert [name for name in parent.data.tags if name.startswith("fvl.verdict.")] == []
    assert isnan(parent.data.metrics["score/broken"])
    assert parent.data.metrics["score/concat"] == cell.data.metrics["accuracy/macro"]


def parent_of(work: Path) -> MlflowRun:
    """The comparison's own run."""
    return MlflowClient(tracking_uri=f"sqlite:///{work / 'mlflow.db'}").get_run(report_of(work)["mlflow"]["run_id"])


@pytest.mark.slow
def test_what_is_not_fair_is_refused(folder: Path, tmp_path: Path, tiny_data: Path, fvl_here: Run) -> None:
    work = furnish(tmp_path, tiny_data)
    tasks = ("pictures", "rows.jsonl", *(f"{task}.yaml" for task in TASKS))
    for name in ("runs", "mlflow.db", "tiny.yaml", *STEPS, *tasks):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, work / name)

    def refused(cell: str, name: str, old: str, new: str) -> str:
        file = work / "runs" / "tiny" / cell / name
        before = file.read_text(encoding="utf-8")
        assert old in before
        edited = re.sub(r',\s*"checksum": "\w+"', "", before.replace(old, new, 1))  # as earlier versions wrote it
        file.write_text(edited, encoding="utf-8")
        done, ran = start(work, fvl_here, "--report")
        file.write_text(before, encoding="utf-8")
        assert (done.returncode, ran) == (2, [])
        return done.stderr

    result = json.loads((work / "runs" / "tiny" / "gated" / "1" / "result.json").read_text(encoding="utf-8"))
    hash_ = result["encoder_hash"]
    said = refused("gated/1", "result.json", f'"encoder_hash": "{hash_}"', '"encoder_hash": "another"')
    assert f"the arms of seed 1 do not share one encoder: gated has another, not {hash_}" in said
    name, (_, values) = next((n, v) for n, v in result["initial"].items() if n.startswith("language_model"))
    said = refused("gated/1", "result.json", values, "another")
    assert (
        f"arms concat and gated of seed 1 started from other weights at {name}; the comparison would be unfair" in said
    )
    said = refused("gated/2", "finetune/metrics.jsonl", '"data/step_keys": ', '"data/step_keys": 1')
    assert "arms concat and gated trained on different samples at step 2 of finetune" in said
    done, _ = start(work, fvl_here, "--report", "swept=[projector]")
    assert done.returncode == 2
    assert "gated differs from concat in fusion.gate too ('softmax', not None), and only projector" in done.stderr


@pytest.mark.slow
def test_learning_rates_are_chosen_without_the_test_split(
    tmp_path: Path, fvl_here: Run, tiny_data: Path, empty_store: Path
) -> None:
    arms = {"concat": COMPARISON["arms"]["concat"], "gated": COMPARISON["arms"]["gated"]}
    tune = {"learning_rate_factors": [0.3, 1], "seeds": [100]}
    work = workplace(tmp_path, tiny_data, empty_store, seeds=[0], arms=arms, tune=tune)
    words = ("set=[" + ", ".join([*COMPARISON["set"], "trainer.max_steps=2"]) + "]",)
    done, first = start(work, fvl_here, *words, stop_after=3)
    assert "stopped" in done.stderr
    assert not list(work.rglob("test_readings.jsonl")), "what is only tried never sees the test split"
    done, second = start(work, fvl_here, *words)
    assert done.returncode == 0, done.stderr
    tried = [(f"{arm}, learning rates x {factor:g}", 100) for arm in arms for factor in (0.3, 1)]
    assert [*first, *second] == [*tried, ("concat", 0), ("gated", 0)]

    report = report_of(work)
    assert {cell["seed"] for cell in report["cells"]} == {0}
    for cell in report["cells"]:
        found = report["tuning"]["arms"][cell["arm"]]
        rate = RunFolder(work / cell["runs"]["finetune"]).config["optimizer"]["learning_rate"]
        assert rate == found["learning_rates"]["finetune"] == pytest.approx(0.003 * found["chosen"])
        folders = {factor: work / "runs" / "tiny" / "tuning" / f"{cell['arm']}-x{factor}" for factor in ("0.3", "1")}
        results = {factor: json.loads((of / "100" / "result.json").read_text()) for factor, of in folders.items()}
        scores = {factor: result["accuracy"]["macro"] for factor, result in results.items()}
        assert found["scores"] == scores
        assert found["chosen"] == (0.3 if scores["0.3"] >= scores["1"] else 1)
    text = (work / "runs" / "tiny" / "report.md").read_text(encoding="utf-8")
    assert "with seed 100, which no verdict uses" in text
    assert "The test data was read 2 times" in text
    assert "changed after" not in text

    shutil.copytree(work / "runs" / "tiny" / "gated", work / "runs" / "tiny" / "dropped")
    done, ran = start(work, fvl_here, *words, "--report")
    assert (done.returncode, ran) == (0, []), done.stderr
    text = (work / "runs" / "tiny" / "report.md").read_text(encoding="utf-8")
    assert "It was also read by runs that are no longer compared: dropped." in text
    assert "changed after its test scores could be seen" in text


def failing(arm: str, run: Callable[[Path], int] = cell_process.main) -> Callable[[Path], int]:
    """A cell's process on a disk that is full when it comes to `arm`."""

    def fails(specification: Path) -> int:
        if specification.parent.name != arm:
            return run(specification)
        (specification.parent / "cell.log").write_text("a line\nno space left\n", encoding="utf-8")
        return 2

    return fails


def assert_close(found: Any, wanted: Any, where: str = "statistics") -> None:
    """Equal but for rounding: the store gives runs in an order of its own, and sums depend on it."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted), where
        for key in wanted:
            assert_close(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_close(one, other, f"{where}[{number}]")
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12), where
    else:
        assert found == wanted, where


@pytest.mark.slow
def test_stopping_changes_nothing_in_the_report(
    folder: Path, comparison: dict[str, Any], tmp_path: Path, tiny_data: Path, empty_store: Path, fvl_here: Run
) -> None:
    work = workplace(tmp_path, tiny_data, empty_store)
    done, ran = start(work, fvl_here)
    assert done.returncode == 0, done.stderr
    assert len(ran) == len(ARMS) * len(SEEDS)
    assert lasting(report_of(work)) == lasting(comparison)


def lasting(part: Any) -> Any:
    """A report without times."""
    if isinstance(part, dict):
        return {key: lasting(inner) for key, inner in part.items() if key not in MEASURED}
    return [lasting(inner) for inner in part] if isinstance(part, list) else part
