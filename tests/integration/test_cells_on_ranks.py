"""Cells of two ranks: they give what cells of one give, and a killed one is resumed to the same bits."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.checks.before_start import plan_comparison
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.core.config.loading import as_plain, load_config
from fvl_lightning.launchers.resources import ResourcesConfig
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.metrics_log import read_metrics
from tests.conftest import Fork, Run
from tests.integration.runs import assert_same_run, start, wait_for
from tests.integration.test_comparison import COMPARISON, lasting, report_of, workplace

DOUBLE = Path(__file__).with_name("cell_in_double.py")
ARMS = {arm: COMPARISON["arms"][arm] for arm in ("concat", "gated")}
SET = [*COMPARISON["set"], "trainer.accelerator=cpu", "trainer.checkpoint_every=2"]
TWO = "resources={devices: 2}"
MODEL = "model.safetensors"


def place(folder: Path, data: Path, store: Path, strategy: str, **changes: Any) -> Path:
    """A working folder with the comparison, whose arms are trained with a strategy."""
    words = [*SET, f"trainer.strategy={strategy}"]
    folder.mkdir()
    return workplace(folder, data, store, arms=ARMS, seeds=[0], set=words, **changes)


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """{arm: result.json}."""
    files = {arm: folder / "runs" / "tiny" / arm / "result.json" for arm in ARMS}
    return {arm: json.loads(file.read_text(encoding="utf-8")) for arm, file in files.items()}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, empty_store: Path, fvl: Run
) -> dict[str, Path]:
    """The comparison on one device, and on two under each strategy."""
    base, folders = tmp_path_factory.mktemp("ranks"), {}
    for strategy, words in {"single": (), "ddp": (TWO,), "fsdp": (TWO,)}.items():
        folders[strategy] = place(base / strategy, tiny_data, empty_store, strategy)
        done = fvl(folders[strategy], "compare", "tiny.yaml", *words, timeout=1800)
        assert done.returncode == 0, done.stderr
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_a_cell_give_the_report_of_one(finished: dict[str, Path], strategy: str) -> None:
    one, two = results(finished["single"]), results(finished[strategy])
    for arm, result in two.items():
        assert result["cell"] == one[arm]["cell"], "what is compared knows nothing of devices"
        for part in ("answers", "accuracy", "image_zeroed", "unseen", "initial", "training_flops", "inference_flops"):
            assert json.dumps(result[part]) == json.dumps(one[arm][part]), part
        run = RunFolder(finished[strategy] / result["runs"]["finetune"])
        assert (run.config["trainer"]["devices"], run.config["trainer"]["batch_size"]) == (2, 4)
        assert run.config["trainer"]["strategy"] == strategy
        other = RunFolder(finished["single"] / one[arm]["runs"]["finetune"])
        assert run.curve("data/step_keys") == other.curve("data/step_keys")
        assert dict(run.curve("train/loss")) == pytest.approx(dict(other.curve("train/loss")), rel=1e-3)
    statistics = [report_of(finished[name])["statistics"] for name in ("single", strategy)]
    assert json.dumps(lasting(statistics[0])) == json.dumps(lasting(statistics[1]))


class Killed:
    """A rank of a cell, found among the processes of this machine."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder.resolve(), rank

    def processes(self) -> Iterator[int]:
        """Those that the folder's comparison has started, of any rank where `rank` is -1."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
                if (entry / "cwd").resolve() != self.folder or b"comparison.worker" not in command:
                    continue
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if self.rank == -1 or f"RANK={self.rank}".encode() in environment:
                yield int(entry.name)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["a rank", "the comparison"])
def test_a_killed_cell_of_two_ranks_is_resumed_to_the_same_bits(
    victim: str, finished: dict[str, Path], tmp_path: Path, tiny_data: Path, empty_store: Path, fvl: Run
) -> None:
    work = place(tmp_path / "work", tiny_data, empty_store, "fsdp", tracking={"enabled": False})
    process = start(work, "compare", "tiny.yaml", TWO)
    run = RunFolder(work / "runs" / "tiny" / "concat" / "finetune")
    wait_for(lambda: run.metrics.is_file() and len(list(read_metrics(run.metrics))) > 3, process, 900)
    if victim == "a rank":
        for number in Killed(work, 1).processes():
            os.kill(number, signal.SIGKILL)
        _, said = process.communicate(timeout=900)
        assert process.returncode == 2, said
        assert "not trained yet: concat with seed 0" in said
    else:
        process.kill()
        process.communicate()
    assert not run.finished
    everyone = Killed(work, -1)
    wait_for_none(everyone)
    done = fvl(work, "compare", "tiny.yaml", TWO, timeout=1800)
    assert done.returncode == 0, done.stderr
    for arm in ARMS:
        folders = [folder / "runs" / "tiny" / arm / "finetune" for folder in (finished["fsdp"], work)]
        straight, resumed = map(RunFolder, folders)
        assert_same_run(straight, resumed)
        assert not (resumed.path.parent / "finetune-2").exists(), "it was resumed"


def wait_for_none(ranks: Killed) -> None:
    """No process is left that trains for nobody."""
    end = time.monotonic() + 60
    while list(ranks.processes()):
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_in_float64_two_ranks_are_one_to_nine_digits(
    tmp_path: Path, tiny_data: Path, empty_store: Path, fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = place(tmp_path / "work", tiny_data, empty_store, "single", encoder_stage="")
    monkeypatch.chdir(work)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    losses = {}
    for strategy, devices in {"single": 1, "ddp": 2, "fsdp": 2}.items():
        changes = ["tracking.enabled=false", "trainer.max_steps=8", "trainer.evaluate=null"]
        changes.append(f"trainer.strategy={strategy}")
        words = [f"output={strategy}", f"set=[{', '.join([*SET, *changes])}]"]
        planned = plan_comparison(load_config(ComparisonConfig, Path("tiny.yaml"), words), Path("tiny.yaml"))
        plan, resources = planned.plans[0], ResourcesConfig(devices=devices)
        spec = CellSpec(stages=[as_plain(stage) for stage in plan.arms["gated"]], resources=resources)
        one = Cell("gated", 0, plan.folders["gated"], spec)
        one.prepare()
        codes = fork(work, f"double-{strategy}", *[(str(DOUBLE), str(one.folder / "cell.json"))] * devices)
        said = (work / f"double-{strategy}" / "rank0.txt").read_text(encoding="utf-8")
        assert codes == [0] * devices, said
        (path,) = one.result_runs()
        weights[strategy] = load_file(RunFolder(Path(path)).model / MODEL)
        losses[strategy] = dict(RunFolder(Path(path)).curve("train/loss"))
    assert torch.float64 in {tensor.dtype for tensor in weights["single"].values()}
    assert len(losses["single"]) == 4
    for strategy in ("ddp", "fsdp"):
        assert losses[strategy] == pytest.approx(losses["single"], rel=1e-9)
        for name, tensor in weights[strategy].items():
            torch.testing.assert_close(tensor, weights["single"][name], rtol=1e-9, atol=1e-9, msg=name)
