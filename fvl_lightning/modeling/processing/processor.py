"""The processor saved with a model: conversations with images become the model's inputs, exactly as in training."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import check_messages
from datamodules.encoding.question_form import QuestionForm
from datamodules.images.tiling import Size, Tiles
from datamodules.images.transforms import Fit
from fvl_lightning.core.chat_date import dated_tokenizer
from fvl_lightning.core.errors import DataError
from fvl_lightning.core.pretrained import open_saved
from fvl_lightning.core.types import ImageSpec
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.processing import chat
from fvl_lightning.modeling.processing.image_processor import (
    FlorenceVLImageProcessor,
    Picture,
    flatten,
    refuse_unknown_options,
)
from fvl_lightning.modeling.processing.padding import Ids, RowOptions

IMAGE_TOKEN = "<image>"
"""The image placeholder; token ids contain its id once per image token."""
MAX_TOKENS_PER_IMAGE = 100_000
"""A limit that no model reaches, so that a broken file does not fill the memory."""


class FlorenceVLProcessor(ProcessorMixin):
    """Turns texts and images into input_ids, attention_mask and pixel_values, and expands image placeholders.

    Args:
        image_processor: a FlorenceVLImageProcessor.
        tokenizer: the language model's tokenizer, with IMAGE_TOKEN among its special tokens.
        tokens_per_image: the number of placeholders per image, or per tile of an image.
        chat_template: replaces the tokenizer's chat template; None keeps it.
        asking: the fields of QuestionForm: the form of questions in training, which conversations are given.
        conditioned: whether to return question_ids, the tokens of the last question for each image, which the model's
            fusion reads.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        tokens_per_image: int,
        chat_template: str | None = None,
        asking: dict[str, Any] | None = None,
        conditioned: bool = False,
    ) -> None:
        if not isinstance(image_processor, FlorenceVLImageProcessor):
            raise DataError(f"image_processor is a {type(image_processor).__name__}, expected FlorenceVLImageProcessor")
        if not isinstance(tokens_per_image, int) or not 0 < tokens_per_image <= MAX_TOKENS_PER_IMAGE:
            raise DataError(f"tokens_per_image is {tokens_per_image!r}, expected 1 to {MAX_TOKENS_PER_IMAGE:,}")
        super().__init__(image_processor, tokenizer)
        if chat_template is not None:
            self.chat_template = chat_template
        self.tokens_per_image, self.asking = tokens_per_image, dataclasses.asdict(QuestionForm.read(asking or {}))
        self.conditioned = bool(conditioned)
        self.image_token, self.image_token_id = IMAGE_TOKEN, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)

    def __call__(
        self,
        images: Picture | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Returns input_ids, attention_mask and pixel_values of texts, in which IMAGE_TOKEN stands for an image.

        Every IMAGE_TOKEN in a text stands for an image; for texts of other people use apply_chat_template.

        Args:
            images: the images in the order of the placeholders, in one list or in one list per text.
            text: one text or several.
            videos, audio: must be None.
            kwargs: the fields of RowOptions, such as `padding` and `return_tensors`.

        Raises:
            ConfigError: an unknown option.
            DataError: placeholders and images do not match, or an image cannot be read.
        """
        options, rest = RowOptions.read(kwargs)
        image_options = rest.pop("images_kwargs", None) or {}
        refuse_unknown_options(rest | {"videos": videos, "audio": audio})
        pictures = [] if images is None else flatten(images)
        texts = [text] if isinstance(text, str) else list(text or [])
        if not texts:
            pixels = self.image_processor(pictures, **image_options) if pictures else {}
            return BatchFeature(dict(pixels), tensor_type=options.tensor_type([]))
        chat.check_placeholders(texts, images, self.image_token)
        if pictures and self.conditioned:
            raise DataError(
                "this model's fusion reads the question, which a text does not name: give messages to "
                "apply_chat_template(..., tokenize=True, return_dict=True)"
            )
        pictures, sizes = self.image_processor.cut(pictures)
        left = iter(sizes)
        rows = [self._text_ids(one, options.add_special_tokens, left) for one in texts]
        return self._batch(rows, options, pictures, image_options)

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
        """Applies the chat template to one or several conversations; the signature is that of transformers.

        Token ids are those of training: with the separators between images and text, and the system message, that the
        training data has. Special tokens in a message are plain text, including IMAGE_TOKEN.

        Args:
            conversation: messages, or a list of conversations. A message has a role, and content that is text or a list
                of {"type": "text", "text": ...} and {"type": "image", "image" | "path" | "url" | "base64": ...}.
            chat_template: another template than the processor's, as Jinja text.
            add_generation_prompt: whether to begin a new answer.
            continue_final_message: whether the last message is the beginning of the answer.
            return_assistant_tokens_mask: whether to return assistant_masks, which are 1 where training supervises.
            tokenize: False returns the text that the template writes.
            return_dict: whether to return input_ids, attention_mask and pixel_values rather than only input_ids.
            processor_kwargs: the fields of RowOptions, which are also accepted as keyword arguments.

        Raises:
            ConfigError: options that are unknown, or that contradict each other.
            DataError: a message or an image cannot be read, or the chat template refuses a conversation.
        """
        options, rest = RowOptions.read({"return_tensors": return_tensors} | kwargs | (processor_kwargs or {}))
        image_options = rest.pop("images_kwargs", None) or {}
        refuse_unknown_options(rest | {"tools": tools or None, "documents": documents or None})
        generate, continue_answer, masked = add_generation_prompt, continue_final_message, return_assistant_tokens_mask
        switches = (generate, continue_answer, masked, tokenize, sanitize_control_tokens, load_audio_from_video)
        chat.check_chat_options(options, *switches)
        given, batched = self._conversations(conversation)
        conversations = [QuestionForm.read(self.asking).apply(messages) for messages in given]
        encoder = self._encoder_for(chat_template)
        if not tokenize:
            written = [encoder.written(messages, generate, continue_answer) for messages in conversations]
            return written if batched else written[0]
        sized, pictures = chat.read_images(self.image_processor, conversations, return_dict)
        rows = [chat.chat_token_ids(encoder, messages, generate, continue_answer) for messages in sized]
        masks = [chat.assistant_mask(encoder, *pair) for pair in zip(sized, rows, strict=True)] if masked else None
        values = self._batch(rows, options, pictures, image_options, masks)
        values |= chat.question_ids(encoder, conversations, rows) if pictures and self.conditioned else {}
        return values if return_dict else values["input_ids"]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of processor_config.json."""
        self.__dict__.pop("_encoder", None)  # which the base class would copy
        return super().to_dict()

    @property
    def encoder(self) -> ConversationEncoder:
        """The encoder of messages into token ids and labels, for the template and the tiles that are set now."""
        cached: Any = self.__dict__.get("_encoder")
        key = repr(self.tokenizer.chat_template), len(self.tokenizer), repr(self.image_processor.tiling)
        if cached is None or cached[0] != key:
            cached = self._encoder = key, self._encoder_of(self.tokenizer)
        return cached[1]

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """The tokenizer's chat template, or several by name."""
        return None if "tokenizer" not in self.__dict__ else self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: str | dict[str, str] | None) -> None:
        if "tokenizer" in self.__dict__:  # transformers sets None before there is one
            self.tokenizer.chat_template = template

    def _encoder_for(self, chat_template: str | None) -> ConversationEncoder:
        """Returns the encoder for a chat template; None stands for the processor's."""
        template = None if chat_template is None else self._resolve_chat_template(chat_template)
        if template is None or template == self.tokenizer.chat_template:
            return self.encoder
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = template
        return self._encoder_of(tokenizer)

    def _encoder_of(self, tokenizer: Any) -> ConversationEncoder:
        return ConversationEncoder(tokenizer, self.image_token_id, self.tokens_per_image, self.image_processor.tiling)

    def _batch(
        self,
        rows: Sequence[Ids],
        options: RowOptions,
        pictures: Sequence[Picture],
        image_options: dict[str, Any],
        masks: Sequence[Ids] | None = None,
    ) -> BatchFeature:
        """Returns rows of token ids, their images and, if given, their assistant masks as one batch."""
        cut = options.truncate(rows, self.tokenizer)
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
            values["assistant_masks"] = options.pad(options.truncate(masks, self.tokenizer), 0, self.tokenizer)
        tensor_type = options.tensor_type(values["input_ids"])
        if pictures:
            values |= self.image_processor(pictures, **image_options)
        return BatchFeature(values, tensor_type=tensor_type)

    def _text_ids(self, text: str, add_special_tokens: bool | None, sizes: Iterator[Size]) -> Ids:
        """Returns the token ids of a text, with every IMAGE_TOKEN repeated once per image token, tile after tile."""
        if add_special_tokens is None:
            # A text that a chat template wrote begins with the first token already.
            add_special_tokens = self.tokenizer.bos_token is None or not text.startswith(self.tokenizer.bos_token)
        placeholders = self.image_token * self.tokens_per_image
        expanded = chat.expand_images(text, self.image_token, placeholders, self.image_processor.tiling, sizes)
        return self.tokenizer(expanded, add_special_tokens=add_special_tokens)["input_ids"]

    def _conversations(self, conversation: Any) -> tuple[list[Any], bool]:
        """Returns the checked conversations, and whether several were given; raises DataError for anything else."""
        outer: Sequence[Any] = conversation if isinstance(conversation, list | tuple) else []
        rows: Sequence[Any] = outer if outer and isinstance(outer[0], list | tuple) else [outer]
        if not outer or not all(isinstance(message, Mapping) for row in rows for message in row):
            raise DataError("conversation: expected a list of messages with role and content, or a list of such lists")
        conversations, batched = self._normalize_conversations(conversation)
        for messages in conversations:
            if problem := check_messages(messages):
                raise DataError(f"conversation: {problem}")
        return conversations, batched


