"""webdataset is safe however the kit is imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

REFUSES = """
from datamodules.storage.writer import tar_members
tar_members("a", {"json": b"{}"})
import webdataset
assert webdataset.utils.enforce_security
for refused in (lambda: webdataset.gopen("pipe:touch ran"), lambda: webdataset.autodecode.unpickle_loads(b"N.")):
    try:
        refused()
    except ValueError:
        continue
    raise SystemExit("not refused")
"""


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("", id="the kit first"),
        pytest.param("import webdataset\n", id="the library first", marks=pytest.mark.slow),
    ],
)
def test_a_fresh_process_neither_unpickles_nor_runs_a_shell(tmp_path: Path, first: str) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", first + REFUSES], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert not (tmp_path / "ran").exists()


def test_one_module_imports_the_library() -> None:
    imports = re.compile(r"^\s*(?:import|from) webdataset\b", re.MULTILINE)
    folders = (ROOT / "datamodules", ROOT / "fvl_lightning")
    found = {path.name for folder in folders for path in folder.rglob("*.py") if imports.search(path.read_text())}
    assert found == {"wds.py"}
