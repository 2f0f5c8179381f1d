"""The public names of fvl_lightning: loaded on first use, and the same for type checkers."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fvl_lightning


def test_every_public_name_is_there() -> None:
    for name in fvl_lightning.__all__:
        assert getattr(fvl_lightning, name).__name__ == name
    assert set(fvl_lightning.__all__) <= set(dir(fvl_lightning))


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(Path(inspect.getfile(fvl_lightning)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    assert seen == fvl_lightning._MODULES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'FlorenceVl'"):
        _ = fvl_lightning.FlorenceVl


def test_a_class_from_the_top_level_is_known_to_transformers() -> None:
    program = (
        "from fvl_lightning import FlorenceVLConfig\nfrom transformers import AutoConfig, AutoProcessor\n"
        "from transformers import AutoModelForImageTextToText as Auto\n"
        "assert AutoConfig.for_model('florence_vl').__class__ is FlorenceVLConfig\n"
        "assert FlorenceVLConfig in Auto._model_mapping"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
