"""What `fvl demo --quick` leaves behind: the comparison, one frozen encoder for all arms, lineage, runs in MLflow."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from safetensors.torch import load_file

from datamodules.demo.text import KINDS
from fvl_lightning.comparison.report.figures import source_weight_figure
from fvl_lightning.core.experiment import COMPONENTS
from fvl_lightning.evaluation.metrics.accuracy import normalised
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import Run

ARMS = ("concat", "attention", "gated")
STAGES = ("pretrain", "finetune")
SCORES = ("accuracy", "image_zeroed", "image_shuffled", "prior")
FIGURES = ("comparison.png", "loss_curves.png", "samples.png")


@pytest.fixture(scope="module")
def report(quick_demo: Path) -> Path:
    """The folder of the quick demo's report."""
    return quick_demo / "runs" / "demo-quick"


@pytest.fixture(scope="module")
def comparison(report: Path) -> dict[str, Any]:
    """comparison.json."""
    return json.loads((report / "comparison.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def mlflow_client(quick_demo: Path) -> MlflowClient:
    """The store of the quick demo."""
    return MlflowClient(tracking_uri=f"sqlite:///{quick_demo / 'mlflow.db'}")


@pytest.fixture(scope="module")
def parent(mlflow_client: MlflowClient, report: Path) -> MlflowRun:
    """The MLflow run above those of the arms."""
    encoder = mlflow_client.get_run(RunFolder(report / "encoder_pretrain").info["mlflow_run_id"])
    return mlflow_client.get_run(encoder.data.tags["mlflow.parentRunId"])


def test_the_comparison_has_its_shape(comparison: dict[str, Any]) -> None:
    assert list(comparison["arms"]) == list(ARMS)
    for entry in comparison["arms"].values():
        for name in SCORES:
            score = entry[name]
            assert set(score) == {"macro", "overall", "by_kind"}
            assert set(score["by_kind"]) == set(KINDS), name
            assert len(score["by_kind"]) == 10
            values = list(score["by_kind"].values())
            assert all(0 <= value <= 1 for value in [*values, score["macro"], score["overall"]])
            assert score["macro"] == pytest.approx(sum(values) / len(values))
        for name in ("parameters", "trainable", "peak_memory_bytes"):
            assert isinstance(entry[name], int)
            assert entry[name] > 0, name
        assert entry["tokens_per_second"] > 0
        assert entry["seconds"] > 0
        assert entry["trainable"] < entry["parameters"], "the encoder is frozen"
        assert set(entry["unseen"]) == {"test_unseen_words", "test_unseen_pairs"}
        assert set(entry["transfer"]) == {"medium"}
    assert comparison["lineage"] == "frozen_encoder"
    assert set(comparison["encoder"]["scores"]) == {"caption_tokens", "words", "boxes"}


def test_the_prior_is_the_same_for_all_and_looking_helps(comparison: dict[str, Any]) -> None:
    arms = comparison["arms"]
    assert all(entry["prior"] == arms["concat"]["prior"] for entry in arms.values())
    best = max(arms.values(), key=lambda entry: entry["accuracy"]["macro"])
    # Even in this little training; the full demo's numbers are far apart.
    for control in ("image_zeroed", "image_shuffled"):
        assert best["accuracy"]["macro"] > best[control]["macro"] + 0.02, control


def test_all_arms_stand_on_the_one_frozen_encoder(report: Path, comparison: dict[str, Any]) -> None:
    trained = load_file(report / "encoder_pretrain" / "model" / "model.safetensors")
    shared = {name: tensor for name, tensor in trained.items() if not name.startswith("encoder.decoder.")}
    assert len(shared) < len(trained), "the encoder was trained with its decoder"
    expected = comparison["encoder"]["hash"]
    assert RunFolder(report / "encoder_pretrain").info["encoder_hash"] == expected
    for arm in ARMS:
        assert comparison["arms"][arm]["encoder_hash"] == expected
        for stage in STAGES:
            assert RunFolder(report / arm / stage).info["encoder_hash"] == expected
            saved = load_file(report / arm / stage / "model" / "model.safetensors")
            encoder = {name: tensor for name, tensor in saved.items() if name.startswith("encoder.")}
            assert encoder.keys() == shared.keys()
            changed = [name for name in shared if not torch.equal(encoder[name], shared[name])]
            assert not changed, f"{arm}/{stage}: {changed}"


def test_lineage_is_in_the_run_folders(report: Path) -> None:
    encoder = RunFolder(report / "encoder_pretrain")
    assert encoder.info["init_from"] == []
    for arm in ARMS:
        pretrain, finetune = (RunFolder(report / arm / stage) for stage in STAGES)
        (start,) = pretrain.info["init_from"]
        assert Path(start["run"]).name == "encoder_pretrain"
        assert start["run_id"] == encoder.info["mlflow_run_id"]
        assert start["components"] == ["encoder"]
        (start,) = finetune.info["init_from"]
        assert Path(start["run"]).parts[-2:] == (arm, "pretrain")
        assert start["run_id"] == pretrain.info["mlflow_run_id"]
        # A fusion without parameters, such as concat, leaves the norms around it to be found.
        assert sorted(start["components"]) == sorted(COMPONENTS)


def test_losses_fell_in_every_stage(report: Path) -> None:
    for path in (report / "encoder_pretrain", *(report / arm / stage for arm in ARMS for stage in STAGES)):
        run = RunFolder(path)
        steps, losses = zip(*run.curve("train/loss"), strict=True)
        assert steps[-1] == run.config["trainer"]["max_steps"] == run.info["steps"]
        assert losses[-1] < 0.8 * losses[0], f"{path}: {losses}"
        validation = [value for _, value in run.curve("validation/loss")]
        assert validation[-1] < validation[0], f"{path}: {validation}"
        assert run.finished


def test_the_shares_of_the_sources_are_followed_where_a_fusion_has_them(
    report: Path, comparison: dict[str, Any]
) -> None:
    sources = {"davit", "caption", "ocr", "grounding"}
    assert comparison["arms"]["concat"]["mass"] == {}
    for arm in ("attention", "gated"):
        mass = comparison["arms"][arm]["mass"]
        assert set(mass) == sources
        assert sum(mass.values()) == pytest.approx(1, abs=1e-4)
        run = RunFolder(report / arm / "finetune")
        assert all(run.curve(f"mass/{source}")[-1][1] == mass[source] for source in sources)


def test_no_share_lies_outside_of_its_picture(report: Path) -> None:
    curves = {arm: RunFolder(report / arm / "finetune").source_weights() for arm in ("attention", "gated")}
    for panel in source_weight_figure(curves).axes:
        low, high = panel.get_ylim()
        shown = [float(value) for line in panel.lines for value in line.get_ydata()]
        assert low <= min(shown)
        assert max(shown) <= high


def test_the_report_says_what_one_seed_is_worth(report: Path, comparison: dict[str, Any]) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "One seed ranks nothing" in text
    assert "words" in text.split("## What is closed about this set")[1]
    for arm in ARMS:
        assert f"{comparison['arms'][arm]['accuracy']['macro']:.3f}" in text
        assert f"{comparison['arms'][arm]['parameters']:,}" in text
    for name in FIGURES:
        assert f"({name})" in text
        assert (report / name).read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_the_same_tables(quick_demo: Path, comparison: dict[str, Any]) -> None:
    printed = (quick_demo / "output.txt").read_text(encoding="utf-8")
    for kind in KINDS:
        assert kind in printed
    for entry in comparison["arms"].values():
        assert f"{entry['accuracy']['macro']:.3f}" in printed
        assert f"{entry['parameters']:,}" in printed
    assert "runs/demo-quick/report.md" in printed


def test_the_report_is_on_the_parent_run(mlflow_client: MlflowClient, parent: MlflowRun) -> None:
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["fvl.lineage"] == "frozen_encoder"
    kept = {file.path for file in mlflow_client.list_artifacts(parent.info.run_id)}
    assert {"report.md", "comparison.json", "config.yaml", "source_mass.png", *FIGURES} <= kept
    assert "mlflow.parentRunId" not in parent.data.tags


def test_every_run_is_a_child_with_its_lineage(
    mlflow_client: MlflowClient, parent: MlflowRun, report: Path, comparison: dict[str, Any]
) -> None:
    for arm in ARMS:
        previous = RunFolder(report / "encoder_pretrain").info["mlflow_run_id"]
        for stage in STAGES:
            info = RunFolder(report / arm / stage).info
            child = mlflow_client.get_run(info["mlflow_run_id"])
            tags, params = child.data.tags, child.data.params
            assert child.info.status == "FINISHED"
            assert tags["mlflow.parentRunId"] == parent.info.run_id
            assert tags["fvl.init_from"] == previous
            assert tags["fvl.encoder_hash"] == comparison["encoder"]["hash"]
            assert tags["fvl.config_hash"] == info["config_hash"]
            assert tags["fvl.stage"] == params["stage"] == stage
            assert params["fusion"] == arm
            assert params["trainable_parameters"] == str(info["trainable"])
            assert "config.yaml" in {file.path for file in mlflow_client.list_artifacts(child.info.run_id)}
            previous = child.info.run_id


def test_curves_are_in_mlflow_without_a_point_twice(mlflow_client: MlflowClient, report: Path) -> None:
    run = RunFolder(report / "gated" / "finetune")
    for name in ("train/loss", "train/gradient_norm", "learning_rate/fusion", "validation/loss", "mass/ocr"):
        points = mlflow_client.get_metric_history(run.info["mlflow_run_id"], name)
        assert sorted((point.step, point.value) for point in points) == run.curve(name), name


def test_the_answers_are_a_table_that_gives_the_scores(
    mlflow_client: MlflowClient, report: Path, comparison: dict[str, Any], tmp_path: Path
) -> None:
    for arm in ARMS:
        run_id = RunFolder(report / arm / "finetune").info["mlflow_run_id"]
        table = json.loads(Path(mlflow_client.download_artifacts(run_id, "answers.json", str(tmp_path))).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        asked = Counter(row["kind"] for row in rows)
        right = Counter(row["kind"] for row in rows if normalised(row["answer"]) == normalised(row["truth"]))
        by_kind = {kind: right[kind] / asked[kind] for kind in asked}
        score = comparison["arms"][arm]["accuracy"]
        assert by_kind == pytest.approx(score["by_kind"])
        assert all(row["question"] for row in rows)
        metrics = mlflow_client.get_run(run_id).data.metrics
        assert metrics["accuracy/macro"] == pytest.approx(score["macro"])
        assert metrics["image_zeroed/macro"] == pytest.approx(comparison["arms"][arm]["image_zeroed"]["macro"])


def test_a_second_demo_trains_nothing(
    quick_demo: Path, report: Path, comparison: dict[str, Any], fvl_here: Run
) -> None:
    def trained() -> dict[Path, int]:
        files = [*report.rglob("run.json"), *report.rglob("metrics.jsonl"), *report.rglob("*.safetensors")]
        return {path: path.stat().st_mtime_ns for path in files if path.name != "run.json"} | {
            path: 0 for path in files if path.name == "run.json"
        }

    before = trained()
    done = fvl_here(quick_demo, "demo", "--quick")
    assert done.returncode == 0, done.stderr
    assert trained() == before
    again = json.loads((report / "comparison.json").read_text(encoding="utf-8"))
    for arm, entry in comparison["arms"].items():
        assert {name: again["arms"][arm][name] for name in (*SCORES, "runs", "seconds")} == {
            name: entry[name] for name in (*SCORES, "runs", "seconds")
        }
