"""Components by exact name."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from fvl_lightning.core import registry
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.registry import SLOT_PACKAGES, component, names, register
from tests.core.tiny import Gated, Linear, Mean


def make(qualified_name: str = "Other") -> type[Any]:
    """A fresh component class."""

    class Component:
        @dataclass
        class Config:
            pass

    Component.__qualname__ = qualified_name
    return Component


@pytest.mark.usefixtures("tiny_components")
class TestRegister:
    def test_gives_the_class_back_and_makes_it_known(self) -> None:
        other = make()
        assert register("fusion", "other")(other) is other
        assert component("fusion", "other") is other
        assert names("fusion") == ["gated", "mean", "other"]

    def test_the_same_name_in_another_slot_is_another_component(self) -> None:
        register("projector", "gated")(make())
        assert component("fusion", "gated") is Gated

    def test_a_name_taken_by_another_class_raises(self) -> None:
        with pytest.raises(ConfigError, match=r"fusion 'gated' is already .*Gated"):
            register("fusion", "gated")(make())
        assert component("fusion", "gated") is Gated

    def test_a_class_defined_again_takes_its_own_place(self) -> None:
        again = make(Mean.__qualname__)
        again.__module__ = Mean.__module__
        register("fusion", "mean")(again)
        assert component("fusion", "mean") is again

    def test_an_unknown_slot_raises(self) -> None:
        with pytest.raises(ConfigError, match="unknown slot 'fusions', allowed: fusion, projector"):
            register("fusions", "other")(make())

    def test_a_component_without_a_config_raises(self) -> None:
        with pytest.raises(ConfigError, match="int needs a nested dataclass Config"):
            register("fusion", "other")(int)

    def test_a_config_of_the_parent_is_not_its_own(self) -> None:
        with pytest.raises(ConfigError, match="needs a nested dataclass Config"):
            register("fusion", "other")(type("Child", (Gated,), {}))


@pytest.mark.usefixtures("tiny_components")
class TestLookUp:
    def test_is_by_exact_name(self) -> None:
        assert component("projector", "linear") is Linear
        for almost in ("Linear", "lin", "linear ", ""):
            with pytest.raises(ConfigError, match="unknown projector"):
                component("projector", almost)

    def test_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            component("fusion", "gate", "fusion in a.yaml")
        expected = "fusion in a.yaml: unknown fusion 'gate', allowed: gated, mean; did you mean 'gated'?"
        assert str(caught.value) == expected

    def test_names_none_where_none_is_near(self) -> None:
        with pytest.raises(ConfigError) as caught:
            component("fusion", "xyz")
        assert str(caught.value) == "fusion: unknown fusion 'xyz', allowed: gated, mean"

    @pytest.mark.parametrize("look_up", [names, lambda slot: component(slot, "gated")])
    def test_of_an_unknown_slot_is_the_users_to_mend(self, look_up: Any) -> None:
        with pytest.raises(ConfigError, match=r"unknown slot 'fusio'.*did you mean 'fusion'"):
            look_up("fusio")


def test_the_first_look_up_imports_the_files_of_the_slot() -> None:
    assert {"attention", "concat", "gated", "mean", "token_concat"} <= set(names("fusion"))
    assert {"linear", "mlp"} <= set(names("projector"))


def test_file_name_and_class_stem_agree() -> None:
    for name in names("fusion"):
        found = component("fusion", name)
        if found.__module__.startswith(SLOT_PACKAGES["fusion"]):
            assert found.__module__.rpartition(".")[2] == name
            assert found.__name__ == "".join(part.title() for part in name.split("_")) + "Fusion"


def test_entry_points_of_the_slot_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Recorded(EntryPoint):
        def load(self) -> None:
            loaded.append(self.value)
            register("fusion", "of_another_package")(make())

    def entry_points(group: str) -> list[EntryPoint]:
        return [Recorded("mine", "my_lab.fusions", group)] if group == "fvl_lightning.fusion" else []

    names("fusion")  # so that the kit's own are registered for the tests after this one too
    monkeypatch.setattr(registry, "_components", {"fusion": dict(registry._components["fusion"])})
    monkeypatch.setattr(registry, "_loaded", set())
    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "of_another_package" in names("fusion")
    assert "of_another_package" in names("fusion")
    assert loaded == ["my_lab.fusions"]
