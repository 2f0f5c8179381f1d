"""Renders chat templates, which are programs of strangers, in a sandbox that ends.

transformers' sandbox keeps a template from files and from Python, but not from running for ever or filling the memory.
Here a template is changed before it is compiled: every turn of a loop and every call is counted, and every text, list
and number that it makes has a largest size. What a template writes within these limits is what transformers writes; the
clock is missing (see core/chat_date.py).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from threading import local
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

TEMPLATE_CHARACTERS = 200_000
"""The longest template; those of Llama 3, Qwen 3 and Phi have 3,000 to 10,000 characters."""
STEPS, STEPS_PER_MESSAGE = 100_000, 100
"""Turns of loops and calls in one rendering, and more for each message; a template takes some ten for a message."""
NUMBER = 1_000_000
"""The largest number that a template may make, so that none asks for a text, list or loop of more."""
CHARACTERS = 2**22
"""The longest text that a template may make, and the most that it may write in all."""
TEXT_STEP, LIST_STEP = 10_000, 10
"""Characters and entries that are handled in the time of a step."""

STEP, CHECKED, WRITTEN = "fvl_step", "fvl_checked", "fvl_written"
"""Filters that count and check; jinja2 calls a filter faster than a function."""


class TemplateLimit(jinja2.TemplateError):
    """A template does more than a chat template needs."""


class _Counting(NodeTransformer):
    """Adds counts and checks to the syntax tree of a template."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Counts each turn, also of those that the loop's condition leaves out."""
        self.generic_visit(node)
        step = _filtered(nodes.Const(True, lineno=node.lineno), STEP)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(step, node.test, lineno=node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        """Counts what is written."""
        self.generic_visit(node)
        node.nodes = [_filtered(_constant(one), WRITTEN) for one in node.nodes]
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Expr:
        """Counts what a filter gets, and checks what it makes."""
        self.generic_visit(node)
        if not isinstance(node.node, nodes.Filter | None):  # what a filter has made is checked already
            node.node = _filtered(node.node, CHECKED)
        return _filtered(node, CHECKED)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        """Checks the text that the parts become."""
        self.generic_visit(node)
        return _filtered(node, CHECKED)

    def visit_Const(self, node: nodes.Const) -> nodes.Const:
        """Checks a constant once."""
        _check_size(node.value)
        return node


def _constant(node: nodes.Expr) -> nodes.Expr:
    return nodes.Const(node.data, lineno=node.lineno) if isinstance(node, nodes.TemplateData) else node


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _GenerationTag(Extension):
    """The tag with which some templates mark answers; what is inside is written as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Returns the statements inside the tag, in a scope of their own."""
        line = next(parser.stream).lineno
        return [nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)]


