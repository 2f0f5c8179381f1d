"""The presets of published recipes, and words with which their real sizes are built without the hub."""

import re
from pathlib import Path

from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.published_sizes import FOLDER as HUB
from tests.conftest import ROOT

FLORENCE_VL = ("3b/pretrain", "3b/finetune", "8b/pretrain", "8b/finetune")
LLAVA = ("align", "finetune")
PRESETS = (*(f"florence_vl/{name}" for name in FLORENCE_VL), *(f"llava15_7b/{name}" for name in LLAVA))
ADAPTED = tuple(f"florence_vl/{size}/finetune_{kind}" for size in ("3b", "8b") for kind in ("lora", "qlora"))
"""Those that no paper has: stage 2 with adapters."""
SIZES_BETWEEN = tuple(
    f"{size}/{stage}" for size in ("small", "medium") for stage in ("align", "pretrain", "finetune", "finetune_lora")
)
"""Those between the demo and 3B."""
CHOICES = [
    *((f"florence_vl/{name}", (f"recipe={recipe}",)) for name in FLORENCE_VL for recipe in ("paper", "released")),
    *((f"llava15_7b/{name}", ()) for name in LLAVA),
]
"""(preset, words) for every recipe of every preset."""


def hardware() -> dict[str, tuple[int, int]]:
    """Returns {preset: (number of GPUs, GB of each)} of docs/presets.md."""
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)\.yaml` \|.*\| (\d+) x (\d+) GB \|", page, re.MULTILINE)
    return {preset: (int(count), int(size)) for preset, count, size in rows}


def path_of(preset: str) -> Path:
    """The preset's file."""
    return ROOT / "experiments" / f"{preset}.yaml"


def load(preset: str, *words: str) -> ExperimentConfig:
    """The preset as its file and the words have it."""
    return load_config(ExperimentConfig, path_of(preset), words)


def at_real_size(preset: str, tokenizer: Path, *words: str) -> ExperimentConfig:
    """The preset with the configurations that its hub ids are published with, and a tokenizer that is at hand."""
    config = load(preset)
    here = [
        f"{slot}.{word}"
        for slot in ("encoder", "language_model")
        for word in (
            f"pretrained={HUB / getattr(config, slot).config.pretrained}",
            f"tokenizer={tokenizer}",
            "revision=null",
        )
    ]
    return load(preset, *words, *here)
