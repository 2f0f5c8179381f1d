"""The processor of a model: the ids, masks and pixels of training, and images in many forms."""

import base64
import io
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.images.decoding import decode_image
from datamodules.images.transforms import Fit, ImageReader, to_pixels
from fvl_lightning.core.errors import ConfigError, UserError
from fvl_lightning.core.types import IGNORE_INDEX, ImageSpec
from fvl_lightning.modeling.processing.image_processor import FlorenceVLImageProcessor, load_picture
from fvl_lightning.modeling.processing.processor import (
    IMAGE_TOKEN,
    FlorenceVLProcessor,
    image_tokenizer,
    make_processor,
)
from tests.tiny_models import BOS, EOS, IMAGE, PAD, tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} {{ message.role }} {{ message.content | trim }} "
    "{% if message.role == 'assistant' %}<eos> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)
SPEC = ImageSpec(16, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
READER = ImageReader(SPEC)
IDS = {"return_dict": True, "tokenize": True, "return_tensors": None}


def processor(fit: Fit = "pad") -> FlorenceVLProcessor:
    """Of a model with three tokens per image."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return make_processor(SPEC, tokenizer, fit)


def png() -> bytes:
    """The picture as a file's bytes."""
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    return content.getvalue()


def asked(*parts: str, picture: Any = PIXELS) -> list[dict[str, Any]]:
    """A user's message of words and, where it says <image>, pictures."""
    image = {"type": "image", "image": picture}
    content = [image if part == "<image>" else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


def bare(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as shards hold them."""
    kept = ("type", "text")
    contents = [[{k: part[k] for k in kept if k in part} for part in message["content"]] for message in messages]
    return [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]


TALK = [
    *asked("w5 ", "<image>", " w6"), {"role": "assistant", "content": [{"type": "text", "text": "w7 w8"}]},
    *asked("w9 ", "<image>"), {"role": "assistant", "content": [{"type": "text", "text": "w10"}]},
]


def test_ids_and_masks_are_those_of_training() -> None:
    ours = processor()
    ids, labels = ConversationEncoder(ours.tokenizer, IMAGE, 3).encode(bare(TALK))
    values = ours.apply_chat_template(TALK, **IDS, return_assistant_tokens_mask=True)
    assert values["input_ids"] == [ids]
    assert values["attention_mask"] == [[1] * len(ids)]
    assert values["assistant_masks"] == [[int(label != IGNORE_INDEX) for label in labels]]
    assert values["assistant_masks"][0].count(1) == 5
    assert ids.count(IMAGE) == 6
    assert values["pixel_values"].shape == (2, 3, 16, 16)


def test_a_question_ends_where_the_answer_begins() -> None:
    ours = processor()
    asking = ours.apply_chat_template(TALK[:3], **IDS, add_generation_prompt=True)["input_ids"][0]
    assert asking == ConversationEncoder(ours.tokenizer, IMAGE, 3).prompt(bare(TALK[:3]))
    whole = ours.apply_chat_template(TALK, **IDS)["input_ids"][0]
    assert whole[: len(asking)] == asking
    begun = ours.apply_chat_template(TALK, **IDS, continue_final_message=True)["input_ids"][0]
    assert whole[len(begun)] == EOS
    assert whole[: len(begun)] == begun


def test_pixels_are_those_of_training() -> None:
    for fit in ("stretch", "pad", "crop"):
        values = processor(fit).image_processor([Image.fromarray(PIXELS), png()]).pixel_values
        assert torch.equal(values, to_pixels([PIXELS, PIXELS], SPEC, fit))


def test_it_is_saved_and_found_again(tmp_path: Path) -> None:
    processor("crop").save_pretrained(tmp_path)
    ours = FlorenceVLProcessor.from_pretrained(tmp_path)
    assert (ours.tokens_per_image, ours.image_processor.fit) == (3, "crop")
    words = IDS | {"add_generation_prompt": True, "return_tensors": "pt"}
    first, second = (one.apply_chat_template(asked("w5 ", "<image>"), **words) for one in (processor("crop"), ours))
    assert all(torch.equal(first[name], second[name]) for name in ("input_ids", "attention_mask", "pixel_values"))
    again = FlorenceVLProcessor.from_pretrained(tmp_path)  # and once more, after it has been used
    ours.save_pretrained(tmp_path / "again")
    assert ours.to_dict() == again.to_dict()


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_have_one_length(side: str) -> None:
    conversations = [asked("w5"), asked("w6 w7 ", "<image>", "<image>")]
    words = {"add_generation_prompt": True, "padding_side": side} | IDS
    together = processor().apply_chat_template(conversations, **words | {"return_tensors": "pt"})
    for row, conversation in enumerate(conversations):
        alone = processor().apply_chat_template(conversation, **words)["input_ids"][0]
        mask = together["attention_mask"][row].bool()
        assert together["input_ids"][row][mask].tolist() == alone
        assert together["input_ids"][row][~mask].tolist() == [PAD] * int((~mask).sum())
    assert together["attention_mask"][0, 0 if side == "left" else -1] == 0
    assert together["pixel_values"].shape[0] == 2
    apart = processor().apply_chat_template(conversations, **words, padding=False)["input_ids"]
    assert len(apart[0]) < len(apart[1])


def test_special_tokens_in_the_words_of_a_message_are_text(tiny_data: Path) -> None:
    tokenizer = image_tokenizer(AutoTokenizer.from_pretrained(tiny_data / "demo" / "tokenizer"))
    ours = make_processor(SPEC, tokenizer, "pad")
    words = f"a {tokenizer.eos_token} and {IMAGE_TOKEN}"
    [ids] = ours.apply_chat_template(asked(words), **IDS, add_generation_prompt=True)["input_ids"]
    [plain] = ours.apply_chat_template(asked("a and"), **IDS, add_generation_prompt=True)["input_ids"]
    specials = set(tokenizer.all_special_ids)
    assert [i for i in ids if i in specials] == [i for i in plain if i in specials]
    assert words in tokenizer.decode(ids)


def test_the_template_as_text_and_from_there_to_ids() -> None:
    ours = processor()
    conversation = asked("w5 ", "<image>", " w6")
    text = ours.apply_chat_template(conversation, add_generation_prompt=True)
    assert text == "<bos> user w5 <image> w6  assistant "
    assert ours.apply_chat_template([conversation], add_generation_prompt=True) == [text]
    values = ours(text=text, images=PIXELS, return_tensors=None)
    assert values["input_ids"] == ours.apply_chat_template(conversation, **IDS, add_generation_prompt=True)["input_ids"]
    assert values["input_ids"][0][0] == BOS
    batch = ours(text=[text, "<image> <image>"], images=[[PIXELS], [PIXELS, PIXELS]], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape[0] == 2
    assert batch["attention_mask"][1, 0] == 0
    assert batch["pixel_values"].shape[0] == 3


def test_a_picture_may_be_anything_people_have_one_in(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    encoded = base64.b64encode(png()).decode()
    parts = [
        {"type": "image", "image": Image.fromarray(PIXELS)}, {"type": "image", "image": PIXELS},
        {"type": "image", "path": str(tmp_path / "a.png")}, {"type": "image", "url": str(tmp_path / "a.png")},
        {"type": "image", "image": tmp_path / "a.png"}, {"type": "image", "base64": encoded},
        {"type": "image", "base64": f"data:image/png;base64,{encoded}"},
        {"type": "image_url", "image_url": {"url": str(tmp_path / "a.png")}},
    ]
    values = processor().apply_chat_template([{"role": "user", "content": parts}], **IDS)
    assert torch.equal(values["pixel_values"], to_pixels([PIXELS] * len(parts), SPEC, "pad"))
    with Image.open(tmp_path / "a.png") as image:  # opened, not read yet
        assert np.array_equal(load_picture(image, READER), PIXELS)


def test_pillow_images_are_upright_and_on_white() -> None:
    layer = Image.fromarray(np.dstack([PIXELS, np.full(PIXELS.shape[:2], 128, np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    layer.save(content, "PNG", exif=exif)
    with Image.open(io.BytesIO(content.getvalue())) as image:
        assert np.array_equal(load_picture(image, READER), decode_image(content.getvalue()))
        assert load_picture(image, READER).shape == (14, 10, 3)


def test_a_picture_at_an_address() -> None:
    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(png())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Pictures)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert np.array_equal(load_picture(f"{address}/a.png", READER), PIXELS)
        with pytest.raises(UserError, match=r"b\.png could not be read: HTTP Error 404"):
            load_picture(f"{address}/b.png", READER)
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (asked("<image>", picture=PIXELS[0]), r"array uint8 \[14, 3\], expected uint8 \[height, width, 3\]"),
        (asked("<image>", picture=3), "an image is a int"),
        (asked("<image>", picture="none.png"), "no image none.png"),
        (asked("<image>", picture=png()[:-30]), "not a readable PNG"),
        ([{"role": "user", "content": [{"type": "image", "base64": "%"}]}], "no base64"),
        ([{"role": "user", "content": [{"type": "image"}]}], "has no picture, expected it under one of image, url"),
        ([{"role": "user", "content": [{"type": "video"}]}], "neither text nor a list of image and text parts"),
        ([{"role": "robot", "content": "w5"}], "message 0 has no role of system, user, assistant"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        processor().apply_chat_template(messages, **IDS, add_generation_prompt=True)
    assert "\n" not in str(error.value)


def test_other_mistakes_are_one_sentence_too() -> None:
    ours = processor()
    with pytest.raises(UserError, match="found 2 x <image> in the text, expected 1"):
        ours(text="<image> <image>", images=PIXELS)
    with pytest.raises(UserError, match="no use for do_pan_and_scan"):
        ours.apply_chat_template(TALK, **IDS, do_pan_and_scan=True)
    with pytest.raises(UserError, match="only an answer can be continued"):
        ours.apply_chat_template(TALK[:1], **IDS, continue_final_message=True)


TWO = [asked("w5 ", "<image>"), asked("w6 w7 ", "<image>", "<image>")]
PROMPT: dict[str, Any] = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}


@pytest.mark.parametrize("side", ["left", "right"])
def test_options_in_processor_kwargs_are_those_given_by_themselves(side: str) -> None:
    ours = processor()
    options = {"padding": True, "padding_side": side, "truncation": False, "max_length": None, "return_tensors": "pt"}
    wanted = ours.apply_chat_template(TWO, **PROMPT, **options)
    for words in (options, {"text_kwargs": options}, options | {"add_special_tokens": False, "images_kwargs": {}}):
        found = ours.apply_chat_template(TWO, **PROMPT, processor_kwargs=words)
        assert found.keys() == wanted.keys() == {"input_ids", "attention_mask", "pixel_values"}
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert wanted["attention_mask"][0, 0 if side == "left" else -1] == 0


def test_without_return_tensors_rows_of_one_length_are_tensors_and_others_lists() -> None:
    ours = processor()
    assert torch.is_tensor(ours.apply_chat_template(TWO, **PROMPT)["input_ids"])
    assert torch.is_tensor(ours(text="w5 <image>", images=PIXELS)["input_ids"])
    assert torch.is_tensor(ours.apply_chat_template(TWO, **PROMPT | {"return_dict": False}))
    apart = ours.apply_chat_template(TWO, **PROMPT, padding=False)["input_ids"]
    assert [type(row) for row in apart] == [list, list]
    assert isinstance(ours.apply_chat_template(TWO, **PROMPT, return_tensors="np")["input_ids"], np.ndarray)
    assert isinstance(ours.apply_chat_template(TWO, **PROMPT, return_tensors=None)["input_ids"], list)


def test_another_chat_template_by_place_or_by_name() -> None:
    ours = processor()
    own = ours.apply_chat_template(TWO, **PROMPT)["input_ids"]
    assert torch.equal(ours.apply_chat_template(TWO, None, **PROMPT)["input_ids"], own)
    assert torch.equal(ours.apply_chat_template(TWO, ours.chat_template, **PROMPT)["input_ids"], own)
    other = TEMPLATE.replace("{{ message.content", "w30 {{ message.content").replace("assistant {%", "assistant w30 {%")
    ids = ours.apply_chat_template(TWO, other, **PROMPT)["input_ids"]
    assert ids[0, -1] == ours.tokenizer.convert_tokens_to_ids("w30")
    assert ours.apply_chat_template(TWO[0], chat_template=other, add_generation_prompt=True).endswith("assistant w30 ")
    assert torch.equal(ours.apply_chat_template(TWO, **PROMPT)["input_ids"], own)


def test_rows_are_cut_and_padded_to_a_length() -> None:
    ours = processor()
    long = [[{"role": "user", "content": [{"type": "text", "text": "w5 w6 w7 w8 w9"}]}]]
    whole = ours.apply_chat_template(long, **PROMPT)["input_ids"]
    cut = ours.apply_chat_template(long, **PROMPT, processor_kwargs={"truncation": True, "max_length": 4})
    assert torch.equal(cut["input_ids"], whole[:, :4])
    assert cut["attention_mask"].shape == (1, 4)
    padded = ours.apply_chat_template(long, **PROMPT, padding="max_length", max_length=12, padding_side="right")
    assert torch.equal(padded["input_ids"][:, : whole.shape[1]], whole)
    assert padded["attention_mask"][0].tolist() == [1] * whole.shape[1] + [0] * (12 - whole.shape[1])
    assert ours.apply_chat_template(long, **PROMPT, pad_to_multiple_of=8)["input_ids"].shape[1] % 8 == 0
    ours.tokenizer.model_max_length = 5
    assert ours(text="w5 w6 w7 w8 w9 w10", truncation=True)["input_ids"].shape[1] == 5


def test_earlier_answers_are_marked_before_a_new_question() -> None:
    ours = processor()
    asking = ours.apply_chat_template(TALK[:3], **PROMPT, return_assistant_tokens_mask=True)
    whole = ours.apply_chat_template(TALK, **IDS, return_assistant_tokens_mask=True)
    length = asking["input_ids"].shape[1]
    assert asking["assistant_masks"][0].tolist() == whole["assistant_masks"][0][:length]
    assert asking["assistant_masks"].sum() == 3


def test_the_text_of_an_answer_to_go_on_with_ends_with_its_words() -> None:
    ours = processor()
    text = ours.apply_chat_template(TALK, continue_final_message=True)
    assert text.endswith("assistant w10")
    begun = ours.apply_chat_template(TALK, **IDS, continue_final_message=True)["input_ids"]
    assert ours(text=text, images=[PIXELS, PIXELS], return_tensors=None)["input_ids"] == begun


def test_arrays_and_tensors_may_have_their_channels_first() -> None:
    first = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    for picture in (first, torch.from_numpy(first), torch.from_numpy(PIXELS)):
        assert np.array_equal(load_picture(picture, READER), PIXELS)
    encoded = base64.b64encode(png()).decode()
    assert np.array_equal(load_picture(f"data:image/png;base64,{encoded}", READER), PIXELS)


def test_the_calls_that_a_pipeline_makes_afterwards() -> None:
    ours = processor()
    ids = torch.tensor([[5, 6, EOS], [7, EOS, PAD]])
    words = ours.batch_decode(ids, skip_special_tokens=True)
    assert len(words) == 2
    assert ours.post_process_image_text_to_text(ids) == words
    assert ours.decode(ids[0], skip_special_tokens=True) == words[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"padding": "longer"}, "padding is 'longer', expected one of True, False, 'longest'"),
        ({"padding_side": "up"}, "padding_side is 'up', expected one of 'left', 'right'"),
        ({"return_tensors": "tf"}, "return_tensors is 'tf', expected one of 'auto', 'pt', 'np', None"),
        ({"padding": False, "return_tensors": "pt"}, "rows of 7 to 11 tokens do not form a tensor"),
        ({"max_length": 4}, "max_length has no effect without truncation=True"),
        ({"padding": "max_length"}, "padding='max_length' needs max_length"),
        ({"truncation": True, "max_length": 4}, "4 tokens would cut a row of 7 within its images"),
        ({"processor_kwargs": {"do_pan_and_scan": True}}, "no use for do_pan_and_scan"),
        ({"processor_kwargs": {"images_kwargs": {"do_resize": False}}}, "no use for do_resize"),
        ({"tools": [{"type": "function"}]}, "no use for tools"),
        ({"documents": [{}]}, "no use for documents"),
        ({"load_audio_from_video": True}, "load_audio_from_video"),
        ({"add_special_tokens": True}, "the chat template writes all special tokens"),
        ({"continue_final_message": True}, "add_generation_prompt begins a new answer and continue_final_message"),
        ({"continue_final_message": "thoughts", "add_generation_prompt": False}, "expected True or False"),
        ({"tokenize": False, "sanitize_control_tokens": True}, "sanitize_control_tokens needs tokenize=True"),
        ({"tokenize": False, "return_assistant_tokens_mask": True}, "needs tokenize=True"),
        ({"tokenize": False, "chat_template": "{% if %}"}, "the chat template refuses"),
    ],
    ids=lambda words: ",".join(words) if isinstance(words, dict) else "",
)
def test_an_option_that_cannot_be_had_is_one_sentence(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        processor().apply_chat_template(TWO, **PROMPT | words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        (["<image>", "<image> <image>"], [[PIXELS, PIXELS], [PIXELS]], "found 1 x <image> in text 0, expected 2"),
        (["<image>", "<image>"], [[PIXELS, PIXELS]], "1 lists of images for 2 texts"),
    ],
)
def test_images_given_by_text_are_those_of_its_placeholders(text: Any, images: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        processor()(text=text, images=images)
    with pytest.raises(UserError, match="no use for videos"):
        processor()(text="w5", videos=[PIXELS])


@pytest.mark.parametrize("conversation", ["w5", [], ["w5"], {"role": "user", "content": "w5"}, [TALK, "w5"], [[]]])
def test_what_is_no_conversation_is_one_sentence(conversation: Any) -> None:
    with pytest.raises(UserError, match=r"^conversation: "):
        processor().apply_chat_template(conversation, **PROMPT)


@pytest.mark.parametrize("place", ["tokenizer", "processor"])
def test_there_is_one_chat_template_wherever_it_is_set(place: str, tmp_path: Path) -> None:
    """It is used at once, and still there when it has been saved and loaded, twice."""
    ours, other = processor(), TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }} w30 ")
    before = ours.apply_chat_template(TALK, **IDS)["input_ids"][0]
    (ours.tokenizer if place == "tokenizer" else ours).chat_template = other
    for _ in range(2):
        assert ours.chat_template == ours.tokenizer.chat_template == other
        assert ours.apply_chat_template(TALK).startswith("<bos> w30 ")
        assert ours.apply_chat_template(TALK, **IDS)["input_ids"][0] == [before[0], 30, *before[1:]]
        ours.save_pretrained(tmp_path)
        ours = FlorenceVLProcessor.from_pretrained(tmp_path)


def test_another_end_of_answers_is_supervised_at_once() -> None:
    ours = processor()
    assert ours.encoder.end_token_id == EOS
    ours.tokenizer.add_special_tokens({"additional_special_tokens": ["w31"]})
    ours.chat_template = TEMPLATE.replace("<eos>", "w31")
    assert ours.encoder.end_token_id == 31
    assert ours.encoder.encode(bare(TALK))[1][-1] == 31


def test_templates_by_name_are_all_saved(tmp_path: Path) -> None:
    ours, other = processor(), TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }} w30 ")
    ours.chat_template = {"default": TEMPLATE, "other": other}
    ours.save_pretrained(tmp_path)
    again = FlorenceVLProcessor.from_pretrained(tmp_path)
    assert again.chat_template == again.tokenizer.chat_template == {"default": TEMPLATE, "other": other}
    assert again.apply_chat_template(TALK) == processor().apply_chat_template(TALK)
    assert again.apply_chat_template(TALK, chat_template="other").startswith("<bos> w30 ")


def test_a_mean_of_one_channel_is_refused() -> None:
    grey = FlorenceVLImageProcessor({"height": 16, "width": 16}, [0.5], [0.5])
    with pytest.raises(ConfigError, match=r"^image_mean and image_std: expected 3 numbers each, found 1 and 1$"):
        grey(PIXELS)
