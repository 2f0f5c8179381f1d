"""docs/hugging_face.md: its command, then its Python blocks in order, in one process that knows nothing else."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ONE_THREAD, ROOT, Run
from tests.tiny_models import tiny_model

TEXT = (ROOT / "docs" / "hugging_face.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_runs(quick_demo: Path, fvl_here: Run) -> None:
    (command,) = [block for language, block in BLOCKS if language == "bash"]
    done = fvl_here(quick_demo, *shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    code = "\n".join(block for language, block in BLOCKS if language == "python")
    environment = os.environ | ONE_THREAD | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=quick_demo, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "'train_loss'" in ran.stdout
    assert "trainable params" in ran.stdout
    assert "Warning: modules_to_save" not in ran.stderr


def test_what_the_example_of_peft_names_learns_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = [block for _, block in BLOCKS if "get_peft_model" in block]
    monkeypatch.chdir(tmp_path)
    model = tiny_model(fusion="gated")
    layers = {name for name, _ in model.named_modules() if name.startswith("language_model.")}
    whole = {name for name, _ in model.named_parameters() if name.split(".")[0] in ("fusion", "projector")}
    exec(block, {"model": model})
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in learning if ".lora_" in name}
    assert {name.split(".lora_")[0] for name in adapters} == {
        name for name in layers if name.rpartition(".")[2] in ("q_proj", "v_proj")
    }
    assert {name.replace("modules_to_save.default.", "") for name in learning - adapters} == whole
