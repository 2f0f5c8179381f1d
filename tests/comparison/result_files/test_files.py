"""Files of a comparison: read and written again they are the same, and those of earlier versions are read."""

import json
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.comparison.cell import NOT_HASHED, Cell
from fvl_lightning.comparison.result_files.cell import CellInputs, CellResult, CellSpec, TrialResult
from fvl_lightning.comparison.result_files.comparison import Comparison, read_comparison
from fvl_lightning.core.config.loading import config_hash
from fvl_lightning.core.errors import DataError
from fvl_lightning.reporting.files import finite
from tests.conftest import ROOT

SAVED = json.loads((ROOT / "benchmarks" / "results" / "fusions.json").read_text(encoding="utf-8"))
"""comparison.json of an earlier version."""


def test_a_comparison_of_an_earlier_version_is_written_as_it_was() -> None:
    again = Comparison.read(SAVED)
    assert json.dumps(finite(again.plain())) == json.dumps(SAVED)
    assert again.arms["concat"].score("accuracy/macro") == SAVED["arms"]["concat"]["accuracy"]["macro"]
    assert again.cells[0].result.runs == SAVED["cells"][0]["runs"]


def test_a_null_is_no_number() -> None:
    contrast = SAVED["statistics"]["contrasts"][0] | {"p_holm": None, "interval": [None, None]}
    values = SAVED | {"statistics": SAVED["statistics"] | {"contrasts": [contrast]}}
    found = Comparison.read(values).statistics.contrasts[0]
    assert isnan(found.p_holm)
    assert isnan(found.interval[0])


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"comparison\.json cannot be read"):
        read_comparison(tmp_path)
    (tmp_path / "comparison.json").write_text(json.dumps({"name": "half"}), encoding="utf-8")
    with pytest.raises(DataError, match="Comparison: 'level' is missing"):
        read_comparison(tmp_path)


SPECIFICATION: dict[str, Any] = {
    "stages": [{"name": "finetune", "trainer": {"max_steps": 20}}],
    "encoder_run": "runs/encoders/0/encoder_pretrain",
    "encoder_hash": "aa",
    "unseen_splits": ["test_unseen_words"],
    "transfer_levels": ["medium"],
    "parent_run_id": None,
    "tags": {"fvl.arm": "gated"},
    "fresh": False,
    "split": "test",
    "made_of": {"inputs": [{}], "data": ["bb"]},
}
"""cell.json of an earlier version, without its key."""


def test_a_specification_keeps_its_form_and_its_key(tmp_path: Path) -> None:
    spec = CellSpec.read(SPECIFICATION)
    assert json.dumps(spec.plain()) == json.dumps(SPECIFICATION)
    assert spec.made_of == CellInputs([{}], ["bb"])
    hashed = {name: part for name, part in SPECIFICATION.items() if name not in NOT_HASHED}
    assert Cell("gated", 0, tmp_path, spec).key == config_hash(hashed), "finished cells stay finished"
    another = CellSpec.read(SPECIFICATION | {"metric": "contains"})
    assert another.plain()["metric"] == "contains"
    assert Cell("gated", 0, tmp_path, another).key != config_hash(hashed)


def test_results_keep_their_form() -> None:
    measured = {name: part for name, part in SAVED["cells"][0].items() if name not in ("arm", "seed", "same_start")}
    runs = measured.pop("runs")
    result = measured | {
        "cell": "cc",
        "encoder_hash": measured.pop("encoder_hash"),
        "initial": {"projector.layers.0.bias": [[2], "bb"]},
        "runs": runs,
        "answers": [{"index": 0, "kind": "bars", "question": "which?", "truth": "a", "answer": "b"}],
    }
    read = CellResult.read(result)
    assert json.dumps(read.plain()) == json.dumps(result)
    assert read.initial["projector.layers.0.bias"] == ([2], "bb")
    assert read.for_report(0.5).same_start == 0.5
    trial = {"accuracy": measured["accuracy"], "cell": "cc"}
    assert json.dumps(TrialResult.read(trial).plain()) == json.dumps(trial)
