"""Everything that moves a model or makes a tensor does so on the device that core/device.py names.

The device is pretended; tests/pretend_device.py says what it cannot see.
"""

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import TINY, Fork, Run, furnish
from tests.integration.device_paths import ENCODER, FAULTS, PATHS, RUN

SCRIPT = str(Path(__file__).with_name("device_paths.py"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with the two runs that the paths open, and a picture."""
    folder = furnish(tmp_path_factory.mktemp("device"), tiny_data)
    for run, stage in ((RUN, "finetune"), (ENCODER, "encoder_pretrain")):
        name = f"name={Path(run).name}"
        done = fvl_here(folder, "train", f"experiments/demo/{stage}.yaml", *TINY, "trainer.max_steps=1", name)
        assert done.returncode == 0, done.stderr
    Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "picture.png")
    return folder


def walk(folder: Path, fork: Fork, name: str, *words: str) -> tuple[int, str]:
    (code,) = fork(folder, name, [SCRIPT, *words])
    return code, (folder / name / "rank0.txt").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_path_keeps_to_the_device(trained: Path, fork: Fork, path: str) -> None:
    code, said = walk(trained, fork, f"path-{path}", path)
    assert code == 0, said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(trained: Path, fork: Fork, fault: str) -> None:
    path, _ = FAULTS[fault]
    code, said = walk(trained, fork, fault.replace(" ", "-").replace(":", ""), path, fault)
    assert code != 0, fault
    assert "computes on the CPU" in said or "Expected all tensors to be on the same device" in said, said[-3000:]
