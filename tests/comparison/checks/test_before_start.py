"""A comparison that cannot be finished is refused before a run folder, a store or a weight exists."""

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.shards import ShardsData
from datamodules.storage.writer import ShardWriter
from fvl_lightning.comparison.checks.before_start import plan_comparison
from fvl_lightning.comparison.checks.output import check_output
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments
from fvl_lightning.core.config.loading import as_plain, load_config
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.answers import scored_questions
from fvl_lightning.profiling.devices import Device
from tests.conftest import ROOT, TINY_DATA, Run, furnish

COMPARISON: dict[str, Any] = {
    "name": "mine",
    "stages": ["experiments/demo/finetune.yaml"],
    "arms": {"concat": {"set": ["fusion=concat"]}, "tilt": {"set": ["fusion=tilt"]}},
    "plugins": ["tilt.py"],
    "set": [*TINY_DATA, "trainer.batch_size=8", "trainer.max_steps=3"],
}
TILT = """
from dataclasses import dataclass

import torch

from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec, FusionOutput
from fvl_lightning.fusions.base import Fusion


@register("fusion", "tilt")
class TiltFusion(Fusion):
    @dataclass
    class Config:
        pass

    def __init__(self, config, sources):
        super().__init__(config, sources)
        first = next(iter(sources.values()))
        self.output = FeatureSpec(first.tokens, WIDTH, first.grid)

    def forward(self, sources):
        first = next(iter(sources.values()))
        BODY
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A working folder with a comparison whose second arm is a plugin."""
    folder = furnish(tmp_path_factory.mktemp("refused"), tiny_data)
    (folder / "mine.yaml").write_text(yaml.safe_dump(COMPARISON, sort_keys=False), encoding="utf-8")
    write_tilt(folder)
    return folder


def write_tilt(folder: Path, width: str = "first.dim", body: str = "return FusionOutput(first)") -> None:
    (folder / "tilt.py").write_text(TILT.replace("WIDTH", width).replace("BODY", body), encoding="utf-8")


