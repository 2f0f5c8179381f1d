"""Where the cells of a comparison are trained: the same samples in every step, and the same key, on any devices."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import SeedPlan, experiments
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.core.config.loading import as_plain, config_hash, load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig, TrainerConfig
from fvl_lightning.core.jsonl import read_sealed
from fvl_lightning.launchers.placement import on_one_device, placed, without_placement
from fvl_lightning.launchers.resources import ResourcesConfig
from fvl_lightning.runs.identity import RunIdentity
from tests.comparison.test_cell import SPECIFICATION, cell, run
from tests.conftest import ROOT


def stage(**trainer: Any) -> ExperimentConfig:
    return ExperimentConfig(name="finetune", trainer=TrainerConfig(**trainer))


@pytest.mark.parametrize(
    ("written", "devices", "nodes", "batch_size", "accumulate", "strategy"),
    [
        ({"batch_size": 8}, 1, 1, 8, 1, "single"),
        ({"batch_size": 8}, 2, 1, 4, 1, "ddp"),
        ({"batch_size": 8, "accumulate": 8, "strategy": "fsdp"}, 2, 1, 8, 4, "fsdp"),
        ({"batch_size": 8, "accumulate": 2, "strategy": "hsdp"}, 2, 2, 4, 1, "hsdp"),
        ({"batch_size": 6, "accumulate": 2}, 4, 1, 3, 1, "ddp"),
        ({"batch_size": 8, "global_batch": 64}, 4, 1, 8, 2, "ddp"),
        ({"batch_size": 4, "devices": 2, "strategy": "fsdp"}, 2, 1, 4, 1, "fsdp"),
        ({"batch_size": 4, "devices": 2, "strategy": "ddp", "accumulate": 4}, 8, 1, 4, 1, "ddp"),
    ],
)
def test_the_samples_of_a_step_are_divided_among_the_devices(
    written: dict[str, Any], devices: int, nodes: int, batch_size: int, accumulate: int, strategy: str
) -> None:
    before = stage(**written)
    trainer = placed(before, ResourcesConfig(devices=devices, nodes=nodes, threads=3)).trainer
    assert (trainer.devices, trainer.nodes, trainer.strategy, trainer.threads) == (devices, nodes, strategy, 3)
    assert (trainer.batch_size, trainer.accumulate) == (batch_size, accumulate)
    assert trainer.samples_per_step == before.trainer.samples_per_step
    alone = on_one_device(before).trainer
    assert (alone.world_size, alone.samples_per_step) == (1, before.trainer.samples_per_step)
    assert alone.batch_size == before.trainer.batch_size, "no more at a time than a device of the stage has"


def test_what_cannot_be_placed_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"9 samples of a step of stage finetune .* cannot be divided among 2 dev"):
        placed(stage(batch_size=3, accumulate=3), ResourcesConfig(devices=2))
    with pytest.raises(ConfigError, match=r"asks for 4 x 1 devices .* has 2 x 1; write resources: {devices: 4"):
        placed(stage(devices=4, strategy="ddp"), ResourcesConfig(devices=2))


def planned(folder: Path, **values: Any) -> dict[int, SeedPlan]:
    """The plans of a comparison over the demo's finetuning."""
    file = ROOT / "experiments" / "demo" / "mine.yaml"
    given = {"stages": ["finetune.yaml"], "axes": {"fusion": ["concat", "gated"]}, **values}
    (folder / "mine.yaml").write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
    config = load_config(ComparisonConfig, folder / "mine.yaml")
    return experiments(config, file, folder / "runs", import_components=False)


