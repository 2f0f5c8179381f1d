"""The description of a model on the page of `fvl serve`, and its source weights drawn as HTML without links."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fvl_lightning.inference.source_weights import SourceWeights
from fvl_lightning.modeling.build import LoadedModel

THUMBNAIL = 160
"""Side of a picture beside its shares, in pixels."""
FAINT, STRONG, OPACITY = (1.0, 0.84, 0.0), (0.84, 0.0, 0.24), 0.65
"""Colours of the smallest and the largest share on a map, and how much of the picture the largest covers."""
COLOURS = ("#4f46e5", "#0d9488", "#d97706", "#db2777", "#65a30d", "#7c3aed", "#0284c7", "#dc2626")

CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
footer {display: none !important}
.fvl-head h1 {font-size: 1.35rem; margin: .4rem 0 .1rem; font-weight: 650}
.fvl-head p, .fvl-note {color: var(--body-text-color-subdued); margin: 0; font-size: .9rem; line-height: 1.45}
#chat .message img {width: 11rem !important; height: 11rem !important; object-fit: contain !important}
#chat .message-buttons, #chat button[aria-label="Share"], #chat button[aria-label="Clear"] {display: none !important}
.fvl-shares {background: var(--block-background-fill); border: 1px solid var(--border-color-primary)}
.fvl-shares {border-radius: 10px; padding: 1rem 1.1rem}
.fvl-shares h2 {font-size: 1rem; margin: 0 0 .15rem; font-weight: 600}
.fvl-picture {display: flex; gap: 1rem; align-items: flex-start; margin-top: 1rem}
.fvl-picture > img {width: 88px; border-radius: 8px; flex: none; border: 1px solid var(--border-color-primary)}
.fvl-bars {flex: 1; display: grid; grid-template-columns: max-content 1fr 2.9rem; gap: .4rem .6rem; font-size: .88rem}
.fvl-bar {background: var(--border-color-primary); border-radius: 4px; height: .7rem; align-self: center}
.fvl-bar > div {height: 100%; border-radius: 4px}
.fvl-bars b {font-weight: 500; text-align: right; font-variant-numeric: tabular-nums}
.fvl-maps {display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: .7rem; margin-top: .8rem}
.fvl-maps figure {margin: 0}
.fvl-map {position: relative; border-radius: 8px; overflow: hidden; display: flex}
.fvl-map img {width: 100%; display: block}
.fvl-map img + img {position: absolute; inset: 0; height: 100%; image-rendering: pixelated}
.fvl-maps figcaption {font-size: .8rem; margin-top: .2rem; color: var(--body-text-color-subdued)}
"""


def head_html(loaded: LoadedModel, name: str) -> str:
    """The model's name, and what it is made of."""
    config = loaded.model.config
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    parts = [
        f"{parameters / 1e6:,.1f} million parameters",
        f"encoder {config.encoder['name']} ({', '.join(loaded.model.encoder.specs)})",
        f"fusion {config.fusion['name']}",
        f"projector {config.projector['name']}",
        f"language model {config.get_text_config().model_type}",
    ]
    return f'<div class="fvl-head"><h1>{escape(name)}</h1><p>{escape(" · ".join(parts))}</p></div>'


def no_shares_html() -> str:
    """The panel before there is a picture."""
    return _panel('<p class="fvl-note">Share of each feature source, once there is a picture.</p>')


def shares_html(pixel_values: Tensor, shares: Sequence[SourceWeights], loaded: LoadedModel) -> str:
    """Bars, and maps where the fusion gives some, of the share of each source in each of the images [I, 3, P, P]."""
    fusion = escape(loaded.model.config.fusion["name"])
    if not any(one.weights for one in shares):
        note = f"The fusion <b>{fusion}</b> does not weigh its sources: there are no shares to show."
        return _panel(f'<p class="fvl-note">{note}</p>')
    note = f'<p class="fvl-note">Share of each source in what the fusion <b>{fusion}</b> makes of a picture.</p>'
    spec = loaded.model.image_spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    seen = [Image.fromarray(_bytes((image * std + mean).permute(1, 2, 0))) for image in pixel_values]
    return _panel(note + "".join(_picture(image, one) for image, one in zip(seen, shares, strict=True)))


def _panel(content: str) -> str:
    return f'<div class="fvl-shares"><h2>What the fusion takes</h2>{content}</div>'


def _picture(seen: Image.Image, shares: SourceWeights) -> str:
    """An image as the encoder sees it, so that the maps lie where they belong, with its shares."""
    seen.thumbnail((THUMBNAIL, THUMBNAIL))
    source = _inline(seen)
    bars = "".join(
        f'<span>{escape(name)}</span><div class="fvl-bar"><div style="width: {share:.1%}; background: {colour}"></div>'
        f"</div><b>{share:.1%}</b>"
        for (name, share), colour in zip(shares.weights.items(), _colours(len(shares.weights)), strict=True)
    )
    maps = "".join(
        f'<figure><div class="fvl-map"><img src="{source}" alt=""><img src="{_inline(heat(values))}" alt=""></div>'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, values in shares.maps.items()
    )
    drawn = f'<div class="fvl-picture"><img src="{source}" alt="the picture"><div class="fvl-bars">{bars}</div></div>'
    return drawn + (f'<div class="fvl-maps">{maps}</div>' if maps else "")


def heat(values: Tensor) -> Image.Image:
    """Shares [h, w] in [0, 1] as h x w pixels to lie over a picture: large ones are red, small ones transparent."""
    share = values[..., None].clamp(0, 1)
    colour = torch.lerp(torch.tensor(FAINT), torch.tensor(STRONG), share)
    return Image.fromarray(_bytes(torch.cat([colour, OPACITY * share], dim=-1)), "RGBA")


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    """Values in [0, 1] as 0 to 255."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _inline(image: Image.Image) -> str:
    content = BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]
