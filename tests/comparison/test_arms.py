"""The arms that a comparison file speaks of, and what is said where it cannot be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fvl_lightning.comparison.arms import arms_of
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import experiments
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from tests.conftest import ROOT

FILE = Path("mine.yaml")


def arms(tmp_path: Path, *words: str, **values: Any) -> dict[str, Any]:
    """{arm: its words} of a comparison with these values."""
    file = tmp_path / FILE
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    found = arms_of(load_config(ComparisonConfig, file, words), FILE)
    return {name: list(arm.overrides) for name, arm in found.items()}


def refused(tmp_path: Path, *words: str, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        arms(tmp_path, *words, **values)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{tmp_path}/", "")


def test_arms_are_what_they_set(tmp_path: Path) -> None:
    given = {"concat": {"set": ["fusion=concat"]}, "wide": {"set": ["fusion=concat", "fusion.repeat=2"]}}
    assert arms(tmp_path, arms=given) == {"concat": ["fusion=concat"], "wide": ["fusion=concat", "fusion.repeat=2"]}


def test_a_grid_has_every_combination(tmp_path: Path) -> None:
    axes = {"fusion": ["concat", "gated"], "encoder.sources": [["davit"], ["davit", "ocr"]]}
    assert arms(tmp_path, axes=axes) == {
        "1-concat-davit": ['fusion="concat"', 'encoder.sources=["davit"]'],
        "2-concat-davit+ocr": ['fusion="concat"', 'encoder.sources=["davit", "ocr"]'],
        "3-gated-davit": ['fusion="gated"', 'encoder.sources=["davit"]'],
        "4-gated-davit+ocr": ['fusion="gated"', 'encoder.sources=["davit", "ocr"]'],
    }


def test_a_reference_is_of_arms_and_has_a_source(tmp_path: Path) -> None:
    given = {"concat": {"set": ["fusion=concat"]}}
    said = refused(tmp_path, arms=given, reference={"source": "a paper", "scores": {"conact": {"gqa": 62.7}}})
    assert "reference.scores in mine.yaml" in said
    assert "did you mean 'concat'?" in said
    said = refused(tmp_path, arms=given, reference={"scores": {"concat": {"gqa": 62.7}}})
    assert "reference.source: say where the scores were published" in said


def test_zipped_axes_go_side_by_side(tmp_path: Path) -> None:
    axes = {"fusion": ["concat", "gated"], "optimizer": {"learning_rate": [0.003, 0.001]}}
    assert arms(tmp_path, axes=axes, combine="zip") == {
        "concat-learning_rate_0.003": ['fusion="concat"', "optimizer.learning_rate=0.003"],
        "gated-learning_rate_0.001": ['fusion="gated"', "optimizer.learning_rate=0.001"],
    }


def test_names_differ_where_a_narrow_column_ends(tmp_path: Path) -> None:
    for axes in (
        {"fusion": ["concat", "gated", {"name": "attention", "heads": 2}, {"name": "attention", "heads": 8}]},
        {"optimizer.learning_rate": [0.003, 0.001], "normalize.output": [True, False]},
        {"lora.rank": list(range(1, 13))},
    ):
        names = list(arms(tmp_path, axes=axes))
        assert len({name[:10] for name in names}) == len(names)
        assert len(set(names)) == len(names)


def test_seeds(tmp_path: Path) -> None:
    file = tmp_path / FILE
    file.write_text("seed: 3\n", encoding="utf-8")
    assert load_config(ComparisonConfig, file).seeds == [3]
    assert load_config(ComparisonConfig, file, ["seeds=[0, 4]"]).seeds == [0, 4]
    with pytest.raises(ConfigError, match="one is named twice in 1, 1"):
        load_config(ComparisonConfig, file, ["seeds=[1, 1]"])


FUSIONS = {"fusion": ["concat", "gated"]}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, "there are neither, and a comparison needs exactly one of the two"),
    ({"axes": FUSIONS, "arms": {"a": {"set": []}}}, "there are both, and"),
    ({"axes": FUSIONS | {"seed": [0, 1]}}, "seed in axes in mine.yaml: the comparison sets seed itself; give `seeds`"),
    ({"arms": {"a": {"set": ["output=here"]}}}, "output in arms.a.set in mine.yaml: the comparison sets output itself"),
    ({"axes": {"fusion": "concat"}}, "axes.fusion in mine.yaml: expected a list of values to compare"),
    ({"axes": {"fusion": []}}, "axes.fusion in mine.yaml: expected a list of values to compare"),
    ({"axes": {"fusion": ["concat", "concat"]}}, "duplicate arm name concat, an axis lists a value twice"),
    (
        {"axes": FUSIONS | {"optimizer.learning_rate": [0.1]}, "combine": "zip"},
        "`combine: zip` needs the same number of values of every axis, but fusion has 2, optimizer.learning_rate has 1",
    ),
    ({"axes": FUSIONS, "combine": "product"}, "allowed: grid, zip"),
    ({"axes": FUSIONS, "baseline": "gatd"}, "baseline in mine.yaml: unknown arm 'gatd', allowed: concat, gated"),
    ({"arms": {"a/b": {"set": []}}}, "arms.a/b in mine.yaml: the name is also the name of a folder"),
    ({"arms": {"encoders": {"set": []}}}, "arms.encoders in mine.yaml: the name is also the name of a folder"),
    ({"axes": FUSIONS, "smallest_effect": 0}, "smallest_effect in mine.yaml must be above 0"),
]


@pytest.mark.parametrize(("values", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_one_sentence(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, **values)


@pytest.mark.parametrize(
    ("written", "tracked"),
    [
        ({}, ("sqlite:///mine.db", "of the stage", False)),
        ({"experiment": "mine"}, ("sqlite:///mine.db", "mine", False)),
        ({"uri": "sqlite:///other.db", "enabled": True}, ("sqlite:///other.db", "of the stage", True)),
    ],
)
def test_runs_are_tracked_where_the_last_stage_says(
    tmp_path: Path, written: dict[str, Any], tracked: tuple[str, str, bool]
) -> None:
    """Every stage is tracked there, also one that says nothing itself, unless the comparison says otherwise."""
    stage = {"base": str(ROOT / "experiments" / "demo" / "finetune.yaml")}
    last = {"uri": "sqlite:///mine.db", "experiment": "of the stage", "enabled": False}
    comparison = {"encoder_stage": str(ROOT / "experiments" / "demo" / "encoder_pretrain.yaml"), "tracking": written}
    comparison |= {"stages": ["first.yaml", "last.yaml"], "axes": {"fusion": ["concat", "gated"]}}
    files = {"first.yaml": stage, "last.yaml": stage | {"tracking": last}, "mine.yaml": comparison}
    for name, values in files.items():
        (tmp_path / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    config = load_config(ComparisonConfig, tmp_path / "mine.yaml")
    plan = experiments(config, tmp_path / "mine.yaml", tmp_path / "runs")[0]
    assert plan.encoder is not None
    for stage_ in (plan.encoder, *plan.arms["concat"], *plan.arms["gated"]):
        assert (stage_.tracking.uri, stage_.tracking.experiment, stage_.tracking.enabled) == tracked
