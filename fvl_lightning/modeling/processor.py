"""Conversations with images -> what the model takes, exactly as in training: the processor saved beside a model."""

import base64
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from datamodules.conversation import ConversationEncoder
from datamodules.images import MAX_BYTES, decode_image, loaded_pixels
from datamodules.messages import Message, check_messages, parts_of
from datamodules.pixels import Fit, to_pixels
from fvl_lightning.core.errors import ConfigError, DataError, first_line
from fvl_lightning.core.types import IGNORE_INDEX, ImageSpec
from fvl_lightning.modeling.configuration import FlorenceVLConfig

IMAGE_TOKEN = "<image>"
"""The placeholder; its id stands in token_ids once per image token."""
DOWNLOAD_SECONDS = 30
IMAGE_KEYS = ("image", "url", "path", "base64")
"""Where a message part of type image may have its picture, as transformers' chat templates have it."""

Picture = Image.Image | NDArray[np.uint8] | Path | str | bytes
"""An image as people have it: of Pillow, [height, width, 3] uint8, a file, an http(s) address, or encoded bytes."""
Side = Literal["left", "right"]


class FlorenceVLImageProcessor(BaseImageProcessor):
    """Pictures -> pixel_values [I, 3, P, P] float32, brought to the encoder's square as the training's were."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own form

    def __init__(
        self,
        size: dict[str, int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        fit: Fit = "stretch",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.fit = size, fit
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    def preprocess(
        self, images: Picture | Sequence[Any], return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """One picture, a list, or a list per row of a batch -> pixel_values in that order.

        Raises:
            DataError: a picture that cannot be read, or is larger than what is read.
        """
        refuse_unused(kwargs)
        pixels = [load_picture(picture) for picture in flat(images)]
        values: Tensor = to_pixels(pixels, self._spec, self.fit)
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    @property
    def _spec(self) -> ImageSpec:
        mean, std = (tuple(map(float, values)) for values in (self.image_mean, self.image_std))
        assert len(mean) == 3 and len(std) == 3
        return ImageSpec(self.size["height"], mean, std, tokens_per_image=0)


class FlorenceVLProcessor(ProcessorMixin):
    """Texts and images -> input_ids, attention_mask and pixel_values, placeholders expanded.

    Args:
        image_processor: a FlorenceVLImageProcessor.
        tokenizer: the language model's, with IMAGE_TOKEN among its special tokens.
        tokens_per_image: placeholders that an image becomes.
        chat_template: read from beside the tokenizer; always the tokenizer's own.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Any, tokens_per_image: int, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.tokens_per_image = tokens_per_image
        self.image_token, self.image_token_id = IMAGE_TOKEN, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(
        self,
        images: Picture | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        padding_side: Side = "left",
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts in which IMAGE_TOKEN stands for each image -> input_ids, attention_mask and the images' pixel_values.

        What writes IMAGE_TOKEN into a text asks for an image: for what other people wrote take apply_chat_template.

        Args:
            images: in the order of the placeholders, in one list or in one per text.
            kwargs: what the tokenizer takes, such as `padding=True`.

        Raises:
            DataError: placeholders and images do not match, or a picture cannot be read.
        """
        pictures = [] if images is None else flat(images)
        texts = [text] if isinstance(text, str) else list(text or [])
        placeholders = sum(one.count(self.image_token) for one in texts)
        if texts and placeholders != len(pictures):
            raise DataError(f"{placeholders} times {self.image_token} in the text for {len(pictures)} images")
        values: dict[str, Any] = {}
        if texts:
            # A text that a chat template wrote begins with the first token already.
            begun = self.tokenizer.bos_token is not None and texts[0].startswith(self.tokenizer.bos_token)
            words = {"add_special_tokens": not begun, "padding_side": padding_side} | kwargs
            expanded = [one.replace(self.image_token, self.image_token * self.tokens_per_image) for one in texts]
            values |= self.tokenizer(expanded, **words)
        if pictures:
            values |= self.image_processor(pictures)
        return BatchFeature(values, tensor_type=return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = None,
        return_dict: bool = False,
        padding: bool = True,
        padding_side: Side = "left",
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """A conversation, or several, in the words of the tokenizer's own chat template.

        Token ids are those of training: special tokens, IMAGE_TOKEN among them, are text where a message's words hold
        them.

        Args:
            conversation: messages, or a list of such: role, and content that is text or a list of
                {"type": "text", "text": ...} and {"type": "image", "image" | "path" | "url" | "base64": ...}.
            continue_final_message: the last message is the beginning of the answer.
            return_assistant_tokens_mask: assistant_masks, 1 where training supervises.
            tokenize: False for the text that the template writes.
            return_dict: with tokenize: input_ids, attention_mask and pixel_values; else input_ids alone.
            padding: rows of one batch to one length, on the `padding_side`.

        Raises:
            DataError: a message or a picture that cannot be read, or what the chat template refuses.
        """
        refuse_unused(kwargs | (processor_kwargs or {}))
        conversations, batched = self._normalize_conversations(conversation)
        for messages in conversations:
            if problem := check_messages(messages):
                raise DataError(f"conversation: {problem}")
        if not tokenize:
            written = [self._written(messages, add_generation_prompt) for messages in conversations]
            return written if batched else written[0]
        rows, masks = [], []
        for messages in conversations:
            row, mask = self._tokens(messages, add_generation_prompt, continue_final_message)
            rows.append(row)
            masks.append(mask)
        pad = padded if padding else unpadded
        values: dict[str, Any] = {"input_ids": pad(rows, self.tokenizer.pad_token_id, padding_side)}
        if not return_dict:
            return BatchFeature(values, tensor_type=return_tensors)["input_ids"]
        values["attention_mask"] = pad([[1] * len(row) for row in rows], 0, padding_side)
        if return_assistant_tokens_mask:
            values["assistant_masks"] = pad(masks, 0, padding_side)
        if pictures := [picture for messages in conversations for picture in pictures_of(messages)]:
            values |= self.image_processor(pictures)
        return BatchFeature(values, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds."""
        self.__dict__.pop("_encoder", None)  # it would be copied for nothing
        return super().to_dict()

    @property
    def encoder(self) -> ConversationEncoder:
        """Messages -> token ids and labels."""
        if "_encoder" not in self.__dict__:
            self._encoder = ConversationEncoder(self.tokenizer, self.image_token_id, self.tokens_per_image)
        return self._encoder

    def _tokens(self, messages: Sequence[Message], generate: bool, go_on: bool) -> tuple[list[int], list[int]]:
        """Token ids of a conversation, and 1 where training supervises."""
        if generate or go_on:
            ids = self.encoder.prompt(messages, go_on)
            return ids, [0] * len(ids)
        ids, labels = self.encoder.encode(messages)
        return ids, [int(label != IGNORE_INDEX) for label in labels]

    def _written(self, messages: Sequence[Message], generate: bool) -> str:
        """The text that the chat template writes; IMAGE_TOKEN stands once for each image."""
        flattened = [
            {
                "role": message["role"],
                "content": "".join(self.image_token if p["type"] == "image" else p["text"] for p in parts_of(message)),
            }
            for message in messages
        ]
        return self.tokenizer.apply_chat_template(flattened, tokenize=False, add_generation_prompt=generate)


def make_processor(image: ImageSpec, tokenizer: Any, fit: Fit) -> FlorenceVLProcessor:
    """The processor of a model whose images look as `image` says and were brought to a square by `fit`."""
    size = {"height": image.size, "width": image.size}
    return FlorenceVLProcessor(
        FlorenceVLImageProcessor(size, image.mean, image.std, fit), tokenizer, image.tokens_per_image
    )


def image_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer with the image placeholder among its special tokens and a pad token."""
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_picture(picture: Picture) -> NDArray[np.uint8]:
    """[height, width, 3] RGB, upright; DataError for what cannot be read, or is too large to be."""
    if isinstance(picture, Image.Image):
        return loaded_pixels(picture)
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            found = f"{picture.dtype} {list(picture.shape)}"
            raise DataError(f"an image is an array {found}, expected uint8 [height, width, 3]")
        return picture
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        return decode_image(_downloaded(picture))
    if isinstance(picture, str | Path):
        return decode_image(Path(picture))
    if isinstance(picture, bytes):
        return decode_image(picture)
    raise DataError(f"an image is a {type(picture).__name__}, expected a Pillow image, an array, a path or an address")


def pictures_of(messages: Sequence[Message]) -> list[Picture]:
    """The pictures of a conversation in their order; DataError for an image part that has none."""
    pictures: list[Picture] = []
    for part in (part for message in messages for part in parts_of(message) if part["type"] == "image"):
        key = next((key for key in IMAGE_KEYS if key in part), None)
        if key is None:
            raise DataError(f"an image part has no picture, expected it under one of {', '.join(IMAGE_KEYS)}")
        pictures.append(_from_base64(part[key]) if key == "base64" else part[key])
    return pictures


def padded(rows: Sequence[Sequence[int]], value: int, side: Side) -> list[list[int]]:
    """Rows of one length."""
    length = max(map(len, rows))
    pads = [[value] * (length - len(row)) for row in rows]
    return [[*pad, *row] if side == "left" else [*row, *pad] for row, pad in zip(rows, pads, strict=True)]


def unpadded(rows: Sequence[Sequence[int]], value: int, side: Side) -> list[list[int]]:
    """The rows as they are."""
    return [list(row) for row in rows]


def flat(images: Any) -> list[Picture]:
    """One picture, several, or several per row, as one list."""
    if isinstance(images, list | tuple):
        return [picture for inner in images for picture in flat(inner)]
    return [images]


def refuse_unused(words: dict[str, Any]) -> None:
    """ConfigError for words of other processors that would have no effect here."""
    if unknown := sorted(name for name, value in words.items() if value is not None):
        raise ConfigError(f"the processor has no use for {', '.join(unknown)}")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except ValueError as error:
        raise DataError(f"an image is no base64: {first_line(error)}") from None


def _downloaded(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=DOWNLOAD_SECONDS) as answer:
            return answer.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{address} could not be read: {first_line(error)}") from None


AutoImageProcessor.register(FlorenceVLConfig, image_processor_classes={"pil": FlorenceVLImageProcessor})
AutoProcessor.register(FlorenceVLConfig, FlorenceVLProcessor)
