"""compare: the results of a small comparison, run in this process, are those on disk; nothing is printed."""

from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.api.comparison import compare, open_comparison
from fvl_lightning.api.experiment import load_experiment
from fvl_lightning.api.run import open_run
from fvl_lightning.core.errors import ConfigError, DataError
from tests.conftest import ROOT
from tests.integration.test_comparison import Here, workplace


@pytest.mark.slow
def test_a_comparison_returns_what_it_has_written(
    tmp_path: Path, tiny_data: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(workplace(tmp_path, tiny_data, empty_store))
    monkeypatch.setattr("fvl_lightning.comparison.run.LocalLauncher", lambda jobs: Here())
    comparison = compare("tiny.yaml", {"seeds": [0]})
    assert capsys.readouterr().out == ""
    assert open_comparison("runs/tiny").plain() == comparison.plain()
    for arm in comparison.arms.values():
        run = open_run(arm.runs["finetune"])
        assert run.scores()["accuracy/macro"] == arm.scores["accuracy"].macro


def test_a_mistake_is_an_error_of_the_kit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jobs in the overrides: expected a whole number"):
        compare(ROOT / "experiments" / "demo" / "comparison.yaml", {"jobs": "many"})
    with pytest.raises(DataError, match=r"comparison\.json cannot be read"):
        open_comparison(tmp_path)
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="is a run, not the folder of a comparison; open_run and"):
        open_comparison(tmp_path)
    other = tmp_path / "other"
    (other / "concat").mkdir(parents=True)
    (other / "concat" / "run.json").write_text("{}", encoding="utf-8")
    for content in ("[]", '{"name": 3}', '{"arms": [1]}', "{"):
        (other / "comparison.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError):
            open_comparison(other)
    with pytest.raises(DataError, match=r"is the folder of a comparison, not of a run; its runs: .*other/concat$"):
        open_run(other)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda file: load_experiment(file("comparison")), "stages in .*: this is a comparison file, which `fvl c"),
        (lambda file: compare(file("finetune")), "stage in .*: this is an experiment file, which `fvl train` takes"),
    ],
)
def test_a_file_of_another_kind_is_named(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        given(lambda name: ROOT / "experiments" / "demo" / f"{name}.yaml")
