"""A ~ in front of a path is the home folder, in every field that holds a path and in every argument."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from datamodules.building.config import BuildConfig
from fvl_lightning.cli.main import FREE_TEXT, app, every_command
from fvl_lightning.cli.shards.build import read_recipe
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core import registry
from fvl_lightning.core.config.field_docs import field_meanings
from fvl_lightning.core.config.field_types import PathsText, PathText, conform
from fvl_lightning.core.config.loading import check_config, choose, load_config
from fvl_lightning.core.experiment import ExperimentConfig
from tests.core.config.own_components import own_names

HOLDS_PATHS = re.compile(r"\b([Ff]olders?|[Ff]iles?|[Pp]aths?)\b")
NO_PATHS = {
    "name", "uri", "chosen", "image", "pairs.caption", "parquet.images", "img2dataset.caption_field",
}  # fmt: skip
"""Fields whose meaning speaks of files and that hold none, such as names of columns."""


def dataclasses_in(config: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(name, dataclass) of a Config and of those in its fields' types."""
    yield name, config
    for hint in get_type_hints(config).values():
        for part in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from dataclasses_in(part, name)


def configs() -> list[tuple[str, Any]]:
    """Every Config: of experiments, comparisons, recipes, and of all components."""
    whole = {"experiment": ExperimentConfig, "comparison": ComparisonConfig, "build": BuildConfig}
    slots = [(slot, name) for slot in registry.SLOT_PACKAGES for name in own_names(slot)]
    own = {name: registry.component(slot, name).Config for slot, name in slots}
    return [pair for name, config in (whole | own).items() for pair in dataclasses_in(config, name)]


def marked(hint: Any) -> bool:
    return hint in (PathText, PathsText) or any(map(marked, get_args(hint)))


def texts(hint: Any) -> bool:
    """Whether a field of this type can hold text of one's own."""
    return hint in (str, Any) or get_origin(hint) is Annotated or any(map(texts, get_args(hint)))


def test_a_field_that_speaks_of_files_is_one_that_expands() -> None:
    for name, config in configs():
        meanings, hints = field_meanings(config), get_type_hints(config, include_extras=True)
        for field in dataclasses.fields(config):
            speaks = HOLDS_PATHS.search(meanings.get(field.name, "")) is not None
            if speaks and texts(hints[field.name]) and not {field.name, f"{name}.{field.name}"} & NO_PATHS:
                assert marked(hints[field.name]), f"{name}: {field.name} is typed PathText where it holds a path"


def test_the_walk_finds_fields() -> None:
    found = {
        f"{name}.{field.name}"
        for name, config in configs()
        for field in dataclasses.fields(config)
        if marked(get_type_hints(config, include_extras=True)[field.name])
    }
    wanted = {
        "experiment.output", "experiment.init_from", "experiment.feature_cache", "experiment.plugins",
        "comparison.stages", "build.output", "llava_json.file", "llava_json.images", "parquet.file", "shards.root",
        "shards.shards", "florence2.pretrained", "florence2.tokenizer", "causal.pretrained", "hf_vision.pretrained",
        "demo.root",
    }  # fmt: skip
    assert wanted <= found


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


def test_every_kind_of_path_field_expands(home: str) -> None:
    def taken(expected: Any, value: Any) -> Any:
        return conform(expected, value, "key", str, {})

    assert taken(PathText, "~/a") == f"{home}/a"
    assert taken(PathText | None, "~") == home
    assert taken(PathText | None, None) is None
    assert taken(list[PathText], ["~/a", "b~", "hub/name"]) == [f"{home}/a", "b~", "hub/name"]
    assert taken(list[PathText], "~/a") == [f"{home}/a"]
    assert taken(dict[str, list[PathText]], {"train": ["~/a"]}) == {"train": [f"{home}/a"]}
    assert taken(PathsText, "~/*.json") == f"{home}/*.json"
    assert taken(PathsText, ["~/a", "b"]) == [f"{home}/a", "b"]
    assert taken(PathText, "~/${name}") == f"{home}/${{name}}"
    assert taken(PathText, "~nobody-of-this-name/a") == "~nobody-of-this-name/a"
    assert taken(str, "~/a") == "~/a"


def test_files_words_and_plain_values(home: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("output: ~/runs\nname: ~x", encoding="utf-8")
    (tmp_path / "a.yaml").write_text("base: ~/base.yaml\ninit_from: [~/one, runs/two]", encoding="utf-8")
    config = load_config(ExperimentConfig, tmp_path / "a.yaml", ["feature_cache=~/cache"])
    assert (config.output, config.name) == (f"{home}/runs", "~x")
    assert config.init_from == [f"{home}/one", "runs/two"]
    assert config.feature_cache == f"{home}/cache"
    assert check_config(ExperimentConfig, {"output": "~/runs"}).output == f"{home}/runs"
    assert choose("language_model", {"name": "causal", "pretrained": "~/llama"}).config.pretrained == f"{home}/llama"


def test_a_recipe(home: str) -> None:
    recipe = read_recipe("llava_json", ["source.file=007", "source.images=~/photos", "output=~/shards"])
    assert (recipe.output, recipe.source.config.images) == (f"{home}/shards", f"{home}/photos")
    assert recipe.source.config.file == "007"


def test_arguments_of_every_command(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is called: a shell expands `~/a`, and leaves `--output=~/a` as it is."""
    commands = {command.name: command.callback for command in every_command(app)}
    assert {"train", "generate", "check", "florence-vl"} <= commands.keys()
    for callback in commands.values():
        assert callback is not None
        assert callback.__name__ == "with_homes" or hasattr(callback, "__wrapped__")
    seen: dict[str, Any] = {}
    generate = commands["generate"]
    assert generate is not None
    closed = dict(zip(generate.__code__.co_freevars, generate.__closure__ or (), strict=True))
    monkeypatch.setattr(closed["command"], "cell_contents", lambda **given: seen.update(given))
    generate(model="~/run", image=Path("~/a.png"), prompt="~/what?", adapter=["~/b"], seed=3)
    assert seen == {
        "model": f"{home}/run", "image": Path(home) / "a.png", "prompt": "~/what?", "adapter": [f"{home}/b"], "seed": 3
    }  # fmt: skip
    assert FREE_TEXT == ("prompt",)
