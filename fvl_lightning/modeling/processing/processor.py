"""Conversations with images -> what the model takes, exactly as in training: the processor saved beside a model."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import Message, check_messages
from datamodules.encoding.question_form import Asking
from datamodules.images.transforms import Fit
from fvl_lightning.core.chat_date import dated_tokenizer
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX, ImageSpec
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.processing.image_processor import (
    FlorenceVLImageProcessor,
    Picture,
    flat,
    pictures_of,
    refuse_unused,
)
from fvl_lightning.modeling.processing.padding import Ids, RowOptions

IMAGE_TOKEN = "<image>"
"""The placeholder; its id stands in token_ids once per image token."""


class FlorenceVLProcessor(ProcessorMixin):
    """Texts and images -> input_ids, attention_mask and pixel_values, placeholders expanded.

    Args:
        image_processor: a FlorenceVLImageProcessor.
        tokenizer: the language model's, with IMAGE_TOKEN among its special tokens.
        tokens_per_image: placeholders that an image becomes.
        chat_template: the tokenizer's from here on; null leaves it the one it has.
        asking: the fields of Asking, how training asked; conversations are brought to that form.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        tokens_per_image: int,
        chat_template: str | None = None,
        asking: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer)
        if chat_template is not None:
            self.chat_template = chat_template
        self.tokens_per_image, self.asking = tokens_per_image, dict(asking or {})
        self.image_token, self.image_token_id = IMAGE_TOKEN, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(
        self,
        images: Picture | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts in which IMAGE_TOKEN stands for each image -> input_ids, attention_mask and the images' pixel_values.

        What writes IMAGE_TOKEN into a text asks for an image: for what other people wrote take apply_chat_template.

        Args:
            images: in the order of the placeholders, in one list or in one per text.
            videos, audio: None, the model knows neither.
            kwargs: the fields of RowOptions, such as `padding` and `return_tensors`.

        Raises:
            ConfigError: an option that the processor does not have.
            DataError: placeholders and images do not match, or a picture cannot be read.
        """
        options, rest = RowOptions.read(kwargs)
        pixel_words = rest.pop("images_kwargs", None) or {}
        refuse_unused(rest | {"videos": videos, "audio": audio})
        pictures = [] if images is None else flat(images)
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            pixels = self.image_processor(pictures, **pixel_words) if pictures else {}
            return BatchFeature(dict(pixels), tensor_type=options.tensor_type([]))
        self._check_placeholders(texts, images, len(pictures))
        rows = [self._text_ids(one, options.add_special_tokens) for one in texts]
        return self._batch(rows, options, pictures, pixel_words)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        tokenize: bool = False,
        return_tensors: str | None = "auto",
        return_dict: bool = False,
        load_audio_from_video: bool = False,
        processor_kwargs: dict[str, Any] | None = None,
        sanitize_control_tokens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A conversation, or several, in the words of the chat template; the signature is transformers' own.

        Token ids are those of training, with what training has between images and words and the system message that all
        of it has; special tokens in a message's words are text, IMAGE_TOKEN among them.

        Args:
            conversation: messages, or a list of such: role, and content that is text or a list of
                {"type": "text", "text": ...} and {"type": "image", "image" | "path" | "url" | "base64": ...}.
            chat_template: another template than the processor's own, as Jinja text.
            continue_final_message: the last message is the beginning of the answer.
            return_assistant_tokens_mask: assistant_masks, 1 where training supervises.
            tokenize: False for the text that the template writes.
            return_dict: with tokenize: input_ids, attention_mask and pixel_values; else input_ids alone.
            processor_kwargs: the fields of RowOptions; as keywords of their own they are taken too.

        Raises:
            ConfigError: options that the processor does not have, or that contradict each other.
            DataError: a message or a picture that cannot be read, or what the chat template refuses.
        """
        options, rest = RowOptions.read({"return_tensors": return_tensors} | kwargs | (processor_kwargs or {}))
        pixel_words = rest.pop("images_kwargs", None) or {}
        refuse_unused(rest | {"tools": tools or None, "documents": documents or None})
        generate, go_on, masked = add_generation_prompt, continue_final_message, return_assistant_tokens_mask
        _check_choices(options, generate, go_on, masked, tokenize, sanitize_control_tokens, load_audio_from_video)
        given, batched = self._conversations(conversation)
        conversations = [Asking(**self.asking).asked(messages) for messages in given]
        encoder = self._encoder_for(chat_template)
        if not tokenize:
            written = [encoder.written(messages, generate, go_on) for messages in conversations]
            return written if batched else written[0]
        rows = [_ids(encoder, messages, generate, go_on) for messages in conversations]
        pairs = zip(conversations, rows, strict=True)
        masks = [_assistant_mask(encoder, *pair) for pair in pairs] if masked else None
        pictures = [picture for messages in conversations for picture in pictures_of(messages)] if return_dict else []
        values = self._batch(rows, options, pictures, pixel_words, masks)
        return values if return_dict else values["input_ids"]

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds."""
        self.__dict__.pop("_encoder", None)  # it would be copied for nothing
        return super().to_dict()

    @property
    def encoder(self) -> ConversationEncoder:
        """Messages -> token ids and labels."""
        held: Any = self.__dict__.get("_encoder")
        made_of = repr(self.tokenizer.chat_template), len(self.tokenizer)  # a user may change either
        if held is None or held[0] != made_of:
            held = made_of, ConversationEncoder(self.tokenizer, self.image_token_id, self.tokens_per_image)
            self._encoder = held
        return held[1]

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The one chat template, or several by name: the tokenizer's, wherever it is set."""
        return None if "tokenizer" not in self.__dict__ else self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: str | dict[str, str] | None) -> None:
        if "tokenizer" in self.__dict__:  # transformers sets None before there is one
            self.tokenizer.chat_template = template

    def _encoder_for(self, chat_template: str | None) -> ConversationEncoder:
        """The encoder of a chat template; None for the processor's own."""
        template = None if chat_template is None else self._resolve_chat_template(chat_template)
        if template is None or template == self.tokenizer.chat_template:
            return self.encoder
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = template
        return ConversationEncoder(tokenizer, self.image_token_id, self.tokens_per_image)

    def _batch(
        self,
        rows: Sequence[Ids],
        options: RowOptions,
        pictures: Sequence[Picture],
        pixel_words: dict[str, Any],
        masks: Sequence[Ids] | None = None,
    ) -> BatchFeature:
        """Rows of token ids (and of assistant masks) and their pictures as one batch."""
        cut = options.cut(rows, self.tokenizer)
        for whole, kept in zip(rows, cut, strict=True):
            if whole.count(self.image_token_id) != kept.count(self.image_token_id):
                raise DataError(
                    f"{len(kept)} tokens would cut a row of {len(whole)} within its images; take a larger max_length"
                )
        ones = [[1] * len(row) for row in cut]
        values: dict[str, Any] = {"input_ids": options.pad(cut, self.tokenizer.pad_token_id, self.tokenizer)}
        if options.return_attention_mask:
            values["attention_mask"] = options.pad(ones, 0, self.tokenizer)
        if masks is not None:
            values["assistant_masks"] = options.pad(options.cut(masks, self.tokenizer), 0, self.tokenizer)
        tensor_type = options.tensor_type(values["input_ids"])
        if pictures:
            values |= self.image_processor(pictures, **pixel_words)
        return BatchFeature(values, tensor_type=tensor_type)

    def _text_ids(self, text: str, add_special_tokens: bool | None) -> Ids:
        """Token ids of a text, each IMAGE_TOKEN as many times as an image has tokens."""
        if add_special_tokens is None:
            # A text that a chat template wrote begins with the first token already.
            add_special_tokens = self.tokenizer.bos_token is None or not text.startswith(self.tokenizer.bos_token)
        expanded = text.replace(self.image_token, self.image_token * self.tokens_per_image)
        return self.tokenizer(expanded, add_special_tokens=add_special_tokens)["input_ids"]

    def _check_placeholders(self, texts: Sequence[str], images: Any, pictures: int) -> None:
        """DataError where the texts have other placeholders than there are images, in all or, if given so, in a row."""
        counts = [one.count(self.image_token) for one in texts]
        if sum(counts) != pictures:
            raise DataError(f"{sum(counts)} times {self.image_token} in the text for {pictures} images")
        if not isinstance(images, list | tuple) or not any(isinstance(row, list | tuple) for row in images):
            return
        if len(images) != len(texts):
            raise DataError(f"{len(images)} lists of images for {len(texts)} texts")
        for row, (count, given) in enumerate(zip(counts, images, strict=True)):
            if count != len(flat(given)):
                raise DataError(f"{count} times {self.image_token} in text {row} for {len(flat(given))} images")

    def _conversations(self, conversation: Any) -> tuple[list[Any], bool]:
        """Checked conversations, and whether several were given; DataError for what is none."""
        outer: Sequence[Any] = conversation if isinstance(conversation, list | tuple) else []
        rows: Sequence[Any] = outer if outer and isinstance(outer[0], list | tuple) else [outer]
        if not outer or not all(isinstance(message, Mapping) for row in rows for message in row):
            raise DataError("conversation: expected a list of messages with role and content, or a list of such lists")
        conversations, batched = self._normalize_conversations(conversation)
        for messages in conversations:
            if problem := check_messages(messages):
                raise DataError(f"conversation: {problem}")
        return conversations, batched


