"""How a component is written down: its docstrings, and the names of its class and file."""

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any

from fvl_lightning.core import registry

CLASS_ENDINGS = {
    "encoder": "Encoder",
    "fusion": "Fusion",
    "projector": "Projector",
    "language_model": "LanguageModel",
    "stage": "Stage",
    "logger": "Logger",
    "callback": "Callback",
    "metric": "Metric",
    "data": "Data",
    "source": "Source",
}
"""How the classes of a slot are named after their stem."""


def check_documented(component: type[Any]) -> None:
    """The class, its Config and every field of the Config say what they are; a Config is a dataclass."""
    assert dataclasses.is_dataclass(component.Config), f"{component.__name__}.Config is no dataclass"
    assert component.__doc__, f"{component.__name__} has no docstring"
    own = [base for base in component.Config.__mro__ if dataclasses.is_dataclass(base)]
    for config in own:
        class_docstring, documented = _field_docstrings(config)
        assert class_docstring, f"{config.__qualname__} has no docstring"
        annotated = set(config.__annotations__)
        assert annotated == documented, f"{config.__qualname__}: no docstring under {sorted(annotated - documented)}"


def check_naming(slot: str, name: str) -> None:
    """Registered name, file name and the stem of the class are one: "gated", gated.py, GatedFusion."""
    component = registry.component(slot, name)
    path = Path(inspect.getfile(component))
    assert name in (path.stem, path.parent.name), f"{slot} '{name}' is registered in {path.name}"
    stem, ending = component.__name__, CLASS_ENDINGS[slot]
    assert stem.endswith(ending), f"{stem} does not end in {ending}"
    assert stem.removesuffix(ending).lower() == name.replace("_", ""), f"{slot} '{name}' is filled by {stem}"


def _field_docstrings(config: type[Any]) -> tuple[str | None, set[str]]:
    """The docstring of a dataclass, and the names of its fields with a docstring under them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    documented = set()
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and _is_text(following):
            documented.add(statement.target.id)
    return ast.get_docstring(body), documented


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
