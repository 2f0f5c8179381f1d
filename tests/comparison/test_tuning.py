"""Learning rates of a comparison: which are tried, on what, and which is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fvl_lightning.comparison.cell import Cell
from fvl_lightning.comparison.config import ComparisonConfig, TuneConfig
from fvl_lightning.comparison.plan import SeedPlan
from fvl_lightning.comparison.result_files.cell import CellSpec
from fvl_lightning.comparison.result_files.comparison import ArmTuning, RepeatedAccess
from fvl_lightning.comparison.split_readings import log_test_access, read_test_access
from fvl_lightning.comparison.tuning import best_factor, chosen_rates, trial_name, trials
from fvl_lightning.core.config.fields import differences
from fvl_lightning.core.config.loading import as_plain, load_config
from fvl_lightning.core.errors import ConfigError, DataError
from tests.tiny_models import experiment

FACTORS = [3.0, 0.3, 1.0]


def comparison(tmp_path: Path, **values: Any) -> ComparisonConfig:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"axes": {"fusion": ["concat", "gated"]}} | values), encoding="utf-8")
    return load_config(ComparisonConfig, file)


def test_seeds_that_are_reported_choose_nothing(tmp_path: Path) -> None:
    tune = {"learning_rate_factors": [0.3, 1], "seeds": [100, 2]}
    with pytest.raises(ConfigError, match=r"tune\.seeds: 2 is one of `seeds` too; .* with seeds of their own"):
        comparison(tmp_path, seeds=[0, 1, 2], tune=tune)
    assert comparison(tmp_path, seeds=[0, 1], tune=tune).tune is not None
    with pytest.raises(ConfigError, match=r"tune\.seeds: 0 is one of"):
        comparison(tmp_path, tune=tune | {"seeds": [0]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": []}, "tune.seeds: name at least one value, each once"),
        ({"learning_rate_factors": []}, "tune.learning_rate_factors: name at least one value, each once"),
        ({"learning_rate_factors": [1, 1]}, "tune.learning_rate_factors: name at least one value, each once"),
        ({"learning_rate_factors": [0, 1]}, "must be above 0, not 0"),
        ({"learning_rates": [1]}, "unknown key 'learning_rates'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        comparison(tmp_path, tune={"learning_rate_factors": [0.3, 1], "seeds": [100]} | change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def plans(tmp_path: Path) -> dict[int, SeedPlan]:
    """Two arms of one stage with a tuning seed; the language model has a rate of its own."""
    optimizer = {"learning_rate": 0.003, "learning_rates": {"language_model": 0.001}}
    arms = {
        arm: [experiment(tmp_path, "finetune", "conversation", optimizer, fusion=arm)] for arm in ("concat", "gated")
    }
    return {100: SeedPlan(None, arms, {arm: tmp_path / "tuning" / arm / "100" for arm in arms})}


def test_every_arm_tries_the_same_rates_and_nothing_else_changes(plans: dict[int, SeedPlan], tmp_path: Path) -> None:
    (plan,) = trials(plans, FACTORS).values()
    assert list(plan.arms) == [trial_name(arm, factor) for arm in ("concat", "gated") for factor in FACTORS]
    assert len(set(plan.folders.values())) == len(plan.arms)
    for arm in ("concat", "gated"):
        for factor, rates in {3.0: (0.009, 0.003), 0.3: (0.0009, 0.0003), 1.0: (0.003, 0.001)}.items():
            (stage,) = plan.arms[trial_name(arm, factor)]
            optimizer = stage.optimizer
            assert (optimizer.learning_rate, optimizer.learning_rates["language_model"]) == rates
            assert stage.output == str(tmp_path / "tuning" / f"{arm}-x{factor:g}" / "100")
            own = as_plain(plans[100].arms[arm][0])
            changed = {"output", "optimizer.learning_rate", "optimizer.learning_rates.language_model"}
            assert set(differences(own, as_plain(stage))) <= changed


def measured(plans: dict[int, SeedPlan], scores: dict[str, dict[float, float | str]]) -> list[Cell]:
    """Cells that have come to these scores, or failed with these words."""
    every = trials(plans, FACTORS)
    cells = []
    for arm, by_factor in scores.items():
        for factor, score in by_factor.items():
            name = trial_name(arm, factor)
            folder = every[100].folders[name]
            cell = Cell(name, 100, folder, CellSpec(stages=[as_plain(stage) for stage in every[100].arms[name]]))
            folder.mkdir(parents=True)
            if isinstance(score, str):
                cell.log.write_text(score, encoding="utf-8")
                cell.code = 2
                cell.record_failure()
            else:
                result = {"accuracy": {"macro": score, "overall": 0.0}, "cell": cell.key}
                (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
            cells.append(cell)
    return cells


def test_the_best_on_validation_is_taken_and_of_equals_the_smallest(plans: dict[int, SeedPlan], tmp_path: Path) -> None:
    tune = TuneConfig(learning_rate_factors=FACTORS, seeds=[100])
    cells = measured(plans, {"concat": {3.0: 0.5, 1.0: 0.5, 0.3: 0.25}, "gated": {3.0: "no", 1.0: 0.5, 0.3: 0.625}})
    found = chosen_rates(tune, "accuracy/macro", plans, cells)
    assert found.factors == [0.3, 1.0, 3.0]
    assert found.arms["concat"] == ArmTuning(
        scores={"0.3": 0.25, "1": 0.5, "3": 0.5},
        failed={},
        chosen=1.0,
        edge=False,
        learning_rates={"experiment": 0.003},
    )
    assert found.arms["gated"] == ArmTuning(
        scores={"0.3": 0.625, "1": 0.5, "3": None},
        failed={"3": "no"},
        chosen=0.3,
        edge=True,
        learning_rates={"experiment": 0.0009},
    )


def test_what_is_no_number_is_never_the_best() -> None:
    assert best_factor({0.3: float("nan"), 1.0: 0.5, 3.0: float("inf")}) == 1.0
    assert best_factor({0.3: float("nan"), 1.0: None}) is None
    assert best_factor({0.3: 0.25, 1.0: 0.25, 3.0: float("nan"), 9.0: 0.5}, higher_is_better=False) == 0.3


def test_nothing_is_chosen_among_what_has_not_run(plans: dict[int, SeedPlan], tmp_path: Path) -> None:
    tune = TuneConfig(learning_rate_factors=FACTORS, seeds=[100])
    cells = measured(plans, {"concat": {3.0: 0.5, 1.0: 0.5, 0.3: 0.25}, "gated": dict.fromkeys(FACTORS, "no")})
    with pytest.raises(DataError, match=r"gated could be trained with none of its learning rates \(x 0.3: no; x 1: no"):
        chosen_rates(tune, "accuracy/macro", plans, cells)
    (cells[0].folder / "result.json").unlink()
    with pytest.raises(DataError, match="not chosen yet, not trained: concat, learning rates x 3 with seed 100"):
        chosen_rates(tune, "accuracy/macro", plans, cells)


def test_every_reading_of_the_test_split_is_counted(tmp_path: Path) -> None:
    cells = [Cell(arm, 0, tmp_path / arm / "0", CellSpec(stages=[])) for arm in ("concat", "gated")]
    for folder in (*(cell.folder for cell in cells), tmp_path / "mean" / "0"):
        folder.mkdir(parents=True)
    assert read_test_access(tmp_path, cells).readings == 0
    for key in ("aa", "aa", "bb"):
        log_test_access(cells[1].folder, key)
    log_test_access(cells[0].folder, "cc")
    log_test_access(tmp_path / "mean" / "0", "dd")
    found = read_test_access(tmp_path, cells)
    assert (found.readings, found.others) == (4, ["mean/0"])
    assert found.again == {"gated with seed 0": RepeatedAccess(readings=3, configurations=2)}
    assert found.first <= found.last


def test_a_report_of_other_cells_is_remembered(tmp_path: Path) -> None:
    def reported(*arms: str, seeds: int = 1, **changes: Any) -> list[list[str]]:
        spec = CellSpec(stages=[], **changes)
        cells = [Cell(arm, seed, tmp_path / arm / str(seed), spec) for arm in arms for seed in range(seeds)]
        return [report.changed for report in read_test_access(tmp_path, cells).earlier]

    assert reported("concat", "gated") == []
    assert reported("concat", "gated") == []
    assert reported("concat", "gated", "mean") == [["mean with seed 0"]]
    assert reported("concat", "gated", seeds=2) == [
        ["concat with seed 1", "gated with seed 1"],
        ["concat with seed 1", "gated with seed 1", "mean with seed 0"],
    ]
    assert reported("concat", encoder_hash="bb")[0] == ["concat with seed 0", "gated with seed 0"]
