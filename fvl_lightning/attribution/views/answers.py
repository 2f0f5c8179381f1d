"""The section "answer_attention": what answers look at in their images, layer by layer."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from datamodules.encoding.questions import Question
from datamodules.storage.sample import spread
from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.attribution.views.pictures import Looked, as_picture, attention_figure
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import plural
from fvl_lightning.evaluation.statistics.means import mean_estimate
from fvl_lightning.inference.answer_attention import answer_attention, token_map
from fvl_lightning.inference.generation import generate_texts, question_inputs
from fvl_lightning.inference.likelihood import answer_ids
from fvl_lightning.reporting.section import Section
from fvl_lightning.reporting.tables import ABSENT, Grid, format_score

NAME, TITLE = "answer_attention", "What answers look at"
QUESTIONS, SHOWN, LAYERS = 32, 5, 5
"""Questions behind the numbers, answers in the figure, and layers in it."""


@dataclass(frozen=True)
class AskedAttention:
    """The attention of a generated answer to its image.

    Attributes:
        question: the question.
        answer: the answer that the model generated.
        layers: [layers, tiles, N], over the tokens of each tile of the image.
        uniform: the share of the image if all visible tokens had the same attention.
    """

    question: Question
    answer: str
    layers: Tensor
    uniform: float


def attention_of(opened: OpenedRun, question: Question) -> AskedAttention:
    """Answers a question greedily, and returns the attention of the answer; ConfigError as of answer_attention."""
    built, data = opened.built, opened.data
    messages = data.sized(opened.split, question.index, question.prompt_messages)
    prompt = data.encoder.prompt(messages)
    tiles = len(opened.rows[question.index])
    asked = [data.encoder.question(question.prompt_messages)] * tiles
    sources = {name: x.to(built.model.dtype) for name, x in opened.sources_of([question.index]).items()}
    inputs = {"image_sources": sources, **question_inputs(built, asked)}
    (text,) = generate_texts(built, [prompt], **inputs)
    answer = answer_ids(data.encoder, messages, prompt, text)
    layers = answer_attention(built, prompt, answer, **inputs)
    seen = torch.arange(len(prompt), len(prompt) + len(answer), dtype=torch.float64)
    uniform = float((layers.shape[1] / seen).mean())
    return AskedAttention(question, text, layers.unflatten(1, (tiles, -1)), uniform)


def answer_attention_section(opened: OpenedRun) -> Section:
    """Returns where answers look: the share of their attention on the image in each layer, and maps on pictures.

    It is one sentence where the language model has no attention weights.
    """
    questions = [opened.questions[place] for place in spread(len(opened.questions), QUESTIONS)]
    try:
        with torch.inference_mode(False), torch.no_grad():
            found = [attention_of(opened, question) for question in questions]
    except ConfigError as error:
        return Section(NAME, TITLE, [f"No attention can be shown: {error}."], values={"refused": str(error)})
    shares = torch.stack([one.layers.sum((1, 2)) for one in found]).double()
    uniform = sum(one.uniform for one in found) / len(found)
    rows: list[list[str]] = []
    values: list[dict[str, Any]] = []
    for layer, column in enumerate(shares.T.tolist()):
        share = mean_estimate(column, [question.index for question in questions])
        low, high = share.interval
        places = sum(_places(one.layers[layer]) for one in found) / len(found)
        interval = f"{low:.3f} to {high:.3f}" if low == low else ABSENT
        rows.append([str(layer), format_score(share.value), interval, f"{places:.1f}"])
        values.append({"layer": layer, "share": share.value, "interval": [low, high], "places": places})
    tokens = found[0].layers.shape[2]
    table = Grid("Attention to the image by layer", ["layer", "share", "95 %", "effective places"], rows)
    most = max(values, key=lambda each: each["share"])
    paragraphs = [
        f"Layer {most['layer']} looks at the image most: {most['share']:.1%} of the attention with which answers are "
        f"written goes to it, where uniform attention would give it {uniform:.1%}.",
        "Shown is the mean over heads, over the tokens of the generated answer and its end, and over "
        f"{plural(len(found), 'question')}; its interval is over images. *Effective places* is exp of the entropy of "
        f"attention within the image, from 1 to {tokens}. Attention is where a layer reads, and need not be what the "
        "answer depends on: hidden states of other tokens hold what earlier layers have read there.",
    ]
    figure, sentence = _figure(opened, found)
    stem = f"{NAME}_maps"
    numbers = {"uniform": uniform, "questions": len(found), "layers": values}
    if figure is None:
        return Section(NAME, TITLE, [*paragraphs, sentence], [table], values=numbers)
    return Section(NAME, TITLE, paragraphs, [table], {stem: figure}, numbers, {stem: sentence})


def _figure(opened: OpenedRun, found: Sequence[AskedAttention]) -> tuple[Figure | None, str]:
    """Returns maps of one answer of each kind, SHOWN at most, and a sentence about them."""
    model = opened.built.model
    first_of_kind = {one.question.kind: one for one in reversed(found)}
    chosen = [one for one in found if one is first_of_kind[one.question.kind]]
    chosen = (chosen + [one for one in found if one not in chosen])[:SHOWN]
    count = len(found[0].layers)
    layers = torch.linspace(0, count - 1, min(count, LAYERS)).round().int().tolist()
    looked = []
    for one in chosen:
        tile = int(one.layers.sum((0, 2)).argmax())
        maps = token_map(model, one.layers[:, tile])
        if maps is None:
            return None, "The image tokens have no places in the image, so that there is no map to draw."
        pixels = opened.data.pixels(opened.split, [one.question.index])[tile]
        titles = {"mean of layers": maps.mean(0)} | {f"layer {layer}": maps[layer] for layer in layers}
        looked.append(Looked(as_picture(pixels, model.image_spec), _text(one), titles))
    tiled = any(one.layers.shape[1] > 1 for one in chosen)
    shown = " Shown is the tile that gets most." if tiled else ""
    return attention_figure(looked), (
        f"Where the answers look: bright places get most attention of the layer, each map on its own scale.{shown}"
    )


def _text(one: AskedAttention) -> str:
    asked = one.question.prompt_messages[-1]["content"]
    text = asked if isinstance(asked, str) else " ".join(part.get("text", "") for part in asked).strip()
    answer = textwrap.shorten(one.answer, 24, placeholder="...") or "(empty)"
    answer = "".join(letter if letter.isprintable() else "?" for letter in answer)
    return "\n".join([*textwrap.wrap(text, 26)[:4], f"-> {answer}"])


def _places(weights: Tensor) -> float:
    """Returns exp of the entropy of weights over an image's tokens."""
    shares = weights.flatten() / weights.sum().clamp(min=1e-12)
    return float(torch.special.entr(shares.double()).sum().exp())
