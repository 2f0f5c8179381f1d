"""The panel of the page of `fvl serve` with the answer to the question without each source."""

from collections.abc import Mapping
from html import escape

CSS = """
#without table {width: 100%; border-collapse: collapse; font-size: .9rem}
#without td {padding: .25rem .4rem; border-top: 1px solid var(--border-color-primary); vertical-align: top}
#without td:first-child {white-space: nowrap; color: var(--body-text-color-subdued)}
#without .changed {font-weight: 650}
#without p {margin: .2rem 0 .4rem; font-size: .85rem; color: var(--body-text-color-subdued)}
"""


def without_html(answers: Mapping[str, str], whole: str) -> str:
    """Returns a table of the answers without each source as HTML; empty where there are none.

    Args:
        answers: {source: the answer with zeros in its place}.
        whole: the answer with all sources; other answers are marked.
    """
    if not answers:
        return ""
    rows = "".join(
        f"<tr><td>without {escape(source)}</td>"
        f"<td{_mark(answer, whole)}>{escape(answer.strip()) or '(nothing)'}</td></tr>"
        for source, answer in answers.items()
    )
    changed = sum(answer.strip() != whole.strip() for answer in answers.values())
    note = (
        f"With zeros in place of one source, {changed} of {len(answers)} answers are other ones."
        if changed
        else "With zeros in place of any one source, the answer is the same."
    )
    return f"<p>{note}</p><table>{rows}</table>"


def _mark(answer: str, whole: str) -> str:
    return ' class="changed"' if answer.strip() != whole.strip() else ""
