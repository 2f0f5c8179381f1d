"""Expressions of an adapter's configuration for the names of layers."""

import pytest

from fvl_lightning.core.errors import DataError
from fvl_lightning.modeling.adapters import patterns
from fvl_lightning.modeling.adapters.patterns import check_patterns

NAMES = ["language_model.model.layers.0.self_attn.q_proj", "a" * 60 + "!"]


def test_an_expression_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "PROGRAM", patterns.PROGRAM.replace("(5, 5)", "(1, 1)"))
    with pytest.raises(DataError, match="the adapter x: its expressions for names of layers take more than 5 seconds"):
        check_patterns(["q_proj", "(a+)+$"], NAMES, "the adapter x")


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(DataError, match=r"cannot be used: .*nothing to repeat"):
        check_patterns(["*"], NAMES, "the adapter x")


def test_expressions_that_name_layers_are_taken() -> None:
    check_patterns([None, 3, "q_proj", r"language_model\.(?:.*\.)?(?:q_proj|v_proj)"], NAMES, "the adapter x")
