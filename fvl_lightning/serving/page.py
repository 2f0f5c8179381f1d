"""The page of `fvl serve`: pictures and a conversation, and beside it the shares of the fusion's sources."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.images.decoding import EXTENSIONS
from datamodules.images.transforms import ImageReader
from fvl_lightning.core.errors import DataError
from fvl_lightning.inference.conversation import Conversation
from fvl_lightning.inference.generation import Sampling
from fvl_lightning.inference.source_weights import source_weights
from fvl_lightning.modeling.adapters.folders import use_adapter
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.serving.source_shares import head_html, no_shares_html, shares_html

SUFFIXES = [f".{extension}" for extension in EXTENSIONS]


def build_page(gradio: Any, loaded: LoadedModel, sampling: Sampling, name: str, adapters: Sequence[str] = ()) -> Any:
    """The page, ready to be launched; one answer is written at a time, with the adapter that the page has chosen."""
    with gradio.Blocks(title=f"{name} · fvl", analytics_enabled=False) as page:
        messages = gradio.State([])
        gradio.HTML(head_html(loaded, name))
        with gradio.Row():
            with gradio.Column(scale=3, min_width=420):
                shown = gradio.Chatbot(
                    height=520,
                    show_label=False,
                    render_markdown=False,  # a location token such as <loc_12> is words too, not HTML
                    feedback_options=None,
                    buttons=[],
                    allow_file_downloads=False,
                    elem_id="chat",
                    placeholder="Add a picture and ask about it.",
                )
                asked = gradio.MultimodalTextbox(
                    sources=["upload"],
                    file_types=SUFFIXES,
                    file_count="multiple",
                    placeholder="A question; the clip on the left adds pictures",
                    show_label=False,
                    autofocus=True,
                    elem_id="asked",
                )
                choices = [*((known, known) for known in adapters), ("no adapter", "")]
                adapter = gradio.Dropdown(choices, value=choices[0][1], label="Adapter", visible=bool(adapters))
                anew = gradio.Button("New conversation", size="sm")
            with gradio.Column(scale=2, min_width=320):
                shares = gradio.HTML(no_shares_html(), elem_id="shares")
        _connect(gradio, loaded, sampling, anew, [asked, shown, messages, shares], adapter, adapters)
    return page


def _connect(
    gradio: Any,
    loaded: LoadedModel,
    sampling: Sampling,
    anew: Any,
    everything: list[Any],
    adapter: Any,
    adapters: Sequence[str],
) -> None:
    """Connects a question, stop and `anew` to their effects on (text box, chat, messages, source weights)."""
    asked = everything[0]

    def answer(
        question: dict[str, Any], so_far: list[Any], before: list[Any], chosen: str
    ) -> Iterator[tuple[Any, ...]]:
        if adapters:
            use_adapter(loaded.model, chosen or None)
        box: Any = gradio.MultimodalTextbox({"text": "", "files": []}, submit_btn=False, stop_btn=True)
        try:
            for chat, after, panel in reply(loaded, sampling, question, so_far, before):
                yield box, chat, after, gradio.skip() if panel is None else panel
                box = gradio.skip()  # the next question may be typed meanwhile
        except DataError as error:
            gradio.Warning(str(error), title="Not answered")
            yield (gradio.skip(),) * 4

    def ready() -> Any:
        return gradio.MultimodalTextbox(submit_btn=True, stop_btn=False)

    def begin_anew() -> tuple[Any, ...]:
        empty = gradio.MultimodalTextbox({"text": "", "files": []}, submit_btn=True, stop_btn=False)
        return empty, [], [], no_shares_html()

    # Handlers of a page are an interface for programs, too, unless they are private. A sign of progress would lie over
    # the button that stops the answer.
    inputs = [*everything[:3], adapter]
    answering = asked.submit(answer, inputs, everything, show_progress="hidden", api_visibility="private")
    answering.then(ready, None, asked, api_visibility="private")
    asked.stop(ready, None, asked, cancels=[answering], api_visibility="private")
    anew.click(begin_anew, None, everything, cancels=[answering], api_visibility="private")


def reply(
    loaded: LoadedModel, sampling: Sampling, question: dict[str, Any], shown: list[Any], before: list[Any]
) -> Iterator[tuple[list[Any], list[Any], str | None]]:
    """Yields the page after each piece of the answer: (chat, messages, source weights; None if unchanged).

    Args:
        question: {"text", "files"}, the text and the paths of the uploaded pictures.
        shown: the chat as the page has it.
        before: the messages as the model has them, with decoded pictures.

    Raises:
        DataError: no question, a file that is no picture, or more than the model holds; nothing has changed then.
    """
    text, files = question["text"].strip(), question["files"]
    if not text:
        raise DataError("there is no question")
    pictures = [_decoded(file, loaded.processor.image_processor.reader) for file in files]
    conversation = Conversation(loaded, sampling, list(before), pictures)
    with closing(conversation.say(text)) as pieces:
        panel = None
        if pictures:
            pixels = loaded.processor.image_processor(pictures)["pixel_values"]
            panel = shares_html(pixels, source_weights(loaded, pixels), loaded)
        words = [*({"path": file} for file in files), text]
        chat, written = [*shown, *({"role": "user", "content": word} for word in words)], ""
        for piece in chain([""], pieces):  # what was asked is shown before the first word of the answer
            written += piece
            yield [*chat, {"role": "assistant", "content": written}], list(conversation.messages), panel


def _decoded(file: str, reader: ImageReader) -> NDArray[np.uint8]:
    """An uploaded picture; DataError with the name it was uploaded under."""
    try:
        return reader.decode(Path(file).read_bytes())
    except DataError as error:
        raise DataError(f"{Path(file).name}: {error}") from None
