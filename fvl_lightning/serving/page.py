"""The page of `fvl serve`: pictures and a conversation, and next to it the weights of the fusion's sources."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from datamodules.images.decoding import EXTENSIONS, refuse_many_pixels
from datamodules.images.limits import refuse_many_images
from datamodules.images.tile_reader import TileReader
from datamodules.images.tiling import TiledImage
from fvl_lightning.core.errors import DataError
from fvl_lightning.inference.conversation import Conversation
from fvl_lightning.inference.generation import Prompt, Sampling, question_inputs
from fvl_lightning.inference.source_weight_maps import weights_of_sources
from fvl_lightning.inference.without_sources import answers_without_sources
from fvl_lightning.modeling.adapters.folders import use_adapter
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.modeling.connector.alignment import AlignedSources
from fvl_lightning.serving.weights_panel import NO_PICTURE, WeightsPanel, weights_panel
from fvl_lightning.serving.without_panel import CSS as WITHOUT_CSS
from fvl_lightning.serving.without_panel import without_html

SUFFIXES = [f".{extension}" for extension in EXTENSIONS]
MAX_CHARACTERS = 100_000
"""A longer question is refused before it is turned into tokens."""
CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
footer {display: none !important}
#head h1 {font-size: 1.35rem; margin: .4rem 0 .1rem; font-weight: 650}
#head p {color: var(--body-text-color-subdued); margin: 0; font-size: .9rem; line-height: 1.45}
#chat .message img {width: 11rem !important; height: 11rem !important; object-fit: contain !important}
#chat .message-buttons, #chat button[aria-label="Share"], #chat button[aria-label="Clear"] {display: none !important}
""" + WITHOUT_CSS


def build_page(gradio: Any, loaded: LoadedModel, sampling: Sampling, name: str, adapters: Sequence[str] = ()) -> Any:
    """The page, ready to be launched; one answer is written at a time, with the adapter that the page has chosen."""
    with gradio.Blocks(title=f"{name} · fvl", analytics_enabled=False) as page:
        # The conversation stays in the server, as it is shown and as the model has it. From the browser it would be
        # whatever a stranger's program sends, from which gradio makes components and copies files.
        chat, messages = gradio.State([]), gradio.State([])
        gradio.HTML(head_html(loaded, name), elem_id="head")
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
                note = gradio.Textbox(NO_PICTURE.note, label="Source weights", lines=1, elem_id="note")
                means = gradio.Label(label="Mean weights", show_heading=False, elem_id="weights", visible=False)
                without = gradio.HTML(elem_id="without", visible=False)
                gallery = gradio.Gallery(show_label=False, columns=2, buttons=[], visible=False, elem_id="pictures")
        panel = [note, means, without, gallery]
        _connect(gradio, loaded, sampling, anew, [asked, shown, chat, messages, *panel], adapter, adapters)
    return page


def head_html(loaded: LoadedModel, name: str) -> str:
    """Returns the model's name and components."""
    config = loaded.model.config
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    components = [
        f"{parameters / 1e6:,.1f} million parameters",
        f"encoder {config.encoder['name']} ({', '.join(loaded.model.encoder.specs)})",
        f"fusion {config.fusion['name']}",
        f"projector {config.projector['name']}",
        f"language model {config.get_text_config().model_type}",
    ]
    return f"<h1>{escape(name)}</h1><p>{escape(' · '.join(components))}</p>"


