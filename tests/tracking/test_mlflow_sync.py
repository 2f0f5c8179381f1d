"""A store is brought up to date with a run's folder, from whatever it has, and gets nothing twice."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.exceptions import MlflowException

from fvl_lightning.core.errors import DataError
from fvl_lightning.tracking.mlflow_sync import KEY_TAG, RunDescription, SyncReport, send_run

DESCRIPTION = {
    "experiment": "shapes",
    "run_name": "demo/concat",
    "key": "0123",
    "parent_run_id": None,
    "tags": {"fvl.stage": "finetune"},
    "params": {"fusion": "concat", "rates[0]": 0.5},
    "config": {"name": "concat"},
    "dataset": {"name": "demo", "digest": "d" * 64, "source": "data"},
}
ENTRIES: list[dict[str, Any]] = [
    {"step": 1, "time": 1_700_000_000_001, "train/loss": 3.0, "speed": 10.0},
    {"step": 2, "time": 1_700_000_000_002, "train/loss": 2.0, "speed": 11.0},
    {"step": 2, "time": 1_700_000_000_002, "note": {"skipped": ["a"]}},
    {"step": 2, "time": 1_700_000_000_005, "train/loss": 2.0, "speed": 12.0},
    {"step": 3, "time": 1_700_000_000_006, "train/loss": float("nan")},
]


@pytest.fixture
def client(tmp_path: Path, empty_store: Path) -> MlflowClient:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def description(tmp_path: Path) -> RunDescription:
    return RunDescription.of(f"sqlite:///{tmp_path / 'mlflow.db'}", DESCRIPTION)


def steps(client: MlflowClient, run_id: str, key: str) -> list[int]:
    """The steps of a metric, each as often as the store has it."""
    return sorted(point.step for point in client.get_metric_history(run_id, key))


def test_everything_arrives_and_then_nothing_is_missing(client: MlflowClient, description: RunDescription) -> None:
    description.results, description.tables = {"accuracy/macro": 0.5}, {"answers": [{"truth": "red", "answer": "blue"}]}
    sent = send_run(description, None, ENTRIES, "FINISHED", 1_700_000_000_006)
    run = client.get_run(sent.run_id)
    assert sent.points == 5
    assert steps(client, sent.run_id, "train/loss") == [1, 2, 3]
    assert {p.step: p.value for p in client.get_metric_history(sent.run_id, "speed")} == {1: 10.0, 2: 12.0}
    assert client.get_metric_history(sent.run_id, "speed")[0].timestamp == 1_700_000_000_001
    assert (run.info.status, run.info.end_time, run.info.run_name) == ("FINISHED", 1_700_000_000_006, "demo/concat")
    assert run.data.params == {"fusion": "concat", "rates_0_": "0.5"}
    assert run.data.tags["fvl.stage"] == "finetune"
    assert run.data.metrics["accuracy/macro"] == 0.5
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("demo", "d" * 36)
    source = get_dataset_source_from_json(given.dataset.source, given.dataset.source_type)
    assert source.to_dict() == {"uri": "data"}
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training"}
    assert {file.path for file in client.list_artifacts(sent.run_id)} == {"config.yaml", "answers.json"}
    assert (
        yaml.safe_load(Path(client.download_artifacts(sent.run_id, "config.yaml")).read_text()) == DESCRIPTION["config"]
    )
    assert send_run(description, sent.run_id, ENTRIES, "FINISHED", 1) == SyncReport(sent.run_id)
    assert send_run(description, None, ENTRIES, "FINISHED", 1) == SyncReport(sent.run_id), "found by its key"
    assert steps(client, sent.run_id, "train/loss") == [1, 2, 3]


def test_only_what_is_missing_is_sent(client: MlflowClient, description: RunDescription) -> None:
    run_id = client.create_run(client.create_experiment("shapes"), tags={KEY_TAG: "0123"}).info.run_id
    client.log_metric(run_id, "train/loss", 2.0, timestamp=5, step=2)
    client.log_param(run_id, "fusion", "concat")
    sent = send_run(description, None, ENTRIES)
    assert sent.run_id == run_id
    assert sent.points == 4
    assert steps(client, run_id, "train/loss") == [1, 2, 3]
    assert client.get_run(run_id).info.status == "RUNNING"
    sent = send_run(description, run_id, [*ENTRIES, {"step": 4, "time": 7, "speed": 1.0}], "KILLED")
    assert (sent.points, sent.others) == (1, 1)
    assert client.get_run(run_id).info.status == "KILLED"


def test_scores_and_tables_may_change(client: MlflowClient, description: RunDescription) -> None:
    description.results, description.tables = {"accuracy": 0.5}, {"answers": [{"answer": "blue"}]}
    run_id = send_run(description, None, []).run_id
    description.results, description.tables = {"accuracy": 0.25}, {"answers": [{"answer": "red", "truth": "red"}]}
    assert send_run(description, run_id, []).others == 2
    assert send_run(description, run_id, []).others == 0
    assert client.get_run(run_id).data.metrics["accuracy"] == 0.25
    assert '"red"' in Path(client.download_artifacts(run_id, "answers.json")).read_text()


def test_a_run_that_goes_on_is_running_again(client: MlflowClient, description: RunDescription) -> None:
    run_id = send_run(description, None, ENTRIES, "KILLED", 1).run_id
    assert send_run(description, run_id, ENTRIES).others == 1
    assert client.get_run(run_id).info.status == "RUNNING"


def test_parameters_are_cut_and_go_in_batches(client: MlflowClient, description: RunDescription) -> None:
    description.params = {f"rates[{number}]": number for number in range(150)} | {"prompt": "x" * 7000, "short": None}
    kept = client.get_run(send_run(description, None, []).run_id).data.params
    assert len(kept) == 152
    assert (kept["rates_149_"], len(kept["prompt"]), kept["short"]) == ("149", 6000, "None")


def test_tables_stand_side_by_side(
    client: MlflowClient, description: RunDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    # load_table asks MLflow's global store, whichever client it is called on.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", description.uri)
    rows = [{"question": "what colour?", "truth": "red", "answer": "blue"}]
    description.tables = {"predictions": rows}
    first = send_run(description, None, []).run_id
    description.tables = {"predictions": [*rows, {"question": "which word?", "truth": "cat"}]}
    send_run(description, first, [])
    second = send_run(dataclasses.replace(description, key="4567", tables={"predictions": rows}), None, []).run_id
    both = client.load_table(
        client.get_run(first).info.experiment_id, "predictions.json", [first, second], extra_columns=["run_id"]
    )
    assert list(both.columns) == ["question", "truth", "answer", "run_id"]
    assert both[both.run_id == first].question.tolist() == ["what colour?", "which word?"]
    assert both[both.run_id == second].answer.tolist() == ["blue"]


def test_the_model_is_named_and_knows_its_scores_and_their_data(
    client: MlflowClient, description: RunDescription, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    run_id = send_run(description, None, ENTRIES, "FINISHED", 1, folder).run_id
    description.results = {"accuracy/macro": 0.5, "accuracy/colour": 0.25, "transfer/medium/macro": 0.125}
    description.evaluated = {"name": "demo/test", "digest": "e" * 64, "source": "data", "metric": "accuracy"}
    assert send_run(description, run_id, ENTRIES, "FINISHED", 1, folder).others == 4, "three results and their data"
    assert send_run(description, run_id, ENTRIES, "FINISHED", 1, folder).others == 0
    run = client.get_run(run_id)
    [model] = client.search_logged_models([run.info.experiment_id])
    assert (model.name, model.model_type, model.status, model.source_run_id) == (
        "demo-concat", "finetune", "READY", run_id
    )  # fmt: skip
    assert model.params == {"fusion": "concat", "rates_0_": "0.5"}
    assert (model.tags["fvl.model_folder"], model.tags["fvl.model_bytes"]) == (str(folder), "7")
    assert not client.list_logged_model_artifacts(model.model_id), "weights stay where they are"
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(model.model_id, 3)]
    scores = {m.key: (m.value, m.dataset_name, m.dataset_digest) for m in model.metrics}
    assert scores == {
        "accuracy/macro": (0.5, "demo/test", "e" * 36),
        "accuracy/colour": (0.25, "demo/test", "e" * 36),
        "transfer/medium/macro": (0.125, None, None),
    }
    assert run.data.metrics["accuracy/macro"] == 0.5
    assert {given.dataset.name: given.tags[0].value for given in run.inputs.dataset_inputs} == {
        "demo": "training", "demo/test": "evaluation"
    }  # fmt: skip


def test_a_model_that_was_half_told_is_not_told_twice(
    client: MlflowClient, description: RunDescription, tmp_path: Path
) -> None:
    run_id = send_run(description, None, []).run_id
    experiment_id = client.get_run(run_id).info.experiment_id
    pending = client.create_logged_model(experiment_id, name="demo-concat", source_run_id=run_id)
    assert send_run(description, run_id, [], "FINISHED", 1, tmp_path).others == 2, "the run's output and its end"
    [model] = client.search_logged_models([experiment_id])
    assert (model.model_id, model.status) == (pending.model_id, "READY")


def test_a_dataset_that_another_run_adds_at_the_same_moment(
    client: MlflowClient, description: RunDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_inputs, calls = MlflowClient.log_inputs, 0

    def refused_once(client: MlflowClient, *arguments: Any, **keywords: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise MlflowException("UNIQUE constraint failed: datasets.name")
        log_inputs(client, *arguments, **keywords)

    monkeypatch.setattr(MlflowClient, "log_inputs", refused_once)
    run_id = send_run(description, None, []).run_id
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 1


def test_a_server_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no MLflow server answers") as raised:
        send_run(RunDescription.of("http://127.0.0.1:9", DESCRIPTION), None, ENTRIES)
    assert "\n" not in str(raised.value)
