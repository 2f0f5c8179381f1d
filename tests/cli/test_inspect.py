"""Help, `list`, `describe` and `show`: what there is and what an experiment comes to, without training."""

import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from fvl_lightning import __version__
from fvl_lightning.cli.inspect import describe
from fvl_lightning.cli.main import run
from fvl_lightning.core import registry
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, TINY_DATA, Run

VERBS = ("demo", "train", "launch", "compare", "evaluate", "generate", "list", "describe", "show", "doctor", "ui")
FINETUNE = "experiments/demo/finetune.yaml"


def test_help_names_every_verb_and_an_example(tmp_path: Path, fvl_here: Run) -> None:
    done = fvl_here(tmp_path, "--help")
    assert done.returncode == 0
    for verb in (*VERBS, "shards", "import"):
        assert re.search(rf"[│ ] {verb} ", done.stdout), verb
    assert "fvl demo --quick" in done.stdout


def test_without_a_verb_the_help_is_shown(tmp_path: Path, fvl_here: Run) -> None:
    done = fvl_here(tmp_path)
    assert "fvl demo --quick" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_ends_in_an_example_that_it_understands(verb: str, tmp_path: Path, fvl_here: Run) -> None:
    done = fvl_here(tmp_path, verb, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    example = re.search(r"Example: (fvl .+?)(?= ╭| \W*Arguments| \W*Options)", text)
    assert example is not None, text
    words = shlex.split(example[1])
    assert words[:2] == ["fvl", verb]
    options = [word for word in words if word.startswith("--")]
    assert all(f" {option} " in text for option in options)


def test_a_process_ends_with_the_exit_code_and_the_sentence(tmp_path: Path, fvl: Run) -> None:
    done = fvl(tmp_path, "list", "fusions")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: slot: unknown slot 'fusions'")
    assert done.stderr.count("\n") == 1


def test_list_has_every_component_with_what_it_is(tmp_path: Path, fvl_here: Run) -> None:
    done = fvl_here(tmp_path, "list")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    expected = [[slot, name] for slot in registry.SLOT_PACKAGES for name in registry.names(slot)]
    assert [row[:2] for row in rows] == expected
    assert all(len(row[2]) > 10 for row in rows)
    only = fvl_here(tmp_path, "list", "projector").stdout
    assert "mlp" in only
    assert "gated" not in only


def test_describe_says_what_each_field_means(tmp_path: Path, fvl_here: Run) -> None:
    done = fvl_here(tmp_path, "describe", "fusion", "attention")
    assert "AttentionFusion" in done.stdout
    assert re.search(r"heads\s*│ int, at least 1\s*│ 4\s*│ Attention heads; must divide the width\.", done.stdout)
    assert "Literal['learned', 'first']" in done.stdout
    inherited = fvl_here(tmp_path, "describe", "data", "demo").stdout
    for field in ("level", "max_bad_fraction"):
        assert re.search(rf"{field} .*│ .*\w\.", inherited), field
    assert "Nothing to set" in fvl_here(tmp_path, "describe", "projector", "linear").stdout


def test_describe_takes_sections_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    for words, part in {
        ("trainer",): "max_steps",
        ("lora",): "quantization",
        ("optimizer", "betas"): "0.95",
        ("trainer.devices",): "Processes per machine",
        ("init_from",): "list[path]",
        ("data",): "webdataset",
        (): "`fvl describe",
        ("comparison",): "smallest_effect",
    }.items():
        describe(*words)
        assert part in " ".join(capsys.readouterr().out.split()), words
    describe("optimizer", "betas")
    assert "learning_rate" not in capsys.readouterr().out


def test_version_names_the_kit_and_its_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    said = capsys.readouterr().out.split("\n")
    assert said[0] == f"fvl_lightning {__version__}"
    assert f"torch {version('torch')}" in said


def test_describe_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    describe("data", "shards")
    said = capsys.readouterr().out
    assert "…" not in said
    meanings = "".join(line.split("│")[4].strip() for line in said.splitlines() if line.startswith("│"))
    assert "fvl-lightning[simplejpeg]" in meanings
    describe("source", "pairs")
    assert re.search(r"images +│ path +│ \(needed\) +│", capsys.readouterr().out)


@pytest.mark.parametrize(("slot", "name"), [(slot, name) for slot in registry.SLOT_PACKAGES for name in registry.names(slot)])  # fmt: skip  # noqa: E501
def test_every_component_can_be_described(slot: str, name: str, tmp_path: Path, fvl_here: Run) -> None:
    done = fvl_here(tmp_path, "describe", slot, name)
    assert done.returncode == 0, done.stderr
    assert f"{slot} {name}" in done.stdout


def test_show_resolves_and_counts_what_train_then_trains(workspace: Path, fvl_here: Run) -> None:
    words = (FINETUNE, *TINY, "fusion=attention", "fusion.heads=8")
    shown = fvl_here(workspace, "show", *words)
    assert shown.returncode == 0, shown.stderr
    assert not (workspace / "runs").exists()
    resolved = yaml.safe_load(shown.stdout.split("finetune: stage finetune")[0])
    assert resolved["fusion"] == {"name": "attention", "query": "first", "heads": 8, "dim": None, "condition": None}
    assert resolved["trainer"]["max_steps"] == 3
    table = {}
    for line in shown.stdout.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) == 4:
            table[cells[0]] = [int(cells[1].replace(",", "")), int(cells[2].replace(",", "")), cells[3]]
    assert table["encoder"][1:] == [0, "frozen"]
    assert table["language_model"][2] == "full"
    assert fvl_here(workspace, "train", *words).returncode == 0
    run = RunFolder(workspace / "runs" / "finetune")
    assert run.config == resolved
    counted = {name: [entry["parameters"], entry["trainable"]] for name, entry in run.info["components"].items()}
    assert counted == {name: row[:2] for name, row in table.items()}


def test_show_draws_no_images(workspace: Path, fvl_here: Run) -> None:
    before = sorted((workspace / "data" / "demo").iterdir())
    shown = fvl_here(workspace, "show", FINETUNE, "data.train_images=77")
    assert shown.returncode == 0, shown.stderr
    assert sorted((workspace / "data" / "demo").iterdir()) == before


def test_what_show_prints_is_an_experiment(workspace: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = fvl_here(workspace, "show", "experiments/demo/encoder_pretrain.yaml", *TINY_DATA).stdout
    (workspace / "again.yaml").write_text(shown.split("encoder_pretrain: stage")[0], encoding="utf-8")
    monkeypatch.chdir(workspace)
    again = load_config(ExperimentConfig, Path("again.yaml"))
    assert again == load_config(ExperimentConfig, Path("experiments/demo/encoder_pretrain.yaml"), TINY_DATA)
