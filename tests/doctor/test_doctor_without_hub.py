"""`fvl doctor` where the hub cannot be reached: one check fails and says what to fetch, the others are done."""

from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.doctor import one_batch
from fvl_lightning.doctor.examine import examine
from fvl_lightning.doctor.finding import Finding
from fvl_lightning.encoders import florence2_files
from fvl_lightning.language_models import causal
from fvl_lightning.profiling.memory import MemoryEstimate
from fvl_lightning.profiling.published_sizes import FOLDER as HUB
from tests.conftest import ROOT

PRESET = ROOT / "experiments" / "florence_vl" / "3b" / "finetune.yaml"


@pytest.fixture(autouse=True)
def _hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are read, and nothing else."""

    def local_only(read: Any) -> Any:
        def read_or_fail(name: str, *arguments: Any, **options: Any) -> Any:
            if not Path(name).is_dir():
                raise OSError("We couldn't connect to 'https://huggingface.co'")
            return read(name, *arguments, **options)

        return read_or_fail

    for owner, name in (
        (causal.AutoTokenizer, "from_pretrained"),
        (causal.AutoConfig, "from_pretrained"),
        (florence2_files, "cached_file"),
    ):
        monkeypatch.setattr(owner, name, local_only(getattr(owner, name)))
    monkeypatch.setattr(one_batch, "_try_step", lambda named, experiment: [Finding("one batch", "ok", named)])


def found_of(tmp_path: Path, *words: str) -> tuple[dict[str, Finding], MemoryEstimate | None]:
    """What is found of the 3B preset; of the shards that there are none."""
    told = [f"output={tmp_path}/runs", "tracking.enabled=false", "scale=full", *words]
    findings, estimate = examine(PRESET, told, 80.0, lambda words: None)
    return {finding.check: finding for finding in findings}, estimate


def test_without_the_hub_and_the_sizes_the_rest_is_examined(tmp_path: Path) -> None:
    found, estimate = found_of(tmp_path, "language_model.pretrained=mine/unknown")
    assert estimate is None
    assert found["model"].status == "failed"
    assert "language_model.tokenizer: mine/unknown could not be read" in found["model"].message
    for word in ("hf download mine/unknown", "Florence-2-large-ft", "HF_HOME", "or folders with"):
        assert word in found["model"].advice
    skipped = {name for name, finding in found.items() if finding.status == "skipped"}
    assert skipped == {"supervision", "memory", "run folder"}
    assert "= 2,048 samples a step" in found["batches"].message
    assert {found[name].status for name in ("warm-up", "tracking", "one batch")} == {"ok"}
    assert "random values: fusion, projector" in found["init_from"].message


@pytest.mark.slow
@pytest.mark.parametrize("named", ["folders", "the hub's"])
def test_the_sizes_alone_are_enough_for_the_memory(tmp_path: Path, named: str) -> None:
    """Of folders with a config.json, and of models that a preset names."""
    folders = [
        f"encoder.pretrained={HUB}/florence-community/Florence-2-large-ft",
        f"language_model.pretrained={HUB}/microsoft/Phi-3.5-mini-instruct",
    ]
    one_device = ["trainer.strategy=single", "trainer.devices=1", "trainer.checkpoint_activations=[]"]
    found, estimate = found_of(tmp_path, *(folders if named == "folders" else ()), *one_device, "trainer.batch_size=1")
    assert found["model"].status == "failed"
    assert ("hf download" in found["model"].advice) == (named != "folders")
    assert estimate is not None
    assert sum(estimate.parameters.values()) > 16e9
    assert found["memory"].status == "failed"
    assert "rows of 2,048 tokens" in found["memory"].message
    assert {name for name, finding in found.items() if finding.status == "skipped"} == {"supervision"}
