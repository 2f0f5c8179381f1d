"""`fvl train` on a stream of shards: it stops, resumes from whole shards, and trains on two ranks."""

from pathlib import Path

import pytest

from datamodules.demo.data import DemoData
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.metrics_log import read_metrics
from fvl_lightning.training.checkpointing.last_and_previous import read_checkpoint
from tests.conftest import TINY_DATA, Run
from tests.integration.runs import UNTRACKED, StopAt

STREAM = (
    "experiments/demo/webdataset.yaml", "trainer.max_steps=12", "trainer.batch_size=8", "trainer.log_every=1",
    "trainer.validate_every=12", "optimizer.warmup_steps=2", "data.shuffle_buffer=4", UNTRACKED,
)  # fmt: skip


@pytest.fixture
def root(workspace: Path) -> str:
    """Override that names the small demo set of the working folder."""
    counts = {word.removeprefix("data.").split("=")[0]: int(word.split("=")[1]) for word in TINY_DATA}
    drawn = DemoData(DemoData.Config(root=str(workspace / "data" / "demo"), **counts))
    return f"data.root={drawn.folder.relative_to(workspace)}"


@pytest.mark.slow
def test_a_stopped_run_resumes_from_whole_shards(workspace: Path, root: str, fvl_here: Run, stop_at: StopAt) -> None:
    stop_at(9)
    stopped = fvl_here(workspace, "train", *STREAM, root)
    assert stopped.returncode == 130, stopped.stderr
    run = RunFolder(workspace / "runs" / "webdataset")
    # 9 batches of 8 of the one shard with 64 samples, which two readers visit in turn.
    assert read_checkpoint(run.last_checkpoint)["position"] == (0,)
    resumed = fvl_here(workspace, "train", *STREAM, root, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert run.finished
    rows = list(read_metrics(run.metrics))
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 13))
    assert any("validation/loss" in row for row in rows)
    refused = fvl_here(workspace, "shards", "order", *STREAM, root, "--step", "1")
    assert refused.returncode == 2
    assert "a stream has no order" in refused.stderr


@pytest.mark.slow
def test_two_ranks_train_on_a_stream(workspace: Path, root: str, fvl: Run) -> None:
    ranks = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.threads=1")
    done = fvl(workspace, "train", *STREAM, *ranks, root, "trainer.max_steps=20")
    assert done.returncode == 0, done.stderr
    run = RunFolder(workspace / "runs" / "webdataset")
    # Each of the four readers has had 10 batches of 8, and so has passed its first visit of the shard of 64.
    assert read_checkpoint(run.last_checkpoint)["position"] == (4,)