def read_processor(folder: Path) -> FlorenceVLProcessor:
    """Returns the processor in a model folder; raises DataError if it cannot be read, or is of another kind."""
    return open_saved(FlorenceVLProcessor, folder, "the processor", DataError)


def make_processor(
    image: ImageSpec,
    tokenizer: Any,
    fit: Fit,
    scaled_decode: bool = False,
    asking: QuestionForm | None = None,
    tiles: Tiles | None = None,
    conditioned: bool = False,
) -> FlorenceVLProcessor:
    """Returns the processor of a model.

    Args:
        image: the size and normalisation of its images, and the number of tokens per image.
        tokenizer: the tokenizer of its language model.
        fit: how an image that is not square is fitted to the square.
        scaled_decode: whether large JPEG files are decoded at a reduced size.
        asking: the form of questions in training; None for no separators between images and text.
        tiles: the rule by which images become tiles; None for one square each.
        conditioned: whether the fusion reads the question.
    """
    size = {"height": image.size, "width": image.size}
    return FlorenceVLProcessor(
        FlorenceVLImageProcessor(size, image.mean, image.std, fit, scaled_decode, vars(tiles) if tiles else None),
        tokenizer,
        image.tokens_per_image,
        asking=dataclasses.asdict(asking or QuestionForm()),
        conditioned=conditioned,
    )


def image_tokenizer(tokenizer: Any) -> Any:
    """Adds the image placeholder and a padding token to a tokenizer, and fixes the date of its chat template."""
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return dated_tokenizer(tokenizer)


AutoProcessor.register(FlorenceVLConfig, FlorenceVLProcessor)
