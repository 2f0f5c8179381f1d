"""Draws the fusions of docs/fusions.md: `python docs/images/fusions/draw.py` writes one SVG for each into this folder.

Sources are on the left, as maps. Tokens that come out stand side by side, and the channels of a token above each other.
"""

from dataclasses import dataclass
from pathlib import Path

A, B, C, FUSED, GROUP_1, GROUP_2 = "#4477aa", "#ee8866", "#44bb99", "#aa3377", "#99a7a8", "#99bb77"
"""Colours: the three sources, features of all of them, and means of groups."""
PALE, INK, WIDTH, HEIGHT = "#e4e4e4", "#333333", 640, 150
CELL = 14
Tokens = list[list[str]]
"""For each token the colours of its channels."""


@dataclass(frozen=True)
class Drawing:
    """The drawing of a fusion.

    Attributes:
        operation: lines of the box between sources and tokens.
        rows: {where the tokens go: the tokens}; "" where they replace the placeholders.
        question: whether the question enters the box.
        grids: columns of the maps of the three sources.
        left_out: the colour of a source that is not computed.
    """

    operation: tuple[str, ...]
    rows: dict[str, Tokens]
    question: bool = False
    grids: tuple[int, int, int] = (2, 2, 2)
    left_out: str = ""


def every(*channels: str, tokens: int = 4) -> Tokens:
    """Returns tokens with the same channels."""
    return [list(channels)] * tokens


JOINED = {"": every(FUSED)}
INNER = {"placeholders": every(A), "in front of block 1": every(B), "in front of block 2": every(C)}
DRAWINGS = {
    "attention": Drawing(("query of a place", "over its K sources"), JOINED),
    "bilinear": Drawing(("sum of t_k, and of", "products t_j t_k"), JOINED),
    "concat": Drawing(("channels side by side",), {"": every(A, B, C)}),
    "deepstack": Drawing(("one block for", "each further source"), INNER),
    "dense": Drawing(("first source, and", "means of groups"), {"": every(A, GROUP_1, GROUP_2)}),
    "film": Drawing(("scale and shift", "of each channel"), {"": every(A, B, C)}, question=True),
    "gated": Drawing(("gates of a place", "weigh W_k x_k"), JOINED),
    "interleave": Drawing(("W_k x_k, and tokens", "take turns"), {"": [[A], [B], [C]] * 4}),
    "internal": Drawing(("hidden states attend", "to further sources"), INNER),
    "mean": Drawing(("mean of a place",), JOINED),
    "mmfuser": Drawing(("first source asks all;", "x_1 + scale * answer"), JOINED, grids=(2, 4, 3)),
    "moe": Drawing(("router chooses", "a few sources"), JOINED, left_out=B),
    "mousi": Drawing(("an MLP for each,", "then the sum"), JOINED),
    "sva": Drawing(("queries read their", "window of each map"), JOINED, grids=(2, 4, 6)),
    "token_concat": Drawing(("tokens one", "after the other"), {"": [*every(A), *every(B), *every(C)]}),
}


def draw(drawing: Drawing) -> str:
    """Returns a drawing as the text of an SVG file."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
    ]
    for k, (colour, columns) in enumerate(zip((A, B, C), drawing.grids, strict=True)):
        left, size = 20 + 58 * k, 44 / columns
        for row in range(columns):
            for column in range(columns):
                fill = PALE if colour == drawing.left_out else colour
                parts.append(_square(left + column * size, 52 + row * size, size - 2, size - 2, fill))
        parts.append(_text(left + 22, 116, f"x_{k + 1}"))
    parts.append(_arrow(200, 74, 220))
    parts.append(f'<rect x="224" y="50" width="150" height="48" rx="6" fill="#f4f4f4" stroke="{INK}"/>')
    first = 78 - 8 * (len(drawing.operation) - 1)
    parts += [_text(299, first + 16 * k, line) for k, line in enumerate(drawing.operation)]
    if drawing.question:
        parts += [_text(299, 18, "question"), '<path d="M299 24 V44 m-4 -6 l4 6 l4 -6" fill="none" stroke="#333333"/>']
    parts.append(_arrow(378, 74, 398))
    for k, (where, tokens) in enumerate(drawing.rows.items()):
        parts += _tokens(tokens, 410, 74 + 40 * (k - (len(drawing.rows) - 1) / 2), where)
    return "\n".join([*parts, "</svg>", ""])


def _tokens(tokens: Tokens, left: float, middle: float, where: str) -> list[str]:
    parts = []
    for k, channels in enumerate(tokens):
        top = middle - CELL * len(channels) / 2
        for row, colour in enumerate(channels):
            parts.append(_square(left + (CELL + 3) * k, top + CELL * row, CELL, CELL - 1, colour))
    if where:
        parts.append(_text(left + (CELL + 3) * len(tokens) + 8, middle + 4, where, "start"))
    return parts


def _square(left: float, top: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{left:g}" y="{top:g}" width="{width:.4g}" height="{height:.4g}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{INK}">{text}</text>'


def _arrow(begin: float, y: float, end: float) -> str:
    return f'<path d="M{begin} {y} H{end} m-6 -4 l6 4 l-6 4" fill="none" stroke="{INK}"/>'


if __name__ == "__main__":
    for name, drawing in DRAWINGS.items():
        Path(__file__).with_name(f"{name}.svg").write_text(draw(drawing), encoding="utf-8")