def _check_choices(
    options: RowOptions, generate: bool, go_on: bool, masks: bool, tokenize: bool, sanitize: bool, audio: bool
) -> None:
    """ConfigError for choices that contradict each other, or that this kind of model does not have."""
    if not isinstance(go_on, bool):
        raise ConfigError(f"continue_final_message is {go_on!r}, expected True or False: answers have content alone")
    if generate and go_on:
        raise ConfigError("add_generation_prompt begins a new answer and continue_final_message goes on with one")
    if masks and go_on:
        raise ConfigError("return_assistant_tokens_mask marks finished answers, continue_final_message leaves one open")
    if masks and not tokenize:
        raise ConfigError("return_assistant_tokens_mask needs tokenize=True")
    if sanitize and not tokenize:
        raise ConfigError("sanitize_control_tokens needs tokenize=True: in a text, special tokens are just text")
    if audio:
        raise ConfigError("load_audio_from_video: the model hears nothing")
    if options.add_special_tokens:
        raise ConfigError("add_special_tokens=True has no use here: the chat template writes all special tokens")


def _ids(encoder: ConversationEncoder, messages: Sequence[Message], generate: bool, go_on: bool) -> Ids:
    """Token ids of a conversation, up to where an answer begins, or goes on."""
    return encoder.prompt(messages, go_on) if generate or go_on else encoder.encode(messages)[0]


