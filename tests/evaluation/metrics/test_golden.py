"""Scores of lmms-eval and pycocoevalcap that tests/lmms/write_golden.py kept, without their packages."""

import json
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.lmms import ours
from tests.lmms.cases import FAMILIES, Case, cases

GOLDEN: list[dict[str, Any]] = json.loads((ROOT / "tests" / "fixtures" / "metrics" / "golden.json").read_text())


def test_every_family_is_kept() -> None:
    assert [family["metric"] for family in GOLDEN] == list(FAMILIES)


@pytest.mark.parametrize("family", GOLDEN, ids=lambda family: family["metric"])
def test_scores_are_those_of_lmms_eval(family: dict[str, Any]) -> None:
    metric = family["metric"]
    asked = [Case(metric, **{"answer": "", "references": []} | fields) for fields in family["cases"]]
    assert asked == cases(metric, len(asked)), "write_golden.py must run again"
    found = ours.caption_scores(asked) if metric == "cider" else [ours.score(case) for case in asked]
    assert found == pytest.approx(family["scores"], abs=1e-9)
    if family["aggregates"]:
        scores = ours.aggregate(asked)
        numbers = {name: scores.average(name) for name in family["aggregates"]}
        assert numbers == pytest.approx(family["aggregates"], abs=1e-9)
