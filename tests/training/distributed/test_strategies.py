"""The update is the same with one process, accumulation, DDP and FSDP, for the same samples."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.language_models.causal import CausalLanguageModel
from tests.conftest import Fork
from tests.modeling.architectures import FAMILIES
from tests.stages.fitting import batches_of, build_stage, experiment_of, fit
from tests.training.distributed.split_training import (
    CASES,
    EXACT,
    FUSIONS,
    PROJECTORS,
    ROUNDED,
    Recorder,
    text_behind,
    train,
)

PROGRAM = Path(__file__).with_name("split_training.py")
IN_DOUBLE, IN_SINGLE = 1e-9, 1e-4
"""Largest relative difference in float64, and of the losses in float32."""
IN_BFLOAT16 = 2e-3
"""The same for losses with parameters that are gathered in bfloat16, against float32 in one process."""


def compare(names: list[str], steps: int, folder: Path, fork: Fork, ranks: int = 2) -> None:
    """Every split of these cases against one process."""
    (folder / "here").mkdir()
    codes = fork(folder, "out", *[(str(PROGRAM), "out", str(steps), *names)] * ranks)
    assert codes == [0] * ranks, (folder / "out" / "rank0.txt").read_text(encoding="utf-8")
    for name in names:
        case = CASES[name]
        found = {split: torch.load(folder / "out" / f"{name}.{split}.pt") for split in case.splits}
        found["halves"] = train(case, "halves", steps, folder / "here")
        # bfloat16 rounds a batch and its halves in unlike ways.
        wanted = found["halves"] if name == "bfloat16" else train(case, "whole", steps, folder / "here")
        assert wanted is not None
        assert len(wanted["losses"]) == steps
        assert max(wanted["norms"]) > 0.1, "nothing was clipped"
        for split, other in found.items():
            assert_same(wanted, other, case.double, f"{name}, {split}")
            assert other["share"] == pytest.approx(1 if split in ("ddp", "halves") else 0.5, abs=0.1)


def assert_same(wanted: dict[str, Any], found: dict[str, Any], double: bool, told: str) -> None:
    """Losses, norms, validation and, in float64, weights."""
    tolerance = IN_DOUBLE if double else IN_SINGLE
    for name in ("losses", "norms", "validation"):
        # The norm and the validation loss are kept in float32; a norm in bfloat16 has three digits.
        relative = tolerance if name == "losses" else IN_SINGLE if double or name != "norms" else 1e-2
        assert found[name] == pytest.approx(wanted[name], rel=relative), f"{told}: {name}"
    assert found["weights"].keys() == wanted["weights"].keys(), told
    if double:
        for name, tensor in wanted["weights"].items():
            torch.testing.assert_close(
                found["weights"][name], tensor, rtol=tolerance, atol=tolerance, msg=f"{told}: {name}"
            )


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(tmp_path: Path, fork: Fork) -> None:
    compare(["pretrain_muon", "encoder_pretrain_adamw", "probe_of_all"], 3, tmp_path, fork)


@pytest.mark.slow
def test_twenty_steps_of_every_stage(tmp_path: Path, fork: Fork) -> None:
    compare([*EXACT, "lora"], 20, tmp_path, fork)


@pytest.mark.slow
def test_what_spares_memory(tmp_path: Path, fork: Fork) -> None:
    compare(["kept", "recomputed", "recomputed_encoder"], 4, tmp_path, fork)


@pytest.mark.slow
def test_every_kind_of_projector_is_sharded(tmp_path: Path, fork: Fork) -> None:
    compare([*PROJECTORS], 3, tmp_path, fork)


@pytest.mark.slow
def test_inner_layers_and_routed_sources_are_sharded(tmp_path: Path, fork: Fork) -> None:
    compare([*FUSIONS], 3, tmp_path, fork)


@pytest.mark.slow
def test_a_copy_of_the_model_on_each_machine(tmp_path: Path, fork: Fork) -> None:
    cases = ["two_machines", "two_machines_accumulated"]
    compare(cases, 5, tmp_path, fork, ranks=4)
    sums = {torch.load(tmp_path / "out" / f"{name}.hsdp.pt")["replica_sums"] for name in cases}
    assert len(sums) == 1, "once a step, however many batches"
    assert min(sums) > 0


@pytest.mark.slow
def test_in_float32_and_in_bfloat16_the_losses_are_the_same(tmp_path: Path, fork: Fork) -> None:
    compare([*ROUNDED, "bfloat16"], 20, tmp_path, fork)


@pytest.mark.slow
def test_parameters_are_gathered_in_bfloat16_and_all_else_is_float32(tmp_path: Path, fork: Fork) -> None:
    case = CASES["gathered_in_bfloat16"]
    (tmp_path / "here").mkdir()
    assert fork(tmp_path, "out", *[(str(PROGRAM), "out", "20", "gathered_in_bfloat16")] * 2) == [0, 0]
    found = torch.load(tmp_path / "out" / "gathered_in_bfloat16.fsdp.pt")
    assert found["gathered"] == {torch.bfloat16}
    assert found["summed"] == {torch.float32}
    assert found["held"] == {torch.float32}, "masters, their gradients and AdamW's moments"
    wanted = train(case, "whole", 20, tmp_path / "here")
    assert wanted is not None
    assert found["losses"] == pytest.approx(wanted["losses"], rel=IN_BFLOAT16)
    assert found["validation"] == pytest.approx(wanted["validation"], rel=IN_BFLOAT16)
    assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-2)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "family", [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_computes_on_weights_in_bfloat16(family: str, tmp_path: Path) -> None:
    """Two steps on one rank, the second one with rows without an image; what is kept is float32."""
    trainer = {"strategy": "fsdp", "precision": "bf16-mixed", "max_steps": 2}
    config = experiment_of("finetune", tmp_path, trainer=trainer)
    model = CausalLanguageModel.Config(model=FAMILIES[family], tokenizer=str(tmp_path / "tokenizer"))
    slot = choose("language_model", {"name": "causal", **dataclasses.asdict(model)})
    stage = config.stage.component.build(dataclasses.replace(config, language_model=slot))
    assert stage.frozen_hash  # while the weights are whole
    types: set[torch.dtype] = set()

    def see(module: nn.Module, *_: Any) -> None:
        types.update(parameter.dtype for parameter in module.parameters(recurse=False))

    for part in (stage.model.encoder, stage.model.fusion, stage.model.projector, stage.model.language_model):
        for module in part.modules():
            module.register_forward_hook(see)
    batches = batches_of("finetune", 2)
    recorder = Recorder()
    fit(stage, [batches[0], text_behind(batches[1])], tmp_path, [recorder], validation=batches[:1])
    assert types == {torch.bfloat16}
    assert len(recorder.losses) == 2
    assert all(map(math.isfinite, recorder.losses))
    assert {parameter.dtype for parameter in stage.parameters()} == {torch.float32}


def test_what_is_held_in_four_bits_is_not_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvl_lightning.stages.base.check_lora", lambda *_: None)  # which asks for a CUDA device first
    how: dict[str, Any] = {"trainable": {"language_model": "lora"}, "lora": {"quantization": "4bit"}}
    build_stage("finetune", tmp_path, "meta", trainer={"strategy": "ddp", "devices": 2}, **how)
    with pytest.raises(ConfigError, match="cannot be sharded, take"):
        build_stage("finetune", tmp_path, "meta", trainer={"strategy": "fsdp", "devices": 2}, **how)
