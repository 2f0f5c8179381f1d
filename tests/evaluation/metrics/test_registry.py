"""Names of metrics, and a metric of one's own from a plugin."""

from pathlib import Path

import pytest

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.plugins import import_plugin
from fvl_lightning.evaluation.metrics import base
from fvl_lightning.evaluation.metrics.lookup import DEFAULT_SCORE, build_metric, metric_of, split_score


def test_the_default_is_a_score_of_a_registered_metric() -> None:
    metric, average = split_score(DEFAULT_SCORE)
    assert metric in registry.names("metric")
    assert average == next(iter(metric_of(DEFAULT_SCORE).averages)), "the primary average"


@pytest.mark.parametrize(
    ("score", "sentence"),
    [
        ("accuracy/marco", "metric in a.yaml: unknown metric 'accuracy/marco', allowed: accuracy/macro, "),
        ("accuracy", "allowed: accuracy/macro, accuracy/overall"),
        ("acuracy/macro", "; did you mean 'accuracy'?"),
    ],
)
def test_an_unknown_score_is_one_sentence(score: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        metric_of(score, "metric in a.yaml")
    assert sentence in str(caught.value)


def test_a_metric_of_ones_own_is_the_file_that_base_py_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._components, "metric", dict(registry._components["metric"]))
    _, _, shown = (base.__doc__ or "").partition("YAML file:\n\n")
    example = shown[: shown.index("\nA comparison names it")].replace("\n    ", "\n")[4:]
    imports = (
        "from dataclasses import dataclass\n"
        "from fvl_lightning.core.registry import register\n"
        "from fvl_lightning.evaluation.metrics.base import AnswerMetric\n\n\n"
    )
    (tmp_path / "contains.py").write_text(imports + example, encoding="utf-8")
    import_plugin(str(tmp_path / "contains.py"), tmp_path)
    found = metric_of("contains/macro")
    assert found.describe("macro") == "Containment, macro average over kinds"
    assert found.describe("macro", kinds=1) == found.describe("overall") == "Containment over all questions"
    scores = build_metric("contains", ["colour"])
    for answer in ("a red star", "blue"):
        scores.update("colour", answer, base.Reference(("red",)))
    assert scores.compute().macro == 0.5
