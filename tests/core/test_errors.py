"""The sentences for names that are not known."""

import pytest

from fvl_lightning.core.errors import ConfigError, DataError, UserError, nearest, unknown_name


@pytest.mark.parametrize(
    ("value", "close"), [("gate", "gated"), ("max_step", "max_steps"), ("gated", "gated"), ("zzz", None), ("", None)]
)
def test_nearest(value: str, close: str | None) -> None:
    assert nearest(value, ["gated", "mean", "max_steps"]) == close


def test_nearest_of_none() -> None:
    assert nearest("gated", []) is None


def test_an_unknown_name_is_said_with_place_value_allowed_and_nearest() -> None:
    error = unknown_name("key", "max_step", (name for name in ("seed", "max_steps")), "trainer in a.yaml")
    assert isinstance(error, ConfigError)
    expected = "trainer in a.yaml: unknown key 'max_step', allowed: max_steps, seed; did you mean 'max_steps'?"
    assert str(error) == expected


def test_an_unknown_name_may_be_no_string_and_nothing_may_be_allowed() -> None:
    assert str(unknown_name("key", 3, [], "fusion")) == "fusion: unknown key '3', allowed: none"


def test_what_the_user_can_mend_is_one_kind() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(DataError, UserError)
