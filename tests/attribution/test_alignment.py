"""Runs of alignment_probe side by side: what is refused, the section of planted runs, and of trained ones."""

import dataclasses
import json
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fvl_lightning.attribution.alignment.classified import Classified
from fvl_lightning.attribution.alignment.measured import ProbeRun, arm_of, check_comparable
from fvl_lightning.attribution.alignment.section import section_of
from fvl_lightning.attribution.explain import explain_all
from fvl_lightning.attribution.request import ExplainRequest
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.contrastive.evaluation import Pairs, evaluate_pairs, ranks_both_ways
from fvl_lightning.reporting.section import section_markdown
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run

FILE = "experiments/demo/alignment_probe.yaml"


def planted(arm: str, seed: int, noise: float, pairs: int = 40, group: int = 8) -> ProbeRun:
    """A run whose image vectors are its captions' with noise; captions are the same for all."""
    generator = torch.Generator().manual_seed(7)
    captions = torch.nn.functional.normalize(torch.randn(pairs, 6, generator=generator).double(), dim=1)
    generator.manual_seed(seed)
    images = captions + noise * torch.randn(pairs, 6, generator=generator).double()
    both = Pairs(torch.nn.functional.normalize(images, dim=1), captions, torch.arange(pairs))
    hits = {f"{way}_r{k}": (ranks <= k).double() for way, ranks in ranks_both_ways(both).items() for k in (1, 5, 10)}
    found, run = evaluate_pairs(both, group, 0.5), RunFolder(Path("runs", arm, str(seed)))
    curve = [(10, log(group)), (20, found["loss"])]
    return ProbeRun(run, arm, seed, arm, group, 0.5, curve, found, hits, tuple(map(str, range(pairs))))


def test_runs_of_one_name_and_other_seeds_are_one_arm() -> None:
    assert arm_of("probe/davit/0", 0) == "probe/davit"
    assert arm_of("probe/davit_seed3", 3) == "probe/davit"
    assert arm_of("probe/davit/0", 1) == "probe/davit/0"
    assert arm_of("layer_10", 0) == "layer_10"


def test_the_better_arm_is_found_with_intervals() -> None:
    runs = [planted(arm, seed, noise) for arm, noise in (("random", 5.0), ("trained", 0.05)) for seed in range(3)]
    right = np.tile([1.0, 1.0, 1.0, 0.0], 10)
    scores = {("davit", "linear probe"): right, ("ocr", "linear probe"): 1 - right}
    classified = Classified(scores, np.zeros(40), tuple(range(40)), ("count",) * 40)
    section = section_of(runs, {"trained": classified})
    values: Any = section.values
    assert values["chance"] == pytest.approx(log(8))
    assert np.mean(values["arms"]["trained"]["loss"]) < np.mean(values["arms"]["random"]["loss"]) - 0.3
    assert values["arms"]["trained"]["floor"][0] == pytest.approx(runs[0].found["floor"])
    assert values["arms"]["trained"]["image_to_text_r1"] == [1.0, 1.0, 1.0]
    assert values["classifiers"]["trained"]["davit"]["linear probe"]["kinds"] == {"count": 0.75}
    text = section_markdown(section)
    assert "**trained** has the lowest loss" in text
    assert "95 % over 3 seeds" in text
    assert "No vectors of images whatever come below the floor" in text
    (retrieval,) = [grid for grid in section.tables if grid.title == "Cross-modal retrieval"]
    trained = [row for row in retrieval.rows if row[0] == "trained"]
    assert trained[0][2].startswith("1.000 (0.9")
    json.dumps(values)
    drawn = section.figures["alignment_curves"].axes[0]
    assert len(drawn.lines) == 6 + 1 + 1, "six curves, ln N and the floor"
    assert drawn.lines[6].get_ydata()[0] == pytest.approx(log(8))


def test_other_images_are_refused() -> None:
    one, other = planted("one", 0, 0.1), planted("other", 0, 0.1)
    other = dataclasses.replace(other, keys=(*other.keys[:-1], "another"))
    with pytest.raises(ConfigError, match="runs/one/0 and runs/other/0 have different validation images"):
        section_of([one, other], {})


def probe(path: str, stage: str = "alignment_probe", **fields: Any) -> Any:
    """A finished run that has these fields in its stage."""
    config = SimpleNamespace(**{"captions": 32, "temperature": 1.0, **fields})
    experiment = SimpleNamespace(stage=SimpleNamespace(config=config))
    return SimpleNamespace(path=path, info={"stage": stage}, check_finished=lambda: None, experiment=lambda: experiment)


def test_unequal_settings_are_refused_in_words() -> None:
    check_comparable([probe("a"), probe("b")])
    with pytest.raises(ConfigError, match=r"stage\.captions: N is 32 in a and 16 in b; chance and floor move with it"):
        check_comparable([probe("a"), probe("b", captions=16)])
    with pytest.raises(ConfigError, match=r"stage\.temperature: the temperature is 1\.0 in a and 0\.1 in b"):
        check_comparable([probe("a"), probe("b", temperature=0.1)])
    with pytest.raises(ConfigError, match="b is a run of the stage finetune, expected alignment_probe"):
        check_comparable([probe("a"), probe("b", "finetune")])
    with pytest.raises(ConfigError, match="name at least one run"):
        check_comparable([])


def test_a_trained_probe_has_its_section(workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the section measures is what the training logged; the saved model is one of transformers' kind."""
    words = (*TINY, "stage.captions=8", "init_from=[]", "feature_cache=null", "fused_sources=[davit, ocr]")
    done = fvl_here(workspace, "train", FILE, *words, "name=probe/tiny/0", "trainer.validate_every=3")
    assert done.returncode == 0, done.stderr
    refused = fvl_here(workspace, "train", FILE, *words, "stage.captions=12")
    assert refused.returncode == 2
    assert "stage.captions: the 8 rows of a batch" in refused.stderr
    monkeypatch.chdir(workspace)
    run = RunFolder.open("runs/probe/tiny/0")
    assert dict(run.curve("alignment/captions"))[3] == 8
    assert dict(run.curve("alignment/temperature"))[3] == pytest.approx(0.1)
    (explained,) = explain_all(["runs/probe/tiny/0"], ExplainRequest())
    assert "# " in (run.path / "explain" / "report.md").read_text(encoding="utf-8")
    assert (run.path / "explain" / "figures" / "alignment_curves.png").is_file()
    with pytest.raises(ConfigError, match="such runs are compared with each other alone"):
        explain_all(["runs/probe/tiny/0", "runs/other"], ExplainRequest())
    values: Any = explained.values["alignment"]
    found = values["arms"]["probe/tiny"]
    for name in ("loss", "floor", "accuracy", "image_to_text_r5", "text_to_image_r10"):
        assert found[name][0] == pytest.approx(dict(run.curve(f"validation/{name}"))[3], abs=1e-5), name
    assert (found["captions"], found["pairs"]) == ([8], [16])
    assert found["floor"][0] - 1e-6 <= found["loss"][0]