def _assistant_mask(encoder: ConversationEncoder, messages: Sequence[Message], ids: Ids) -> Ids:
    """1 where training supervises, for the token ids of the messages, with or without an invitation to answer.

    Raises:
        DataError: before an invitation, the template writes the answers in another way than in training.
    """
    encoded = encoder.encode_turns(messages)
    end = encoded.turn_ends[-1] if encoded.turn_ends else 0
    if ids[:end] != encoded.ids[:end]:
        raise DataError("the chat template writes earlier answers anew before a question, so they cannot be marked")
    return [int(label != IGNORE_INDEX) for label in encoded.labels[:end]] + [0] * (len(ids) - end)


def make_processor(
    image: ImageSpec, tokenizer: Any, fit: Fit, scaled_decode: bool = False, asking: Asking | None = None
) -> FlorenceVLProcessor:
    """The processor of a model whose images look as `image` says and were brought to a square by `fit`.

    Args:
        asking: how its training asked; None where nothing stands between images and words.
    """
    size = {"height": image.size, "width": image.size}
    return FlorenceVLProcessor(
        FlorenceVLImageProcessor(size, image.mean, image.std, fit, scaled_decode),
        tokenizer,
        image.tokens_per_image,
        asking=dataclasses.asdict(asking or Asking()),
    )


def image_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer with the image placeholder among its special tokens, a pad token and no clock in its template."""
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return dated_tokenizer(tokenizer)


AutoProcessor.register(FlorenceVLConfig, FlorenceVLProcessor)