def refused(work: Path, fvl_here: Run, *words: str, command: str = "compare") -> str:
    """What is said; neither runs nor a store are made."""
    done = fvl_here(work, command, "mine.yaml", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for made in ("runs", "mlflow.db", "mlruns"):
        assert not (work / made).exists(), made
    if command == "compare":
        assert len(done.stderr.splitlines()) == 1
    return done.stderr if command == "compare" else done.stdout


@pytest.mark.parametrize(
    ("devices", "needed"),
    [("trainer.devices=2", "devices: 2, nodes: 1"), ("trainer.nodes=3, trainer.devices=2", "devices: 2, nodes: 3")],
)
def test_more_devices_than_a_cell_has(work: Path, fvl_here: Run, devices: str, needed: str) -> None:
    said = refused(work, fvl_here, f"set=[trainer.strategy=ddp, {devices}]")
    assert f"write resources: {{{needed}}}, or leave trainer.devices and trainer.nodes out of the stage" in said


WRONG_FUSIONS = {
    "fusion tilt declares width 256 but returned [2, 16, 128]": ("256", "return FusionOutput(first)"),
    "fusion tilt declares 16 tokens but returned [2, 32, 128]": (
        "first.dim", "return FusionOutput(torch.cat([first, first], 1))",
    ),
    "fusion tilt must return a FusionOutput but returned a Tensor": ("first.dim", "return first"),
    "tilt.py:24: RuntimeError: mat1 and mat2 shapes cannot be multiplied": (
        "first.dim", "return FusionOutput(first @ torch.zeros(3, 3))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG_FUSIONS)
def test_a_fusion_that_computes_something_else(work: Path, fvl_here: Run, said: str) -> None:
    try:
        write_tilt(work, *WRONG_FUSIONS[said])
        found = refused(work, fvl_here)
        assert f"arm tilt: {said}" in found or said in found
        assert "arm concat" not in found
    finally:
        write_tilt(work)


def test_several_problems_are_one_sentence(work: Path, fvl_here: Run) -> None:
    try:
        write_tilt(work, "first.nothing")
        found = refused(work, fvl_here, "unseen_splits=[test_unheard]")
    finally:
        write_tilt(work)
    assert "AttributeError: 'FeatureSpec' object has no attribute 'nothing'" in found
    assert "no shard test_unheard-<number>.tar" in found


@pytest.fixture(scope="module")
def shards(work: Path) -> Path:
    """The demo's shards of the tiny set, without the test split."""
    (folder,) = [path for path in (work / "data" / "demo").iterdir() if path.name.startswith("easy")]
    shutil.copytree(folder, work / "shards", ignore=shutil.ignore_patterns("test*"))
    return work / "shards"


def on_shards(shards: Path) -> str:
    data = "{name: shards, root: shards, view: conversation}"
    tokenizers = "encoder.tokenizer=data/demo/tokenizer, language_model.tokenizer=data/demo/tokenizer"
    return f"set=['data={data}', {tokenizers}, trainer.max_steps=3]"


def test_no_test_split(work: Path, shards: Path, fvl_here: Run) -> None:
    said = refused(work, fvl_here, on_shards(shards))
    assert "data: no shard test-<number>.tar in shards: there are the splits train, validation" in said
    assert "a comparison scores every arm on questions with answers, one image each (docs/comparison.md)" in said


def talk(images: int = 1, answer: str = "red") -> list[dict[str, Any]]:
    question = [*[{"type": "image"}] * images, {"type": "text", "text": "which colour?"}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


COLOUR = {"kinds": ["colour"]}


@pytest.mark.parametrize(
    ("record", "images", "said"),
    [
        ({"messages": talk()}, 1, r"split test \(.*test-000000.tar ...\) has no questions to score: .* no `kinds`"),
        ({"messages": talk(answer=" "), **COLOUR}, 1, r"sample 'a' in .*: answers \(the answer to a question of kind"),
        ({"messages": talk(), "kinds": []}, 1, r"sample 'a' in .*: kinds \(1 answers, `kinds` is \[\]\)"),
        ({"messages": talk(0), **COLOUR}, 0, r"only samples with exactly one can be scored, it has 0"),
        ({"messages": talk(2), **COLOUR}, 2, r"only samples with exactly one can be scored, it has 2"),
    ],
)
def test_questions_that_cannot_be_scored(tmp_path: Path, record: dict[str, Any], images: int, said: str) -> None:
    with ShardWriter(tmp_path, "test") as writer:
        writer.write("a", record, [b"not decoded"] * images)
    data = ShardsData(ShardsData.Config(root=str(tmp_path)))
    with pytest.raises(DataError, match=said):
        scored_questions(data, "test")


def test_the_output_of_another_configuration(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    values = COMPARISON | {"arms": {name: {"set": [f"fusion={name}"]} for name in ("concat", "gated")}, "plugins": []}

    def check(**changes: Any) -> str:
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(values | changes), encoding="utf-8")
        config = load_config(ComparisonConfig, tmp_path / "other.yaml")
        return check_output(config, tmp_path / "mine", experiments(config, work / "mine.yaml", tmp_path / "mine"))

    assert check().endswith("nothing is finished yet")
    config = load_config(ComparisonConfig, tmp_path / "other.yaml")
    for arm, stages in experiments(config, work / "mine.yaml", tmp_path / "mine")[0].arms.items():
        (tmp_path / "mine" / arm).mkdir(parents=True)
        (tmp_path / "mine" / arm / "cell.json").write_text(json.dumps({"stages": [as_plain(s) for s in stages]}))
        (tmp_path / "mine" / arm / "result.json").write_text("{}")
    assert check().endswith("2 cells are finished")
    more = {"arms": {**values["arms"], "mean": {"set": ["fusion=mean"]}}}
    assert check(**more).endswith("2 cells are finished"), "an arm may be added"
    assert check(set=[*values["set"], "trainer.log_every=7"]).endswith("2 cells are finished"), "it changes nothing"
    with pytest.raises(DataError) as caught:
        check(set=[*TINY_DATA, "trainer.batch_size=8", "trainer.max_steps=5"])
    said = "in concat with seed 0, trainer.max_steps of stage finetune was 3 and is 5; give this comparison another"
    assert said in str(caught.value)
    (tmp_path / "mine" / "comparison.json").write_text(json.dumps({"arms": {"tilt": {}, "mixed": {}}}))
    with pytest.raises(DataError, match=r"another comparison \(its arms are tilt, mixed, not concat, gated\)"):
        check()


def test_a_disk_without_room(work: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**7, 10**7))
    said = refused(work, fvl_here)
    assert "checkpoints and models of 2 cells take about" in said
    assert "make room, name another `output`, or compare fewer arms or seeds" in said


def test_an_arm_that_is_too_large_for_its_device(
    work: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("CPU", 10**6, None, None, here=True)
    monkeypatch.setattr("fvl_lightning.comparison.checks.memory.device_here", lambda accelerator: small)
    said = refused(work, fvl_here)
    assert re.search(r"memory: a step of arm \w+, stage finetune, takes [\d.]+ MB for 8 rows of \d+ tokens, and", said)
    assert "and the free main memory is 1.0 MB; try " in said


def test_a_tracking_server_that_is_away_is_found_before_data_is_made(work: Path, fvl_here: Run) -> None:
    before = set((work / "data" / "demo").iterdir())
    said = refused(work, fvl_here, "set=[data.train_images=65, trainer.max_steps=3]", "tracking.uri=http://127.0.0.1:9")
    assert "tracking.uri: no MLflow server answers at http://127.0.0.1:9" in said
    assert set((work / "data" / "demo").iterdir()) == before


def test_doctor_checks_a_comparison(work: Path, fvl_here: Run) -> None:
    done = fvl_here(work, "doctor", "mine.yaml", "tracking.enabled=false")
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line.split("│")[1:4] for line in done.stdout.splitlines() if line.count("│") == 5]
    lines = [[cell.strip() for cell in row] for row in found]
    names = ("configuration", "data", "arms", "output", "memory", "disk", "tracking", "one batch", "one batch")
    assert [line[:2] for line in lines if line[0] != "check"] == [[name, "ok"] for name in names]
    assert "2 arms x 1 seed = 2 cells of 1 stage" in done.stdout
    assert "tilt, finetune: the model itself: loss" in done.stdout
    try:
        write_tilt(work, "256")
        said = refused(work, fvl_here, "tracking.enabled=false", command="doctor")
    finally:
        write_tilt(work)
    assert "arm tilt: fusion tilt declares width 256 but returned [2, 16, 128]" in said
    assert [word for word in ("skipped", "one batch") if word not in said] == []


@pytest.mark.parametrize(
    ("words", "lack"),
    [
        ((), None),
        (("axes={fusion: [concat, mean]}",), "2 arms need at least 5 seeds in common and have 3"),
        (("seeds=[0, 1]",), "3 arms need at least 3 seeds in common and have 2"),
        (("seeds=[0]",), None),
    ],
)
def test_too_few_seeds_are_known_before_the_start(words: tuple[str, ...], lack: str | None) -> None:
    """One seed alone is a choice: its report shows scores and tests nothing."""
    path = ROOT / "experiments" / "demo" / "quick" / "fusions.yaml"
    assert plan_comparison(load_config(ComparisonConfig, path, list(words)), path).lack_of_seeds == lack
