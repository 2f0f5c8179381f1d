"""Reads the documentation of a configuration's fields: the strings below them in the source."""

import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise
from typing import Any


def field_meanings(config: Any) -> dict[str, str]:
    """Returns {field: the string below it} for the documented fields of a dataclass, inherited ones included."""
    docs: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        docs |= _own_meanings(owner)
    return docs


def _own_meanings(owner: Any) -> dict[str, str]:
    try:  # core.component_sources attaches the definition to the classes it makes
        definition = vars(owner).get("__definition__") or ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    except OSError:  # a class that was typed into an interpreter has no source
        return {}
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, text in pairwise(definition.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value)).replace("\n", " ")
    return docs
