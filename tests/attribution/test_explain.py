"""`fvl explain` on a tiny run: its report, the same numbers from Python, MLflow, and mistakes in one sentence."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning import explain
from fvl_lightning.attribution.makers import RUN_SECTIONS
from fvl_lightning.attribution.report import Explanation
from fvl_lightning.attribution.tracking import track_run
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.reporting.section import Section
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.store import store_client
from tests.conftest import TINY, Run

SOURCES = {"davit", "caption", "ocr", "grounding"}
QUESTIONS = 12


def test_a_run_is_explained_and_its_images_are_encoded_once(
    asked: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    original = Encoder.__call__

    def counted(self: Any, pixels: Any) -> Any:
        encoded.append(len(pixels))
        return original(self, pixels)

    monkeypatch.setattr(Encoder, "__call__", counted)
    done = fvl_here(asked, "explain", "runs/tiny", "--limit", str(QUESTIONS), "--output", "report")
    assert done.returncode == 0, done.stderr
    folder = asked / "report"
    numbers = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
    assert list(numbers["sections"]) == [*RUN_SECTIONS]
    images = re.search(rf"{QUESTIONS} questions of \d+ about (\d+) images", numbers["about"]["asked"])
    assert images is not None
    validation = 16  # the images of the rows whose gradients are taken
    assert sum(encoded) == int(images[1]) + validation, "an image went through the encoder more than once"
    text = (folder / "report.md").read_text(encoding="utf-8")
    for name, section in numbers["sections"].items():
        assert section["finding"] in done.stdout, name
        assert section["finding"] in text
        assert set(section["values"].get("per_source", SOURCES)) <= SOURCES
    shown = re.findall(r"\]\((figures/\w+\.png)\)", text)
    assert shown == [figure for section in numbers["sections"].values() for figure in section["figures"]]
    assert all((folder / figure).stat().st_size > 1000 for figure in shown)
    assert "report: report/report.md" in done.stdout


def test_python_gets_the_same_numbers(asked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(asked)
    found = explain("runs/tiny", only=["knock_out"], limit=QUESTIONS)
    assert found.folder == Path("runs/tiny/explain")
    on_disk = json.loads((asked / found.folder / "explain.json").read_text(encoding="utf-8"))
    assert on_disk["sections"]["knock_out"]["values"]["per_source"] == pytest.approx(
        found.values["knock_out"]["per_source"]
    )
    assert set(found.numbers) == {f"knock_out/{source}" for source in SOURCES}
    with pytest.raises(ConfigError, match="subsets: unknown value 'each', allowed: all, single"):
        explain("runs/tiny", subsets="each")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("runs/tyni", "runs/tyni is no run folder and no run id; did you mean runs/tiny?"),
        ("model", "model is a model without data; name the run that it comes from, or a comparison"),
        ("runs/tiny --split tests", "there are the splits test, .*did you mean 'test'?"),
        ("runs/tiny runs/tiny", "RUN_OR_COMPARISON: one is named twice in runs/tiny, runs/tiny"),
        ("runs/tiny --output experiments", "--output: experiments has other files and no report of `fvl explain`"),
        ("runs/unfinished", "runs/unfinished is running, it has no model yet"),
        ("runs/encoder", "runs/encoder is an encoder without a language model; name a run of a later stage"),
    ],
)
def test_a_mistake_is_one_sentence(asked: Path, fvl_here: Run, words: str, sentence: str) -> None:
    for name, changed in (("unfinished", {"status": "running"}), ("encoder", {"stage": "encoder_pretrain"})):
        if not (asked / "runs" / name).exists():
            shutil.copytree(asked / "runs" / "tiny", asked / "runs" / name, symlinks=True)
            RunFolder(asked / "runs" / name).record(**changed)
    done = fvl_here(asked, "explain", *words.split())
    assert done.returncode == 2
    assert re.search(sentence.replace("?", r"\?").replace("(", r"\("), done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_tracked_run_gets_the_report_and_the_numbers(workspace: Path, empty_store: Path, fvl_here: Run) -> None:
    shutil.copy(empty_store, workspace / "mlflow.db")
    words = ("train", "experiments/demo/finetune.yaml", *TINY, "tracking.enabled=true", "name=tracked")
    assert fvl_here(workspace, *words).returncode == 0
    run = RunFolder(workspace / "runs" / "tracked")
    folder = workspace / "report"
    folder.mkdir()
    for earlier, value in (("old", 0.5), ("davit", 0.25)):
        (folder / "report.md").write_text(earlier)
        section = Section("gates", "Gates", ["."], values={"per_source": {earlier: value}})
        track_run(run, Explanation("runs/tracked", {"gates": section}, folder))
    client = store_client(run.read_tracking().uri)
    run_id = str(run.info["mlflow_run_id"])
    assert client.get_run(run_id).data.metrics["explain/gates/davit"] == 0.25
    assert "explain/gates/old" not in run.read_tracking().results
    assert [file.path for file in client.list_artifacts(run_id, "explain")] == ["explain/report.md"]
