"""`fvl train` with two devices: two processes, one run; it goes on on two ranks to the bit, and on one rank as well."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.tracking.metrics_log import read_metrics
from fvl_lightning.training.checkpointing.last_and_previous import read_checkpoint
from tests.conftest import TINY_DATA, Run, furnish
from tests.integration.runs import UNTRACKED, assert_same_run, start, wait_for

STEPS = (
    "trainer.max_steps=6", "trainer.log_every=1", "trainer.checkpoint_every=2", "trainer.validate_every=3",
    "optimizer.warmup_steps=2", "trainer.accelerator=cpu", "trainer.threads=1",
)  # fmt: skip
FINETUNE = (
    "experiments/demo/finetune.yaml", "fusion=gated", "data.packing=best_fit", "data.sequence_length=160", *TINY_DATA,
    *STEPS,
)  # fmt: skip
DROPOUT = "language_model.model.attention_dropout=0.1"
FSDP = ("trainer.strategy=fsdp", "trainer.devices=2", "trainer.batch_size=4")
DDP = ("trainer.strategy=ddp", "trainer.devices=2", "trainer.batch_size=4")
ONE = ("trainer.batch_size=8",)
LORA = ("trainable.language_model=lora", "lora.rank=4")


def folder_of(parent: Path, name: str, data: Path) -> Path:
    """A working folder of its own."""
    (parent / name).mkdir()
    return furnish(parent / name, data)


def stopped_before_the_end(run: RunFolder, folder: Path) -> RunFolder:
    """A copy of a run in a folder of its own, as if it had been killed after the checkpoint before the last."""
    output = folder / "runs"
    copy = RunFolder(output / run.path.name)
    shutil.copytree(run.path, copy.path)
    shutil.rmtree(copy.model)
    if copy.last_checkpoint.is_dir():
        shutil.rmtree(copy.last_checkpoint)
    (copy.checkpoints / "previous.ckpt").rename(copy.last_checkpoint)
    assert read_checkpoint(copy.last_checkpoint)["global_step"] == 4
    copy.record(status="running")
    return copy


def trained(fvl: Run, folder: Path, *words: str) -> RunFolder:
    """`fvl train`, to its end."""
    done = fvl(folder, "train", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: ") == 1, "the first rank speaks for all"
    return RunFolder(folder / "runs" / "run")


@pytest.mark.slow
def test_two_processes_make_one_run_that_one_process_finishes(
    tmp_path: Path, tiny_data: Path, empty_store: Path, fvl: Run, fvl_here: Run
) -> None:
    folder, alone = (folder_of(tmp_path, name, tiny_data) for name in ("two", "one"))
    shutil.copy(empty_store, folder / "mlflow.db")
    two = trained(fvl, folder, *FINETUNE, *FSDP, "name=run")
    assert two.info["status"] == "finished"
    assert two.info["mlflow_run_id"]
    assert [entry["step"] for entry in read_metrics(two.metrics) if "train/loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert two.last_checkpoint.is_dir(), "each rank writes its part"
    done = fvl_here(folder, "export", "runs/run", "out", "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    put_together, gathered = (load_file(path / "model.safetensors") for path in (folder / "out", two.model))
    assert put_together.keys() == gathered.keys()
    assert all(torch.equal(put_together[name], gathered[name]) for name in gathered)
    stopped_before_the_end(two, alone)
    again = fvl_here(alone, "train", *FINETUNE, *ONE, "name=run", UNTRACKED, "optimizer.learning_rate=1", "--resume")
    assert "optimizer.learning_rate" in again.stderr, "only the devices may be others"
    one = trained(fvl_here, alone, *FINETUNE, *ONE, "name=run", UNTRACKED, "--resume")
    for name in ("train/loss", "validation/loss"):
        assert dict(one.curve(name)) == pytest.approx(dict(two.curve(name)), rel=1e-4)
    assert one.curve("data/step_keys") == two.curve("data/step_keys")
    weights, others = (load_file(each.model / "model.safetensors") for each in (one, two))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("how", [FSDP, DDP, (*FSDP, *LORA)], ids=["fsdp", "ddp", "lora"])
def test_a_run_on_two_ranks_goes_on_to_the_bit_after_sigterm(
    how: tuple[str, ...], tmp_path: Path, tiny_data: Path, fvl: Run
) -> None:
    """With dropout, of which each rank has numbers of its own."""
    straight, stopped = (folder_of(tmp_path, name, tiny_data) for name in ("straight", "stopped"))
    words = (*FINETUNE, *how, DROPOUT, UNTRACKED, "name=run")
    whole = trained(fvl, straight, *words)
    process = start(stopped, "train", *words)
    run = RunFolder(stopped / "runs" / "run")
    wait_for(lambda: len(list(read_metrics(run.metrics))) > 1, process, 300)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said
    assert said.count("stopped by a signal") == 1
    assert not run.finished
    trained(fvl, stopped, *words, "--resume-or-start")
    if "lora" in how[-1]:
        weights, others = (load_file(each.model / "adapter_model.safetensors") for each in (run, whole))
        assert weights.keys() == others.keys()
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    else:
        assert_same_run(run, whole)


def test_what_cannot_be_started_is_one_sentence(tmp_path: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    furnish(tmp_path, tmp_path)

    def said(*words: str) -> str:
        done = fvl_here(tmp_path, "train", "experiments/demo/finetune.yaml", *words)
        assert done.returncode == 2
        return " ".join(done.stderr.split()).replace(" on the command line", "")

    assert "trainer.strategy: single uses one device, take ddp or fsdp for 4" in said("trainer.devices=4")
    assert "trainer.devices must be at least 1" in said("trainer.devices=0")
    assert "did you mean 'encoder'?" in said("trainer.checkpoint_activations=[encodr]")
    assert "trainer.compile: unknown component with blocks" in said("trainer.compile=[fusion]")
    assert "trainer.checkpoint: ddp splits nothing" in said("trainer.checkpoint=sharded", "trainer.strategy=ddp")
    assert "trainer.cpu_offload: single splits nothing" in said("trainer.cpu_offload=true")
    offload = ("trainer.strategy=fsdp", "trainer.cpu_offload=true")
    assert "trainer.cpu_offload: without a GPU" in said(*offload, "trainer.accelerator=cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "there is no no-such-compiler; take []" in said("trainer.compile=[encoder]")
    assert "for 2 x 2 devices" in said("trainer.strategy=ddp", "trainer.devices=2", "trainer.nodes=2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "2 processes were started" in said()
