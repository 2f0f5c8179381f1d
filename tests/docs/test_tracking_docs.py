"""docs/tracking.md: its commands and files are understood by the kit and by the pinned MLflow."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import mlflow.cli
import mlflow.environment_variables
import pytest
import yaml

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig, TrackingConfig
from fvl_lightning.tracking.store import resolve_uri
from tests.conftest import ROOT, Run

PAGE = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
FILES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
COMPOSE = FILES[1]
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines() if line]
OURS = [shlex.split(line)[1:] for line in LINES if line.startswith("fvl ")]
MLFLOW = [shlex.split(line)[1:] for line in LINES if line.startswith("mlflow ")]
MLFLOW.append(shlex.split(COMPOSE["services"]["mlflow"]["command"])[1:])
MLFLOW.append(["runs", "delete", "--run-id", "RUN"])


def test_every_line_is_one_of_these() -> None:
    assert len(LINES) == len(OURS) + len(MLFLOW) - 2 + sum(line.startswith("export ") for line in LINES)
    assert [words[0] for words in OURS] == ["train", "compare", "ui", "sync"]


def test_the_key_of_the_page_is_the_default() -> None:
    told = TrackingConfig(**FILES[0]["tracking"])
    assert told.uri == TrackingConfig.uri
    assert {field.name for field in fields(TrackingConfig)} == {*FILES[0]["tracking"], "enabled"}


@pytest.mark.parametrize("words", OURS[:2], ids=lambda words: words[0])
def test_runs_find_the_server(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kind = {"train": ExperimentConfig, "compare": ComparisonConfig}[words[0]]
    config = load_config(kind, Path(words[1]), words[2:])
    assert (resolve_uri(config.tracking.uri), config.tracking.experiment) == ("https://mlflow.my-lab.org", "fusions")


@pytest.mark.parametrize("words", OURS[2:], ids=lambda words: words[0])
def test_commands_are_understood(words: list[str], tmp_path: Path, fvl_here: Run) -> None:
    """There is nothing to show or to send, and that is what they say."""
    done = fvl_here(tmp_path, *words)
    assert done.returncode == 2
    assert words[1] in done.stderr


@pytest.mark.parametrize("words", MLFLOW, ids=lambda words: words[0])
def test_mlflow_has_these_options(words: list[str]) -> None:
    command = mlflow.cli.cli
    while words and not words[0].startswith("--") and hasattr(command, "commands"):
        assert words[0] in command.commands
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    used = [word for word in words if word.startswith("--")]
    assert used
    assert set(used) <= options


def test_the_servers_variables_are_read() -> None:
    service = COMPOSE["services"]["mlflow"]
    server = mlflow.cli.cli.commands["server"]
    read = {parameter.envvar for parameter in server.params} | set(vars(mlflow.environment_variables))
    named = set(re.findall(r"\b(MLFLOW_[A-Z0-9_]+)", PAGE)) - {"MLFLOW_TRACKING_URI"}
    assert {name for name in service["environment"] if name.startswith("MLFLOW_")} < named
    assert named <= read


def test_the_server_is_the_pinned_one() -> None:
    pinned = re.search(r"^mlflow==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    assert f"mlflow[auth]=={pinned[1]}" in COMPOSE["services"]["mlflow"]["build"]["dockerfile_inline"]


def test_no_secret_stands_in_it() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|STORE_URI", name):
                assert re.search(r"\$\{[A-Z_]+:\?\}", value), name


def test_its_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^]]+\]\((images/\w+\.png)\)", PAGE)
    assert len(pictures) == 5
    for picture in pictures:
        assert (ROOT / "docs" / picture).stat().st_size < 250_000