def _connect(
    gradio: Any,
    loaded: LoadedModel,
    sampling: Sampling,
    anew: Any,
    everything: list[Any],
    adapter: Any,
    adapters: Sequence[str],
) -> None:
    """Connects a question, stop and `anew` to their effects on everything.

    That is (text box, chat as it is shown, its state, messages, note, means, answers without a source, gallery).
    """
    asked, _, *states = everything[:4]

    def panel_values(panel: WeightsPanel | None, without: str) -> tuple[Any, ...]:
        answers = gradio.HTML(without, visible=bool(without))
        if panel is None:
            return gradio.skip(), gradio.skip(), answers, gradio.skip()
        means = gradio.Label(panel.means or None, visible=bool(panel.means))
        return panel.note, means, answers, gradio.Gallery(panel.gallery, visible=bool(panel.gallery))

    def answer(
        question: dict[str, Any], so_far: list[Any], before: list[Any], chosen: str
    ) -> Iterator[tuple[Any, ...]]:
        if adapters:
            use_adapter(loaded.model, chosen or None)
        box: Any = gradio.MultimodalTextbox({"text": "", "files": []}, submit_btn=False, stop_btn=True)
        try:
            for chat, after, panel, without in reply(loaded, sampling, question, so_far, before):
                yield box, chat, chat, after, *panel_values(panel, without_html(without, chat[-1]["content"]))
                box = gradio.skip()  # the next question may be typed meanwhile
        except DataError as error:
            gradio.Warning(str(error), title="Not answered")
            yield (gradio.skip(),) * len(everything)

    def ready() -> Any:
        return gradio.MultimodalTextbox(submit_btn=True, stop_btn=False)

    def begin_anew() -> tuple[Any, ...]:
        empty = gradio.MultimodalTextbox({"text": "", "files": []}, submit_btn=True, stop_btn=False)
        return empty, [], [], [], *panel_values(NO_PICTURE, "")

    # Handlers of a page are an interface for programs, too, unless they are private. A sign of progress would lie over
    # the button that stops the answer.
    inputs = [asked, *states, adapter]
    answering = asked.submit(answer, inputs, everything, show_progress="hidden", api_visibility="private")
    answering.then(ready, None, asked, api_visibility="private")
    asked.stop(ready, None, asked, cancels=[answering], api_visibility="private")
    anew.click(begin_anew, None, everything, cancels=[answering], api_visibility="private")


def reply(
    loaded: LoadedModel, sampling: Sampling, question: dict[str, Any], shown: list[Any], before: list[Any]
) -> Iterator[tuple[list[Any], list[Any], WeightsPanel | None, Mapping[str, str]]]:
    """Yields the page after each piece of the answer, and at the end with the answer without each source.

    That is (chat, messages, source weights or None if unchanged, {source: answer without it} or empty). All of them
    come from one pass of the encoder.

    Args:
        question: {"text", "files"}, the text and the paths of the uploaded pictures.
        shown: the chat so far, as it is shown.
        before: the messages as the model has them, with decoded pictures.

    Raises:
        DataError: no question, a file that is no picture, or more than the model holds; nothing has changed then.
    """
    text, files = question["text"].strip(), question["files"]
    if not text:
        raise DataError("there is no question")
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"a question of {len(text)} characters, at most {MAX_CHARACTERS} are read")
    refuse_many_images(len(files))
    refuse_many_pixels([Path(file) for file in files])
    pictures = [_decoded(file, loaded.processor.image_processor.reader) for file in files]
    conversation = Conversation(loaded, sampling, list(before), pictures, keeps_sources=True)
    with closing(conversation.say(text)) as pieces:
        asked = conversation.asked
        assert asked is not None
        panel = _weights_of_new(loaded, asked, pictures) if pictures else None
        words = [*({"path": file} for file in files), text]
        chat, written = [*shown, *({"role": "user", "content": word} for word in words)], ""
        for piece in chain([""], pieces):  # what was asked is shown before the first word of the answer
            written += piece
            yield [*chat, {"role": "assistant", "content": written}], list(conversation.messages), panel, {}
        without = answers_without_sources(loaded, asked, sampling)
        if without:
            yield [*chat, {"role": "assistant", "content": written}], list(conversation.messages), panel, without


def _weights_of_new(loaded: LoadedModel, asked: Prompt, pictures: Sequence[Any]) -> WeightsPanel:
    """Returns the panel of the pictures that a question brings, which are the last ones of its prompt."""
    assert asked.sources is not None
    pixels = loaded.processor.image_processor(pictures)["pixel_values"]
    last = {name: source[-len(pixels) :] for name, source in asked.sources.items()}
    question_ids = question_inputs(loaded, [asked.question] * len(pixels)).get("question_ids")
    return weights_panel(pixels, weights_of_sources(loaded.model, AlignedSources(last), question_ids), loaded)


def _decoded(file: str, reader: TileReader) -> TiledImage:
    """An uploaded picture; DataError with the name it was uploaded under."""
    try:
        return reader.read(Path(file).read_bytes())
    except DataError as error:
        raise DataError(f"{Path(file).name}: {error}") from None
