"""Packed rows and mixtures in a stage: the same update, metrics of each dataset, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from fvl_lightning.core.config.loading import Choice
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import IGNORE_INDEX, Batch
from fvl_lightning.language_models.causal import CausalLanguageModel
from fvl_lightning.stages.base import Stage
from fvl_lightning.stages.finetune import FinetuneStage
from fvl_lightning.stages.step_metrics import count_padding
from tests.modeling.architectures import CONTAMINATED, EXACT
from tests.stages.fitting import batches_of, build_stage, experiment_of, fit
from tests.tiny_models import EOS, PAD, prompted, rows, snapshot

NAMES = ("captions", "web/charts", "unused")


def mixture(count: int = 4, seed: int = 0) -> Batch:
    """`rows` of which the even ones are of the first data set and the odd ones of the second."""
    batch = rows(count, seed=seed)
    ids = (torch.arange(count) % 2)[:, None].expand_as(batch.token_ids).contiguous()
    return dataclasses.replace(batch, dataset_ids=ids, datasets=NAMES)


def packed(batch: Batch, per_row: int = 2, pad: int = 3) -> Batch:
    """The batch's rows, less their pads, `per_row` to a row, pads at its end."""
    lengths = (batch.token_ids != PAD).sum(1).tolist()
    width = batch.token_ids.shape[1] * per_row + pad
    made: dict[str, list[list[int]]] = {"token_ids": [], "labels": [], "positions": [], "dataset_ids": []}
    ids = batch.dataset_ids if batch.dataset_ids is not None else torch.zeros_like(batch.token_ids)
    for first in range(0, len(lengths), per_row):
        own = range(first, first + per_row)
        columns = {
            "token_ids": [x for k in own for x in batch.token_ids[k, : lengths[k]].tolist()],
            "labels": [x for k in own for x in batch.labels[k, : lengths[k]].tolist()],
            "positions": [x for k in own for x in range(lengths[k])],
            "dataset_ids": [x for k in own for x in ids[k, : lengths[k]].tolist()],
        }
        fill = {"token_ids": PAD, "labels": IGNORE_INDEX, "positions": 0, "dataset_ids": 0}
        for name, column in columns.items():
            made[name].append(column + [fill[name]] * (width - len(column)))
    tensors = {name: torch.tensor(column) for name, column in made.items()}
    if batch.dataset_ids is None:
        del tensors["dataset_ids"]
    return dataclasses.replace(batch, **tensors)


def stage_of(text_config: dict[str, Any], folder: Path) -> Stage:
    """The finetune stage over the tiny model with another language model."""
    experiment = experiment_of("finetune", folder, trainer={"max_steps": 1})
    config = dataclasses.replace(experiment.language_model.config, model=text_config)
    experiment.language_model = Choice("language_model", "causal", CausalLanguageModel.Config(**vars(config)))
    return experiment.stage.component.build(experiment)


def test_packed_rows_make_the_same_update(tmp_path: Path) -> None:
    """Two steps in float64, one sample per row or several; tokens and loss are the same too."""
    found, logged = [], []
    for pack in (lambda batch: batch, packed, lambda batch: packed(batch, per_row=4)):
        stage = build_stage(
            "finetune", tmp_path, optimizer={"name": "muon", "learning_rate": 0.01}, trainer={"max_steps": 2}
        )
        stage.model.double()
        batches = [pack(dataclasses.replace(b, images=b.images.double())) for b in batches_of("finetune", 2)]
        fit(stage, batches, tmp_path)
        found.append(snapshot(stage.model))
        logged.append(stage.step_metrics.read()["train/loss"])
    for other in found[1:]:
        for key, tensor in found[0].items():
            torch.testing.assert_close(other[key], tensor, atol=1e-9, rtol=0, msg=key)
    assert logged[1:] == pytest.approx(logged[:1] * 2, abs=1e-6)


def wanted_losses(stage: Stage, batches: list[Batch]) -> dict[str, tuple[float, int]]:
    """(mean, tokens) by data set, from batches of one data set each."""
    found = {}
    for parity, name in enumerate(NAMES[:2]):
        own = []
        for batch in batches:
            labels = batch.labels.clone()
            labels[1 - parity :: 2] = IGNORE_INDEX
            with torch.no_grad():
                own.append(stage.compute(dataclasses.replace(batch, labels=labels, dataset_ids=None))[0])
        tokens = sum(int(loss.tokens) for loss in own)
        found[name] = (sum(float(loss.sum) for loss in own) / tokens, tokens)
    return found


