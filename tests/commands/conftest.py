"""One tiny trained model for all who ask models something."""

from pathlib import Path

import pytest

from tests.conftest import TINY, Run, furnish


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with the run `runs/tiny` of a gated fusion, and `model`, its model without the run."""
    folder = furnish(tmp_path_factory.mktemp("asked"), tiny_data)
    words = ("train", "experiments/demo/finetune.yaml", *TINY, "fusion=gated", "name=tiny")
    done = fvl_here(folder, *words)
    assert done.returncode == 0, done.stderr
    (folder / "model").symlink_to("runs/tiny/model")
    return folder
