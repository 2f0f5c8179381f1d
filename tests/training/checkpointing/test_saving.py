"""What a training saves while it runs: in parts, in the background, and the best; on one rank, in this process."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.strategies import Strategy
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy

from fvl_lightning.core.errors import DataError
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.checkpointing.last_and_previous import (
    WEIGHT_KEYS,
    best_checkpoint,
    is_whole,
    read_checkpoint,
)
from fvl_lightning.training.checkpointing.rng_state import random_states, restore_random_states
from fvl_lightning.training.checkpointing.sharded import made_whole
from tests.stages.fitting import batches_of, build_stage, fit
from tests.tiny_models import snapshot

STEPS = 6


def stage_of(folder: Path, **trainer: Any) -> Stage:
    """A finetuning with dropout, which draws from the generator that a checkpoint keeps."""
    lora = {"trainable": {"language_model": "lora"}, "lora": {"rank": 2, "dropout": 0.3}}
    stage = build_stage(
        "finetune", folder, optimizer={"name": "muon", "learning_rate": 0.01},
        trainer={"max_steps": STEPS, "checkpoint_every": 2, **trainer}, **lora,
    )  # fmt: skip
    assert stage.frozen_hash  # while the weights are whole
    stage.adapt(folder)
    torch.manual_seed(0)
    return stage


def weights_of(stage: Stage) -> dict[str, torch.Tensor]:
    """What came out, whole."""
    stage.gather()
    return snapshot(stage.model)


def before_last(folder: Path) -> Path:
    """The checkpoint of step 4, from which the last two steps are made again."""
    path = folder / "previous.ckpt"
    assert read_checkpoint(path)["global_step"] == STEPS - 2
    return path


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_parts_go_on_under_any_strategy(background: bool, tmp_path: Path) -> None:
    batches = batches_of("finetune", STEPS)
    stage = stage_of(tmp_path, strategy="fsdp", checkpoint_in_background=background)
    fit(stage, batches, tmp_path)
    wanted = weights_of(stage)
    assert (tmp_path / "last.ckpt").is_dir()
    assert is_whole(tmp_path / "last.ckpt")
    offloaded = {"strategy": "fsdp", "checkpoint": "whole", "cpu_offload": True}
    for place, how in enumerate(({"strategy": "fsdp"}, {}, offloaded)):
        folder = tmp_path / str(place)
        folder.mkdir()
        again = stage_of(folder, **how)
        fit(again, batches[STEPS - 2 :], folder, resume=before_last(tmp_path))
        assert again.position == stage.position
        assert (folder / "last.ckpt").is_dir() == (how == {"strategy": "fsdp"})
        policies = {
            type(module._get_fsdp_state()._fsdp_param_group.offload_policy)
            for module in again.model.modules()
            if isinstance(module, FSDPModule) and module._get_fsdp_state()._fsdp_param_group
        }
        assert policies == ({CPUOffloadPolicy if how == offloaded else OffloadPolicy} if how else set())
        found = weights_of(again)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    saved = [made_whole(read_checkpoint(tmp_path / name / "last.ckpt")) for name in ("0", "2")]
    assert saved[0].keys() == saved[1].keys()
    for name, tensor in saved[1]["state_dict"].items():
        torch.testing.assert_close(saved[0]["state_dict"][name], tensor)


def test_a_background_save_is_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However late it is written, and it is there at the end."""
    batches = batches_of("finetune", STEPS)
    (tmp_path / "plain").mkdir()
    fit(stage_of(tmp_path), batches, tmp_path / "plain")
    released: list[int] = []
    write = os.fsync

    def late(file: int) -> None:
        while not released:
            pass
        write(file)

    class Release(Callback):
        """Lets the disk go on a step after the save was due."""

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                released.append(5)

    monkeypatch.setattr(os, "fsync", late)
    stage = stage_of(tmp_path, checkpoint_in_background=True, checkpoint_every=4)
    fit(stage, batches, tmp_path, [Release()])
    for name in ("last.ckpt", "previous.ckpt"):
        found, wanted = (read_checkpoint(folder / name) for folder in (tmp_path, tmp_path / "plain"))
        assert found["global_step"] == wanted["global_step"]
        assert all(torch.equal(found["state_dict"][key], value) for key, value in wanted["state_dict"].items())
        states = (checkpoint["optimizer_states"][0]["state"] for checkpoint in (found, wanted))
        for ours, theirs in zip(*(state.values() for state in states), strict=True):
            assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_background_save_that_fails_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, calls = os.fsync, []

    def full_at_first(file: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file)

    monkeypatch.setattr(os, "fsync", full_at_first)
    with caplog.at_level(logging.WARNING):
        fit(stage_of(tmp_path, checkpoint_in_background=True), batches_of("finetune", STEPS), tmp_path)
    assert [message.split(":")[0] for message in caplog.messages if "not saved" in message] == ["step 2 was not saved"]
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == STEPS
    assert read_checkpoint(tmp_path / "previous.ckpt")["global_step"] == 4


def test_the_last_step_has_to_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    stage = stage_of(tmp_path, checkpoint_in_background=True, checkpoint_every=100)
    with pytest.raises(DataError, match=r"the last step was not saved: .*No space left"):
        fit(stage, batches_of("finetune", STEPS), tmp_path)


