"""Reads and writes YAML that keeps the characters of numbers, booleans and nulls.

The meaning of a plain scalar depends on its field: 12e5 is a number for a learning rate, and text for a name. So it is
read as a Scalar, which has both, until the type of its field is known. Unlike in YAML 1.1, 1e-4 is a number, 010 is
ten, 12:30 and 2024-01-01 are text, keys are text, and a duplicate key is an error.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

Texts = Mapping[str, str]
"""{dotted path: the characters of the plain scalar there}; the items of a list are 0, 1, ..."""
STRING = "tag:yaml.org,2002:str"
MERGE = "tag:yaml.org,2002:merge"


MAX_DEPTH, MAX_NODES = 100, 1_000_000
"""Levels of the deepest tree, and values of the largest, that are read."""


@dataclass(frozen=True)
class Scalar:
    """A plain scalar that YAML does not read as text: its characters, and the value that YAML gives them."""

    text: str
    value: Any

    def __repr__(self) -> str:
        return repr(self.value)


class Loader(yaml.SafeLoader):
    """Reads plain scalars as Scalars."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses a duplicate key."""
        node = super().compose_mapping_node(anchor)
        written: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in written:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is written twice", problem_mark=key.start_mark)
            written.add(str(key.value))
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Reads keys as text."""
        self.flatten_mapping(node)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = STRING
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Keeps the characters of a plain scalar that is not text."""
        value = super().construct_object(node, deep=deep)
        if isinstance(node, yaml.ScalarNode) and node.style is None and node.tag != STRING:
            return Scalar(node.value, value)
        return value


class Dumper(yaml.SafeDumper):
    """Quotes text that any YAML reader, Loader included, would read as something else."""


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    digits = node.value.replace("_", "")
    try:
        return int(digits, 0 if re.match("[-+]?0[box]", digits) else 10)
    except ValueError:  # more digits than Python parses
        return node.value


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    value = loader.construct_yaml_float(node)
    return node.value if math.isinf(value) and "inf" not in node.value.lower() else value


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line ends unquoted, and reads them back as other characters.
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar(STRING, text, style)


_NONE = "!python-none"
_WORDS = ("yes", "no", "true", "false", "on", "off")
_BOOLEANS = [form(word) for word in _WORDS for form in (str.lower, str.title, str.upper)]
_DIGITS = "-+0123456789"
_EXPONENT = r"([eE][-+]?\d+)"
_PLAIN = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("tag:yaml.org,2002:bool", "|".join(_BOOLEANS), "yYnNtTfFoO"),
    ("tag:yaml.org,2002:int", r"[-+]?(0b[01][01_]*|0o[0-7][0-7_]*|0x[\da-fA-F][\da-fA-F_]*|\d[\d_]*)", _DIGITS),
    ("tag:yaml.org,2002:float", rf"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*){_EXPONENT}?", f".{_DIGITS}"),
    ("tag:yaml.org,2002:float", rf"[-+]?\d[\d_]*{_EXPONENT}", _DIGITS),
    ("tag:yaml.org,2002:float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    (_NONE, "None", "N"),
    (MERGE, "<<", "<"),
)
"""(tag, pattern, possible first characters) of the plain scalars that are not text."""
for _tag, _pattern, _first in _PLAIN:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$", re.ASCII), [*_first])
Dumper.add_representer(str, _text)
Loader.add_constructor("tag:yaml.org,2002:int", _integer)
Loader.add_constructor("tag:yaml.org,2002:float", _float)
Loader.add_constructor(_NONE, lambda loader, node: node.value)
Loader.add_constructor(MERGE, lambda loader, node: node.value)


def read_yaml(text: str) -> Any:
    """Parses YAML into containers, text and Scalars.

    Raises:
        yaml.YAMLError: it is not valid, is nested too deeply, or is too large with its aliases written out.
    """
    try:
        tree = yaml.load(text, Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    waiting, nodes = [(tree, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        inner = list(node.values()) if isinstance(node, Mapping) else node if isinstance(node, list) else ()
        nodes += 1 + len(inner)
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            what = "is nested too deeply" if depth > MAX_DEPTH else "has too many values, with its aliases written out"
            raise yaml.YAMLError(f"it {what}")
        waiting += [(value, depth + 1) for value in inner if isinstance(value, Mapping | list)]
    return tree


def write_yaml(plain: Any) -> str:
    """Returns plain containers as YAML that any reader reads back as the same values."""
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def one_line(value: Any) -> str:
    """Returns a value as it may follow key= on the command line; a Scalar keeps its characters."""
    if isinstance(value, Scalar):
        return value.text or "null"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{one_line(str(key))}: {one_line(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(one_line, value))}]"
    # JSON is valid YAML, except for surrogate pairs, line ends and characters that a file may not contain.
    unfit = r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]"
    return re.sub(unfit, _escaped, json.dumps(value, ensure_ascii=False))


def _escaped(letter: re.Match[str]) -> str:
    return f"\\u{ord(letter[0]):04x}"


def plain(tree: Any) -> Any:
    """Replaces every Scalar in a tree by its value."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list) else tree


def texts_of(tree: Any, path: str = "") -> dict[str, str]:
    """Returns the characters of all Scalars in a tree, by dotted path."""
    if isinstance(tree, Scalar):
        return {path: tree.text}
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(tree, Mapping):
        inner = iter(tree.items())
    elif isinstance(tree, list):
        inner = iter(enumerate(tree))
    return {key: text for name, value in inner for key, text in texts_of(value, joined(path, name)).items()}


def with_texts(tree: Any, texts: Texts, path: str = "") -> Any:
    """Reverses `plain`: makes Scalars where `texts` has characters."""
    if isinstance(tree, Mapping):
        return {key: with_texts(value, texts, joined(path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [with_texts(value, texts, joined(path, number)) for number, value in enumerate(tree)]
    return Scalar(texts[path], tree) if path in texts else tree


def texts_under(texts: Texts, path: str) -> dict[str, str]:
    """Returns the texts below `path`, by their paths relative to it."""
    return {key[len(path) + 1 :]: text for key, text in texts.items() if key.startswith(f"{path}.")}


def joined(path: str, key: Any) -> str:
    """Joins a dotted path and a key."""
    return f"{path}.{key}" if path else str(key)
