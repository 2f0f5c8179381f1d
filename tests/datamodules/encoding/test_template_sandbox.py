"""Chat templates of strangers end, within a little time and memory, and every error of theirs is a sentence."""

from types import SimpleNamespace
from typing import Any

import pytest

from datamodules.encoding import template_sandbox
from datamodules.encoding.chat_template import ChatTemplate
from datamodules.encoding.template_sandbox import render_template
from fvl_lightning.core.chat_date import dated
from fvl_lightning.core.errors import DataError
from tests.datamodules.encoding.templates import ALL_FAMILIES

MESSAGES = [{"role": "user", "content": "hi <x>"}, {"role": "assistant", "content": "yes"}]
ROUND = "{% for i in range(99999) %}"
HOSTILE = {
    "sum": "{{ 1 + 'a' }}",
    "division": "{{ 1 // 0 }}",
    "include": "{% include 'x' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "from": "{% from 'a' import b %}",
    "extends": "{% extends 'a' %}",
    "nested loops": ROUND * 3 + "{% endfor %}" * 3,
    "nested loops with a condition": ROUND + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loops in a block": "{% set x %}" + ROUND * 2 + "a{% endfor %}{% endfor %}{% endset %}",
    "filters in a loop": ROUND + "{% set y = range(99999)|map('string')|join %}{% endfor %}",
    "a macro that calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a tree of calls": "{% macro f(x) %}{% if x > 0 %}{{ f(x-1) }}{{ f(x-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "a long product": "{{ 'a' * 10000000000 }}",
    "a product of products": "{{ 'a' * 100000 * 100000 }}",
    "a list of products": "{{ [1] * 1000000 * 1000000 }}",
    "power": "{{ 10 ** 100000000 }}",
    "power of a variable": "{% set n = 9 %}{{ n ** n ** n ** n }}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling a list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "squaring": "{% set n = namespace(x=2) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "center": "{{ 'a'|center(100000000000) }}",
    "ljust": "{{ 'a'.ljust(100000000000) }}",
    "width of %": "{{ '%10000000000d' % 1 }}",
    "width of format": "{{ '{:>10000000000}'.format(1) }}",
    "width from a value": "{{ '{:{}}'.format(1, '9999999999') }}",
    "width of the filter": "{{ '%10000000000d'|format(1) }}",
    "replace": "{% set b = 'a' * 100000 %}{{ b.replace('a', b) }}",
    "the filter replace": "{% set b = 'a' * 100000 %}{{ b|replace('a', b) }}",
    "join": "{% set b = 'a' * 100000 %}{{ b.join(b) }}",
    "the filter join": "{% set b = 'a' * 100000 %}{{ range(99999)|join(b) }}",
    "much text": "{% set b = 'x' * 1000000 %}" + ROUND + "{{ b }}{% endfor %}",
    "much fixed text": ROUND + "x" * 1000 + "{% endfor %}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "long": "a" * 300_000,
    "syntax": "{% for %}",
    "no filter": "{{ 'a'|nothing }}",
    "undefined": "{{ a.b.c }}",
    "private": "{{ ''.__class__.__mro__ }}",
    "private name": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "its own error": "{{ raise_exception('no system\nhere') }}",
    "wide JSON": "{{ messages|tojson(indent=1000000) }}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_a_sentence(template: str) -> None:
    tokenizer = SimpleNamespace(chat_template=template, get_chat_template=lambda: template, special_tokens_map={})
    with pytest.raises(DataError, match="the chat template refuses the roles user: ") as refused:
        ChatTemplate(tokenizer).render(["user"], ["hi <x>"])
    assert "\n" not in str(refused.value)


WORKING = (
    "{%- set ns = namespace(n=1) -%}\n{% for m in messages if m.role != 'tool' %}\n  {{ '<|' + m['role'] + '|>' }}"
    "{% generation %}{{ m.content | trim ~ eos_token }}{% endgeneration %}\n{% set ns.n = ns.n * 1 + 1 %}"
    "{% if loop.last %}!{% break %}{% endif %}{% endfor %}{{ ns.n }} {{ messages | tojson(indent=2) }}"
    "{{ messages | map(attribute='content') | join(', ') }} {{ '%s of %d' % ('a', 2) }} {{ '{:>4}'.format(3) }}"
    "{{ 'a b'.replace(' ', '-') }} {{ dict(a=1)['a'] }} {{ messages[::-1][0]['content'].split('e')[-1] }}{{ nobody }}"
    "{%- macro f(x) %}[{{ x }}]{% endmacro -%}{{ f('y') }}{{ '-' * 3 }}{% if add_generation_prompt %}\n>{% endif %}\n"
)


@pytest.mark.parametrize("template", [WORKING, *(family.template for family in ALL_FAMILIES.values())])
def test_other_templates_write_what_transformers_writes(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    values: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
    template = dated(template)  # whoever renders a template has put the day into it
    for generate in (True, False):
        (wanted,), _ = render_jinja_template(
            [MESSAGES], chat_template=template, add_generation_prompt=generate, **values
        )
        assert render_template(template, MESSAGES, add_generation_prompt=generate, **values) == wanted


def test_a_template_with_a_day_has_a_long_chain_of_filters() -> None:
    template = dated("{{ strftime_now('%d %B %Y') }}{% for m in messages %} {{ m.content }}{% endfor %}")
    assert render_template(template, MESSAGES) == "26 July 2024 hi <x> yes"


def test_a_long_conversation_is_within_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "STEPS", 20_000)
    messages = [{"role": role, "content": "word " * 200} for _ in range(200) for role in ("user", "assistant")]
    assert len(render_template(WORKING, messages, eos_token="</s>")) > 400_000