class Validations(Callback):
    """Gives the validations losses of its own, and notes the weights at each."""

    def __init__(self, losses: dict[int, float]) -> None:
        self.losses = losses
        self.weights: dict[int, dict[str, torch.Tensor]] = {}

    def on_validation_end(self, trainer: Any, stage: Any) -> None:
        """Comes before the checkpoints' own."""
        stage.last_validation_loss = self.losses[trainer.global_step]
        self.weights[trainer.global_step] = snapshot(stage.model)


@pytest.mark.parametrize("how", [{}, {"strategy": "fsdp"}, {"checkpoint_in_background": True}], ids=str)
def test_the_weights_of_the_lowest_validation_loss_are_kept(
    how: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if how.get("strategy"):
        request.getfixturevalue("alone")
    batches = batches_of("finetune", STEPS)
    losses = {1: 3.0, 2: 5.0, 3: 2.0, 4: 2.0, 5: float("nan"), 6: 4.0}
    notes = Validations(losses)
    stage = stage_of(tmp_path, keep_best=True, validate_every=1, **how)
    fit(stage, batches, tmp_path, [notes], validation=batches[:1])
    best = best_checkpoint(tmp_path)
    assert best == tmp_path / "best.ckpt"
    found = made_whole(read_checkpoint(best))
    assert (found["global_step"], found["validation_loss"]) == (3, 2.0)
    assert "optimizer_states" not in found
    if not how.get("strategy"):
        for name, tensor in found["state_dict"].items():
            assert torch.equal(tensor, notes.weights[3][name.removeprefix("model.")]), name
    again = stage_of(tmp_path, keep_best=True, validate_every=1, **how)
    changed = Validations({4: 2.5, 5: 2.5, 6: 1.0})
    fit(again, batches[STEPS - 2 :], tmp_path, [changed], before_last(tmp_path), batches[:1])
    found = read_checkpoint(tmp_path / "best.ckpt")
    assert (found["global_step"], found["validation_loss"]) == (6, 1.0), "2.5 is not lower than before the resume"
    assert sorted(path.name for path in tmp_path.glob("*.ckpt*")) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_nothing_is_kept_as_the_best_unless_asked(tmp_path: Path) -> None:
    batches = batches_of("finetune", 2)
    fit(stage_of(tmp_path, max_steps=2), batches, tmp_path, validation=batches)
    assert best_checkpoint(tmp_path) is None


def test_the_best_before_stands_in_for_one_that_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").write_bytes(b"cut")
    assert best_checkpoint(tmp_path) is None
    torch.save(dict.fromkeys(WEIGHT_KEYS, 1.0), tmp_path / "best.ckpt.before")
    assert best_checkpoint(tmp_path) == tmp_path / "best.ckpt.before"


def test_the_state_of_the_gpu_s_generator_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    device, given = torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([device.index], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append((int(state), device)))
    states = random_states(device)
    wanted = torch.rand(3)
    restore_random_states(states, device)
    assert torch.equal(torch.rand(3), wanted)
    restore_random_states(random_states(torch.device("cpu")), device)
    assert given == [(1, device)]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("strategy", "background"), [("single", True), ("ddp", False), ("fsdp", True)])
def test_the_end_leaves_nothing_of_the_optimizer_to_move(
    strategy: str, background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every strategy moves model and optimiser to main memory when it is torn down; the last checkpoint is whole."""
    held: list[int] = []
    teardown = Strategy.teardown

    def torn_down(self: Strategy) -> None:
        assert self.lightning_module is not None
        held.append(sum(len(optimizer.state) for optimizer in self.optimizers))
        held.append(sum(parameter.grad is not None for parameter in self.lightning_module.parameters()))
        teardown(self)

    monkeypatch.setattr(Strategy, "teardown", torn_down)
    settings = {"strategy": strategy, "max_steps": 2, "checkpoint_in_background": background}
    stage = build_stage("finetune", tmp_path, trainer=settings)
    assert stage.frozen_hash  # while the weights are whole
    trainer = fit(stage, batches_of("finetune", 2), tmp_path)
    assert held == ([] if strategy == "fsdp" else [0, 0]), "FSDP's shards stay on the device"
    assert [len(optimizer.state) for optimizer in trainer.optimizers] == [0]
    last = made_whole(read_checkpoint(tmp_path / "last.ckpt"))
    assert last["global_step"] == 2
    moments = last["optimizer_states"][0]["state"]
    assert len(moments) == sum(parameter.requires_grad for parameter in stage.parameters())
    assert all(float(moment["exp_avg_sq"].max()) > 0 for moment in moments.values())


def test_an_error_leaves_nothing_of_the_optimizer_to_move(tmp_path: Path) -> None:
    class Breaks(Callback):
        def on_train_batch_start(self, trainer: Any, stage: Any, batch: Any, index: int) -> None:
            self.optimizer = trainer.optimizers[0]
            if index == 1:
                assert self.optimizer.state
                raise RuntimeError("broken")

    breaks = Breaks()
    with pytest.raises(RuntimeError, match="broken"):
        fit(build_stage("finetune", tmp_path, trainer={"max_steps": 2}), batches_of("finetune", 2), tmp_path, [breaks])
    assert not breaks.optimizer.state