def test_a_comparison_takes_stages_for_as_many_devices_as_its_cells_have(tmp_path: Path) -> None:
    two = ["trainer.devices=2", "trainer.strategy=fsdp", "trainer.global_batch=32", "trainer.batch_size=8"]
    with pytest.raises(ConfigError, match=r"resources in .*: arm concat: stage finetune asks for 2 x 1 devices"):
        planned(tmp_path, set=two)
    (plan,) = planned(tmp_path, set=two, resources={"devices": 2}, encoder_stage="encoder_pretrain.yaml").values()
    trainer = placed(plan.arms["gated"][0], ResourcesConfig(devices=2)).trainer
    assert (trainer.devices, trainer.accumulate, trainer.strategy) == (2, 2, "fsdp")
    assert plan.encoder is not None
    encoder = plan.encoder.trainer
    assert (encoder.world_size, encoder.strategy, encoder.samples_per_step) == (1, "single", 32)
    with pytest.raises(ConfigError, match=r"cells of 2 machines \(nodes\) need launcher: slurm"):
        planned(tmp_path, resources={"nodes": 2})
    with pytest.raises(ConfigError, match=r"resources.devices .* must be at least 1, not 0"):
        planned(tmp_path, resources={"devices": 0})
    with pytest.raises(ConfigError, match=r"unknown key 'gpus'.* did you mean 'devices'"):
        planned(tmp_path, resources={"gpus": 2})


def test_a_key_is_that_of_earlier_versions_and_knows_no_placement(tmp_path: Path) -> None:
    (plan,) = planned(tmp_path).values()
    before = as_plain(plan.arms["gated"][0])

    def key(resources: ResourcesConfig | None = None, **trainer: Any) -> str:
        changed = {**before, "trainer": {**before["trainer"], **trainer}}
        spec = CellSpec(stages=[changed], resources=resources or ResourcesConfig())
        return Cell("gated", 0, tmp_path / "gated", spec).key

    hashed = {
        "stages": [before], "encoder_run": None, "encoder_hash": None, "unseen_splits": [], "transfer_levels": [],
        "made_of": {"inputs": [], "data": []},
    }  # fmt: skip
    assert key() == config_hash(hashed), "as a version without `resources` named it"
    assert key(ResourcesConfig(devices=4, nodes=2, threads=8, memory_gb=100)) == key()
    assert key(strategy="fsdp", devices=2, batch_size=16, checkpoint_activations=["encoder"]) == key()
    assert key(batch_size=16) != key()
    assert key(max_steps=7) != key()


def test_a_cell_that_an_earlier_version_finished_stays_finished(tmp_path: Path) -> None:
    """It had hashed the placement too."""
    trainer = {"max_steps": 20, "checkpoint_activations": ["encoder"]}
    changes = {"stages": [{"name": "finetune", "trainer": trainer}], "encoder_hash": "aa"}
    one = cell(tmp_path, **changes)
    one.folder.mkdir(parents=True)
    (one.folder / "cell.json").write_text(json.dumps({**one.spec.plain(), "cell": "earlier"}), encoding="utf-8")
    (one.folder / "result.json").write_text(json.dumps({"cell": "earlier"}), encoding="utf-8")
    assert cell(tmp_path, **changes).finished
    assert cell(tmp_path, **changes).key == "earlier"


def test_cells_of_one_comparison_may_have_other_resources(tmp_path: Path) -> None:
    first, again = cell(tmp_path), cell(tmp_path, resources=ResourcesConfig(threads=2))
    run([first])
    assert again.finished
    assert "resources" not in read_sealed(first.folder / "cell.json")
    again.prepare()
    assert CellSpec.read(read_sealed(again.folder / "cell.json")).resources == ResourcesConfig(threads=2)
    assert without_placement(SPECIFICATION["stages"][0]) == SPECIFICATION["stages"][0]


def test_a_run_on_other_devices_is_taken_where_its_steps_have_the_same_samples() -> None:
    def identity(**trainer: Any) -> RunIdentity:
        return RunIdentity.of(stage(**trainer))

    one, two = {"batch_size": 8}, {"batch_size": 4, "devices": 2, "strategy": "ddp"}
    assert identity(**two).changed_results(as_plain(stage(**one))) == set()
    assert identity(**two).changed_results(as_plain(stage(batch_size=6))) != set()
    halved = identity(batch_size=8, accumulate=2, devices=2, strategy="fsdp")
    whole = as_plain(stage(batch_size=8, accumulate=4))
    assert halved.changed_results(whole, finished=True) == set()
    assert "trainer.accumulate" in halved.changed_results(whole), "a position between two batches is another one"
