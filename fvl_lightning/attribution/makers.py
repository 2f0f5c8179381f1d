"""The functions that make the sections of a run and of a comparison, under the names of request.py."""

from collections.abc import Callable, Mapping, Sequence

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.inside.gates_section import gates_section
from fvl_lightning.attribution.inside.gradients_section import gradients_section
from fvl_lightning.attribution.knock_out.section import knock_out_section
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.attribution.ranking.measures import OF_RUNS, ranking_section
from fvl_lightning.attribution.request import ExplainRequest
from fvl_lightning.attribution.retrained.section import retrained_section
from fvl_lightning.attribution.views.answers import answer_attention_section
from fvl_lightning.attribution.views.features import views_section
from fvl_lightning.attribution.views.prompts import prompts_sections
from fvl_lightning.reporting.section import Section

RunSections = Callable[[OpenedRun, ExplainRequest], Sequence[Section]]
ComparisonSections = Callable[[OpenedComparison, ExplainRequest], Sequence[Section]]


def _gates(opened: OpenedRun, request: ExplainRequest) -> list[Section]:
    return [gates_section(opened)]


def _gradients(opened: OpenedRun, request: ExplainRequest) -> list[Section]:
    return [gradients_section(opened)]


def _knock_out(opened: OpenedRun, request: ExplainRequest) -> list[Section]:
    return [knock_out_section(opened, request.replacements, request.subsets)]


def _views(opened: OpenedRun, request: ExplainRequest) -> list[Section]:
    return [views_section(opened)]


def _answer_attention(opened: OpenedRun, request: ExplainRequest) -> list[Section]:
    return [answer_attention_section(opened)]


def _prompts(opened: OpenedComparison, request: ExplainRequest) -> list[Section]:
    return prompts_sections(opened, request.split, request.accelerator)


def _ranking(opened: OpenedComparison, request: ExplainRequest) -> list[Section]:
    return [ranking_section(opened, [name for name in OF_RUNS if name in RUN_SECTIONS])]


def _retrained(opened: OpenedComparison, request: ExplainRequest) -> list[Section]:
    return [retrained_section(opened.results)]


RUN_SECTIONS: Mapping[str, RunSections] = {
    "gates": _gates,
    "knock_out": _knock_out,
    "gradients": _gradients,
    "views": _views,
    "answer_attention": _answer_attention,
}
"""{name: what makes the sections of a run}, in the order of its report; keys of request.SECTIONS."""
AVERAGED = ("gates", "knock_out", "gradients")
"""Sections of a run with a number for each source, which a comparison averages over seeds."""
COMPARISON_SECTIONS: Mapping[str, ComparisonSections] = {
    "retrained": _retrained,
    "ranking": _ranking,
    "prompts": _prompts,
}
"""{name: what makes the sections of a comparison}, in the order of its report; keys of request.SECTIONS."""
