"""What docs/scale.md says of `fvl doctor`: its commands, its checks, and the table of memory, computed again."""

import re
import shlex
from pathlib import Path

import pytest

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.model import shaped_stage
from fvl_lightning.profiling.memory import estimate_memory
from tests.conftest import ROOT
from tests.experiments.presets import at_real_size

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Before it starts: fvl doctor") : PAGE.index("## Options that save memory")]
COMMANDS = [shlex.split(line)[2:] for line in re.findall(r"^fvl doctor .*$", SECTION, flags=re.MULTILINE)]
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in re.findall(r"^\| \db/.*\|$", SECTION, flags=re.MULTILINE)
]
EVERYTHING = "[encoder,language_model]"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert words[-2:] == ["--memory-gb", "80"]
    load_config(ExperimentConfig, Path(words[0]), words[1:-2])


def test_the_checks_of_the_page_are_those_of_the_code() -> None:
    table = SECTION[SECTION.index("| check |") : SECTION.index("Shards are opened")]
    named = {name for line in table.splitlines()[2:] if line for name in line.split("|")[1].strip().split(", ")}
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "fvl_lightning" / "doctor").glob("*.py")]
    told = {name for text in sources for name in re.findall(r'Finding\(\s*"([a-z_ -]+)"', text)}
    assert named == told


def test_the_table_has_both_presets_and_stages_on_8_and_64_ranks() -> None:
    stages = {(f"{size}/{stage}", ranks) for size in ("3b", "8b") for stage in ("pretrain", "finetune") for ranks in ("8", "64")}  # fmt: skip  # noqa: E501
    assert {row[:2] for row in ROWS} == stages
    assert "**by arithmetic; not measured on GPUs**" in SECTION


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row[:4]))
def test_a_row_is_what_is_computed(row: tuple[str, ...], tiny_data: Path) -> None:
    preset, ranks, accumulate, recomputed, *numbers = row
    words = ["trainer.strategy=fsdp", "trainer.devices=8", f"trainer.nodes={int(ranks) // 8}", "trainer.batch_size=4"]
    words += [f"trainer.accumulate={accumulate}"]
    words += [f"trainer.checkpoint_activations={EVERYTHING if recomputed == 'yes' else []}"]
    experiment = at_real_size(f"florence_vl/{preset}", tiny_data / "demo" / "tokenizer", *words)
    stage = shaped_stage(experiment)
    estimate = estimate_memory(experiment, stage.model, stage.trainable)
    kinds = (estimate.parameters, estimate.gradients, estimate.optimizer, estimate.activations)
    found = [*(sum(sizes.values()) for sizes in kinds), estimate.communication, estimate.peak]
    assert [size / 1e9 for size in found] == pytest.approx([float(number) for number in numbers], abs=0.06, rel=0.02)
    assert (estimate.shape.rows, estimate.shape.tokens, estimate.shape.images) == (4, 2048, 4)


def test_the_accumulated_batches_make_the_papers(tiny_data: Path) -> None:
    for preset, ranks, accumulate, *_ in ROWS:
        trainer = at_real_size(f"florence_vl/{preset}", tiny_data / "demo" / "tokenizer").trainer
        assert 4 * int(ranks) * int(accumulate) == trainer.samples_per_step
