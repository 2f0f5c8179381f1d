"""The report of `fvl explain`: its files replace each other as a whole, its numbers are JSON, arms are averaged."""

import json
from math import nan, sqrt
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from scipy import stats

from fvl_lightning.attribution.makers import AVERAGED, COMPARISON_SECTIONS, RUN_SECTIONS
from fvl_lightning.attribution.over_seeds import averaged_section
from fvl_lightning.attribution.report import Explanation, check_folder, named, write_report
from fvl_lightning.attribution.request import (
    REPLACEMENTS,
    SECTIONS,
    ExplainRequest,
    known_replacements,
    known_sections,
    report_folder,
)
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.modeling.connector.replacement import REPLACEMENTS as MODEL_REPLACEMENTS
from fvl_lightning.reporting.section import Section
from fvl_lightning.reporting.tables import Grid


def section(name: str = "gates", stem: str = "gates_map", **numbers: float) -> Section:
    return Section(
        name,
        name.title(),
        ["`ocr` has the largest weight.", "A weight is not use."],
        [Grid("Weights", ["source", "weight"], [["a|b", "0.5"]], "A note.")],
        {stem: Figure(figsize=(1, 1))},
        {"per_source": numbers, "per_source_means": "weight", "list": [1, nan]},
        {stem: "Weights on pictures."},
    )


def test_a_report_has_findings_first_and_replaces_an_earlier_one_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "explain"
    write_report(Explanation("runs/a", {"gates": section(stem="gates_old", davit=0.25)}, folder))
    (folder / "notes.txt").write_text("mine")
    check_folder(folder)
    report = write_report(Explanation("runs/a", {"gates": section(davit=0.5)}, folder, {"asked": "8 questions"}))
    text = report.read_text(encoding="utf-8")
    assert text.startswith(
        "# What each source is worth: runs/a\n\n- **Gates.** `ocr` has the largest weight.\n\n- asked"
    )
    assert text.index("8 questions") < text.index("## Gates") < text.index("### Weights")
    assert "![Weights on pictures.](figures/gates_map.png)" in text
    assert r"| a\|b | 0.5 |" in text
    assert [path.name for path in (folder / "figures").iterdir()] == ["gates_map.png"]
    found = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
    assert found["sections"]["gates"]["values"] == {
        "per_source": {"davit": 0.5}, "per_source_means": "weight", "list": [1, None]
    }  # fmt: skip
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "figures/" not in page
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_report_that_cannot_be_drawn_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_report(Explanation("runs/a", {"gates": section(davit=0.25)}, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wrong = Section("gates", "Gates", ["."], values={"set": {1, 2}})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_report(Explanation("runs/a", {"gates": wrong}, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ConfigError, match="has other files and no report"):
        check_folder(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        check_folder(tmp_path / "thesis.tex")
    check_folder(tmp_path / "new")


def test_several_reports_have_folders_of_their_own() -> None:
    run = Path("runs/a/finetune")
    assert report_folder(run, None, True) == run / "explain"
    assert report_folder(run, Path("out"), False) == Path("out")
    assert report_folder(run, Path("out"), True) == Path("out/runs_a_finetune")


def test_sections_are_asked_for_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"--only: unknown section 'knock_outt', allowed: .*; did you mean 'knock_out'\?"
    ):
        known_sections(["knock_outt"])
    request = ExplainRequest(known_sections(["knock_out", "knock_out"]))
    assert request.wanted(RUN_SECTIONS, "runs/a") == ["knock_out"]
    with pytest.raises(ConfigError, match="--only: runs/b has no section knock_out, it has alignment"):
        request.wanted(["alignment"], "runs/b")
    assert [*dict.fromkeys([*RUN_SECTIONS, *COMPARISON_SECTIONS]), "alignment"] == [*SECTIONS]
    assert set(AVERAGED) <= set(RUN_SECTIONS)


def test_replacements_are_those_of_the_model() -> None:
    assert set(REPLACEMENTS) == set(MODEL_REPLACEMENTS)
    with pytest.raises(ConfigError, match=r"--replace: unknown replacement 'means', .*; did you mean 'mean'\?"):
        known_replacements(["means"])
    with pytest.raises(ConfigError, match="--replace: unknown replacement ''"):
        known_replacements([])


def test_two_sections_of_one_name_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="share a name or a figure"):
        named([section(), section(stem="gates_other")])
    with pytest.raises(ValueError, match="no stem of a figure"):
        section(stem="other")


def test_arms_are_averaged_over_seeds_with_their_t_intervals() -> None:
    values = [0.2, 0.3, 0.7]
    arms = {
        "gated": {seed: section(davit=value, ocr=0.1) for seed, value in enumerate(values)},
        "concat": {0: section()},
    }
    found = averaged_section("gates", arms)
    davit = found.values["arms"]["gated"]["davit"]
    half = stats.t.ppf(0.975, 2) * float(stats.tstd(values)) / sqrt(3)
    assert davit["mean"] == pytest.approx(0.4)
    assert davit["interval"] == pytest.approx([0.4 - half, 0.4 + half])
    assert davit["seeds"] == {"0": 0.2, "1": 0.3, "2": 0.7}
    assert "`davit` in 1 of 1 arm" in found.paragraphs[0]
    assert "3 seeds" in found.paragraphs[1]
    assert "concat: no such numbers" in found.paragraphs[1]
    assert list(found.figures) == ["gates_arms"]
