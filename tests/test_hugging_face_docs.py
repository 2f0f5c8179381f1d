"""docs/hugging_face.md: its command, then its Python blocks in order, in one process that knows nothing else."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.conftest import ONE_THREAD, ROOT, Run

TEXT = (ROOT / "docs" / "hugging_face.md").read_text(encoding="utf-8")


def test_the_page_runs(quick_demo: Path, fvl_here: Run) -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    (command,) = [block for language, block in blocks if language == "bash"]
    done = fvl_here(quick_demo, *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    code = "\n".join(block for language, block in blocks if language == "python")
    environment = os.environ | ONE_THREAD | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=quick_demo, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "'train_loss'" in ran.stdout
    assert "trainable params" in ran.stdout
