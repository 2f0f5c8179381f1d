"""What a run or a comparison may be called: a folder below `output`, and nothing that leads out of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.atomic import check_folder_name
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig

GOOD = ["a", "lora[r=8]", "sweep/b", "a b", "a .", "-x", "...", "..x", "50%#?&'\"", "größe", "x" * 200]


@pytest.mark.parametrize("name", GOOD)
def test_names(name: str) -> None:
    check_folder_name(name, "name")


REFUSED = {
    "../x": "name must be a folder inside `output`, which ../x is not; set `output` instead",
    "a/../../x": "name must be a folder inside `output`, which a/../../x is not; set `output` instead",
    "..": "name must be a folder inside `output`, which .. is not; set `output` instead",
    "/tmp/x": "name must be a folder inside `output`, which /tmp/x is not; set `output` instead",
    "": "name must be a name, or names with / between them such as sweep/b, not ''",
    " ": "name must be a name, or names with / between them such as sweep/b, not ' '",
    ".": "name must be a name, or names with / between them such as sweep/b, not '.'",
    "a//b": "name must be a name, or names with / between them such as sweep/b, not 'a//b'",
    "a/": "name must be a name, or names with / between them such as sweep/b, not 'a/'",
    "a\nb": "name must be of printable characters, not 'a\\nb'",
    "a\0b": "name must be of printable characters, not 'a\\x00b'",
    "ü" * 101: "name is too long for a folder: at most 200 bytes, not 202",
    "a/" + "x" * 201: "name is too long for a folder: at most 200 bytes, not 201",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_folder_name(name, "name")
    assert str(caught.value) == REFUSED[name]


@pytest.mark.parametrize("schema", [ExperimentConfig, ComparisonConfig])
def test_a_configuration_refuses_them_before_anything_is_done(schema: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: ../x\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(schema, path)
    assert str(caught.value) == f"configuration in {path}: {REFUSED['../x']}"
