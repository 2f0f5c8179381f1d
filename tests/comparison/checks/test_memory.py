"""A comparison whose largest arm does not fit into its device is refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.comparison.checks import memory
from fvl_lightning.comparison.checks.memory import Training, check_memory, largest
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.profiling.devices import Device
from tests.stages.fitting import build_stage


def training(arm: str, folder: Path, **changes: Any) -> Training:
    stage = build_stage("finetune", folder, "meta", **changes)
    return Training(f"arm {arm}", stage.experiment, stage)


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> list[Training]:
    folder = tmp_path_factory.mktemp("arms")
    return [training("small", folder, trainable={"language_model": "frozen"}), training("large", folder)]


def checked(arms: list[Training], size: int | None = None, **changes: Any) -> str:
    return check_memory(ComparisonConfig(**changes), arms, lambda experiment: None, size)


def on_a_cpu(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(memory, "device_here", lambda accelerator: Device("CPU", free, None, None, here=True))


def test_the_largest_arm_is_compared_with_the_device(arms: list[Training], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.arm for one in largest(arms)] == ["arm large"]
    assert checked(arms, 10**15) == "a step is small: a device has 1000.0 TB"
    monkeypatch.setattr(memory, "TRIVIAL", 0)
    found = checked(arms, 10**9)
    assert found.startswith("a step of arm large, stage ")
    assert found.endswith("and a device has 1.0 GB")
    with pytest.raises(ConfigError) as caught:
        checked(arms, 10**6)
    said = str(caught.value)
    assert said.startswith("memory: a step of arm large, stage ")
    assert " rows of " in said
    assert "and a device has 1.0 MB; try " in said
    assert "trainer.checkpoint_activations" in said


def test_cells_on_a_cpu_share_its_memory(arms: list[Training], monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_cpu(monkeypatch, 10**15)
    assert "a step is small: the free main memory is 1000.0 TB" in checked(arms)
    monkeypatch.setattr(memory, "TRIVIAL", 0)
    on_a_cpu(monkeypatch, 8 * 10**8)
    assert "of the free main memory each of 2 processes has 400.0 MB" in checked(arms, jobs=8, seeds=[0])
    on_a_cpu(monkeypatch, 3 * 10**6)
    with pytest.raises(ConfigError, match=r"of the free main memory each of 3 processes has 1.0 MB"):
        checked(arms, jobs=3, seeds=[0, 1, 2])
    on_a_cpu(monkeypatch, None)
    assert checked(arms).startswith("not estimated")


def test_a_device_that_is_not_here_is_refused_and_other_machines_are_not_judged(tmp_path: Path) -> None:
    asks = [training("mine", tmp_path, trainer={"accelerator": "cuda"})]
    with pytest.raises(ConfigError, match=r"trainer.accelerator: this machine has no cuda device"):
        checked(asks)
    assert "launcher slurm: the memory of its devices is not known here" in checked(asks, launcher="slurm")
    with pytest.raises(ConfigError, match=r"a device has 1.0 MB"):
        checked(asks, 10**6, launcher="slurm")
