"""Writes tests/fixtures/metrics/golden.json: scores of lmms-eval and pycocoevalcap that `make test` compares with.

Run in the environment of `make test-lmms`: .venv-lmms/bin/python -m tests.lmms.write_golden
"""

import json
from dataclasses import asdict
from pathlib import Path

from tests.lmms import theirs
from tests.lmms.cases import FAMILIES, cases

PATH = Path(__file__).parents[1] / "fixtures" / "metrics" / "golden.json"
CASES = 48
CAPTIONS = ("bleu", "cider", "rouge_l")


def golden() -> list[dict[str, object]]:
    """Returns a family each: its cases, the score of each, and the aggregates."""
    found: list[dict[str, object]] = []
    for metric in FAMILIES:
        asked = cases(metric, CASES)
        aggregates: dict[str, float] = {}
        if metric in CAPTIONS:
            corpus, each = theirs.caption_scores(metric, asked)
            aggregates = {"overall": corpus[-1]} | {f"bleu_{n}": corpus[n - 1] for n in range(1, len(corpus))}
            scores = [one[-1] for one in each]
        else:
            scores = [theirs.score(case) for case in asked]
        if metric in ("pope", "mme"):
            aggregates = {"pope": theirs.pope_aggregates, "mme": theirs.mme_aggregates}[metric](asked)
        fields = [{name: value for name, value in asdict(case).items() if value and name != "metric"} for case in asked]
        found.append({"metric": metric, "cases": fields, "scores": scores, "aggregates": aggregates})
    return found


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(family, ensure_ascii=False) for family in golden())
    PATH.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