class _PublicNames(Namespace):
    """A namespace that refuses private names, by which a sandbox could be left."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"it stores {name!r}, a private name")
        super().__setitem__(name, value)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.filters |= {
            "tojson": _to_json,
            "replace": _bounded_replace(self.filters["replace"]),
            "format": _bounded_format(self.filters["format"]),
            "join": _bounded_join(self.filters["join"]),
            STEP: _at_run_time(lambda value: self.count_step()),
            CHECKED: _at_run_time(self.checked),
            WRITTEN: _at_run_time(self.count_text),
        }
        self.globals |= {"raise_exception": _raise, "dict": _dict, "namespace": _namespace}
        del self.globals["lipsum"]
        self._count = local()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends):
            if parsed.find(kind) is not None:
                raise TemplateLimit("it reads other templates")
        return _Counting().visit(parsed)

    def begin(self, messages: int) -> None:
        """Starts a rendering of so many messages in this thread."""
        self._count.steps, self._count.written = -STEPS_PER_MESSAGE * messages, 0

    def count_step(self, steps: int = 1) -> bool:
        """Counts steps; returns True, so that a condition can count."""
        self._count.steps = getattr(self._count, "steps", 0) + steps
        if self._count.steps > STEPS:
            raise TemplateLimit(f"it takes more than {STEPS:,} steps, and {STEPS_PER_MESSAGE} for each message")
        return True

    def checked(self, value: Any) -> Any:
        """Returns a value of allowed size, and counts the steps of handling it."""
        self.count_step(1 + _length(value) // (TEXT_STEP if isinstance(value, str | bytes) else LIST_STEP))
        return _check_size(value)

    def count_text(self, value: Any) -> Any:
        """Returns a value that is written, unless too much is."""
        self._count.written = getattr(self._count, "written", 0) + len(str(value))
        if self._count.written > CHARACTERS:
            raise TemplateLimit(f"it writes more than {CHARACTERS:,} characters")
        return value

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of the template, with arguments and a result within the limits."""
        owner = getattr(function, "__self__", None)
        for value in (owner, *args, *kwargs.values()):
            self.checked(value)
        if isinstance(owner, str) and function.__name__ == "replace":
            _check_replaced(owner, *args[:2])
        if isinstance(owner, str) and function.__name__ == "join" and len(args) == 1:
            args = (_joinable(args[0], owner),)
        return self.checked(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """Wraps the method `format` of a text, after a check of the widths in it."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes a sum, product or remainder that is not too large."""
        if operator == "**":
            raise TemplateLimit("it computes a power")
        if operator == "*" and isinstance(left, int) != isinstance(right, int):
            _check_size(range(abs(left if isinstance(left, int) else right) * max(_length(left), _length(right))))
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        return self.checked(super().call_binop(context, operator, left, right))


def _at_run_time(filter: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Returns a filter that jinja2 does not compute while it compiles, since it asks for the context."""

    @jinja2.pass_context
    def called(context: Any, value: Any) -> Any:
        return filter(value)

    return called


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | range) else 1


def _check_size(value: Any, entries: int = NUMBER) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > NUMBER:
        raise TemplateLimit(f"it computes with numbers above {NUMBER:,}")
    if _length(value) > (CHARACTERS if isinstance(value, str | bytes) else entries):
        raise TemplateLimit("it makes a text or list that is too large")
    return value


def _check_replaced(text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
    _check_size(range(len(str(text)) + str(text).count(str(old)) * len(str(new))), CHARACTERS)


def _check_format(text: str) -> None:
    """Checks the widths that a format asks for; a width that comes from a value is refused."""
    widths = [int(digits[:9]) for digits in re.findall("[0-9]+", text)]
    if sum(widths) > CHARACTERS or re.search(r"%[^a-zA-Z%]*\*|{[^{}]*{", text.replace("{{", "")):
        raise TemplateLimit("it makes a text that is too large")


def _bounded_format(format: Callable[..., str]) -> Callable[..., str]:
    def bounded(value: str, *args: Any, **kwargs: Any) -> str:
        _check_format(str(value))
        return format(value, *args, **kwargs)

    return bounded


def _joinable(values: Any, between: str) -> list[Any]:
    """Returns the entries of what is to be joined, unless the text would be too large."""
    entries = list(islice(values, NUMBER))
    texts = sum(len(one) for one in entries if isinstance(one, str))
    _check_size(range(len(between) * len(entries) + texts), CHARACTERS)
    return entries


def _bounded_join(join: Callable[..., str]) -> Callable[..., str]:
    @jinja2.pass_eval_context
    def bounded(eval_ctx: Any, value: Any, d: str = "", attribute: str | int | None = None) -> str:
        return join(eval_ctx, _joinable(value, str(d)), d, attribute)

    return bounded


def _bounded_replace(replace: Callable[..., Any]) -> Callable[..., Any]:
    @jinja2.pass_eval_context
    def bounded(eval_ctx: Any, s: str, old: str, new: str, count: int | None = None) -> str:
        _check_replaced(s, old, new)
        return replace(eval_ctx, s, old, new, count)

    return bounded


def _raise(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _dict(*given: Any, **values: Any) -> dict[Any, Any]:
    return dict(*given, **values)


def _namespace(*given: Any, **values: Any) -> Namespace:
    made = _PublicNames()
    for name, value in dict(*given, **values).items():
        made[str(name)] = value
    return made


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=64)
def _compiled(template: str) -> jinja2.Template:
    if len(template) > TEMPLATE_CHARACTERS:
        raise TemplateLimit(f"it has {len(template):,} characters, more than {TEMPLATE_CHARACTERS:,}")
    return BoundedEnvironment().from_string(template)


def render_template(template: str, messages: Sequence[Mapping[str, str]], **values: Any) -> str:
    """Returns what a chat template writes for messages of a role and a text each.

    Args:
        template: Jinja text.
        messages: the conversation.
        values: what else the template may ask for, such as add_generation_prompt and bos_token.

    Raises:
        jinja2.TemplateError: the template refuses the messages, cannot be compiled or run, or reaches a limit; the
            message is the end of a sentence about the template.
    """
    try:
        compiled = _compiled(template)
        compiled.environment.begin(len(messages))  # type: ignore[attr-defined]
        return compiled.render(messages=[dict(message) for message in messages], tools=None, documents=None, **values)
    except jinja2.TemplateError:
        raise
    except Exception as error:  # a template may raise whatever Python raises
        raise jinja2.TemplateError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
