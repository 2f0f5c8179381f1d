"""The glossary, and the files about the project: what they name is what the code and pyproject.toml have."""

import re
import tomllib

import yaml

from fvl_lightning.core.experiment import ExperimentConfig, TrainerConfig
from fvl_lightning.core.registry import SLOT_PACKAGES
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", GLOSSARY, flags=re.MULTILINE))


def test_the_glossary_has_the_terms_of_the_pages_in_order() -> None:
    terms = [term for term in ROWS if term != "term"]
    assert terms == sorted(terms)
    assert {"source", "arm", "cell", "kind", "stage", "level", "lineage", "slot", "run", "shard", "split"} <= set(terms)
    assert all(len(meaning) > 10 for term, meaning in ROWS.items() if term != "term")


def test_what_the_glossary_names_is_there() -> None:
    assert "trainer.global_batch" in ROWS["global batch"]
    assert hasattr(TrainerConfig(), "global_batch")
    assert hasattr(ExperimentConfig(), "plugins")
    assert set(re.findall(r"`(\w+)`", ROWS["slot"])) <= set(SLOT_PACKAGES)
    assert set(re.findall(r"`(\w+)`", ROWS["stage"])) <= {
        path.stem for path in (ROOT / "fvl_lightning" / "stages").glob("*.py")
    }


def test_the_citation_is_of_this_version_and_of_no_invented_person() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["authors"] == PROJECT["authors"]
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2412.04424"
    assert f"({PROJECT['version']})" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_page_about_gpus_names_the_pinned_torch_and_claims_no_run() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"names ({pinned})" in page
    assert "No part of this kit has been run on a GPU here" in page
    assert {"qlora"} <= set(PROJECT["optional-dependencies"])