@pytest.mark.parametrize("pack", [False, True])
def test_the_log_has_a_loss_per_dataset(pack: bool, tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path, optimizer={"learning_rate": 0.0}, trainer={"max_steps": 3})
    batches = [mixture(seed=seed) for seed in range(3)]
    fit(stage, [packed(batch) for batch in batches] if pack else batches, tmp_path)
    values = stage.step_metrics.read()
    for name, (loss, tokens) in wanted_losses(stage, batches).items():
        assert values[f"train/loss/{name}"] == pytest.approx(loss, abs=1e-4)
        assert values[f"train/tokens/{name}"] == tokens
    assert values["train/tokens/unused"] == 0
    assert "train/loss/unused" not in values, "a mean of nothing is not 0"
    assert stage.step_metrics.read().keys() & {f"train/loss/{name}" for name in NAMES} == set(), "a new window"


def test_a_single_dataset_logs_what_it_did(tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 1})
    fit(stage, batches_of("finetune", 1), tmp_path)
    assert [name for name in stage.step_metrics.read() if name.count("/") > 1] == []


def test_validation_has_a_loss_per_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over the tokens of the whole split, batches of unlike size, started anew with each pass."""
    stage = build_stage(
        "finetune", tmp_path, optimizer={"learning_rate": 0.0}, trainer={"max_steps": 2, "validate_every": 1}
    )
    logged: list[dict[str, float]] = []

    class Log:
        def log_metrics(self, values: dict[str, float], step: int) -> None:
            logged.append(values)

    validation = [mixture(4, seed=5), mixture(2, seed=6)]
    monkeypatch.setattr(FinetuneStage, "loggers", [Log()])
    fit(stage, batches_of("finetune", 2), tmp_path, validation=validation)
    assert len(logged) == 2
    for values in logged:
        assert values.keys() == {
            "validation/loss", "validation/token_accuracy", "validation/loss/captions", "validation/loss/web/charts"
        }
        for name, (loss, _) in wanted_losses(stage, validation).items():
            assert values[f"validation/loss/{name}"] == pytest.approx(loss, abs=1e-5)


# How full the rows are.


def test_fill_is_the_share_without_pads(tmp_path: Path) -> None:
    stage = build_stage("finetune", tmp_path, trainer={"max_steps": 2})
    batches = [rows(3), packed(rows(4))]
    fit(stage, batches, tmp_path)
    real = sum(int((batch.token_ids != PAD).sum()) for batch in batches)
    total = sum(batch.token_ids.numel() for batch in batches)
    assert stage.step_metrics.row_tokens == total
    assert stage.step_metrics.read()["train/fill"] == pytest.approx(real / total, abs=1e-6)
    assert 0 < real < total


def test_pads_that_look_like_the_end_of_a_turn() -> None:
    """Where pad and end are one token, those inside a row count as words, and so does the supervised one at its end."""
    ids = torch.tensor([[5, EOS, 6, EOS, EOS, EOS], [5, 6, 7, 8, 9, EOS]])
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, 3] = labels[1, 5] = EOS
    batch = Batch(ids, labels, None, None, ("a", "b"), 2)
    assert int(count_padding(batch, EOS)) == 2


def test_pads_of_prompted_targets() -> None:
    batch = prompted(3)
    assert int(count_padding(batch, PAD)) == int((batch.targets == IGNORE_INDEX).sum()) > 0


# What a stage refuses.


def test_a_model_that_sees_later_tokens_is_refused_at_the_start(tmp_path: Path) -> None:
    stage = stage_of({**EXACT["gemma3"], "use_bidirectional_attention": True}, tmp_path)
    with pytest.raises(ConfigError, match=r"^language_model\.model: gemma3_text sees later tokens"):
        fit(stage, batches_of("finetune", 1), tmp_path)


def test_the_first_packed_batch_of_a_model_that_cannot_pack_is_refused(tmp_path: Path) -> None:
    """Before any update; the same model trains on unpacked rows."""
    stage = stage_of(CONTAMINATED["opt"], tmp_path)
    with pytest.raises(ConfigError, match=r"^data\.packing: .* language model opt"):
        fit(stage, [packed(rows(4))], tmp_path)
    assert stage.position == 0
    fit(stage, [rows(4, position=4)], tmp_path)
    assert stage.position == 4


def test_the_checks_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither random numbers nor values: with dropout, a run with the checks is the run without."""
    found = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr("fvl_lightning.stages.language.check_causal", lambda model: None)
            monkeypatch.setattr("fvl_lightning.stages.language.check_packing", lambda *_: None)
        torch.manual_seed(0)
        stage = stage_of({**EXACT["gpt2"], "resid_pdrop": 0.3}, tmp_path)
        torch.manual_seed(1)
        fit(stage, [packed(rows(4))], tmp_path)
        found.append(snapshot(stage.model))
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())
