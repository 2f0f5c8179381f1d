"""The parts of `apply_chat_template`: checks of its options, token ids and assistant masks."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from datamodules.batching.collate import pad_questions
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.messages import Message, with_sizes
from datamodules.images.tiling import Size, Tiling
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX
from fvl_lightning.modeling.processing.image_processor import FlorenceVLImageProcessor, Picture, flatten, pictures_of
from fvl_lightning.modeling.processing.padding import Ids, RowOptions


def check_chat_options(
    options: RowOptions, generate: bool, continue_answer: bool, masks: bool, tokenize: bool, sanitize: bool, audio: bool
) -> None:
    """Raises ConfigError for options that contradict each other, or that this model does not support."""
    if not isinstance(continue_answer, bool):
        found = repr(continue_answer)
        raise ConfigError(f"continue_final_message is {found}, expected True or False: answers have only content")
    if generate and continue_answer:
        raise ConfigError("add_generation_prompt begins a new answer and continue_final_message continues one; set one")
    if masks and continue_answer:
        raise ConfigError("return_assistant_tokens_mask marks finished answers, continue_final_message leaves one open")
    if masks and not tokenize:
        raise ConfigError("return_assistant_tokens_mask needs tokenize=True")
    if sanitize and not tokenize:
        raise ConfigError("sanitize_control_tokens needs tokenize=True: in a text, special tokens are just text")
    if audio:
        raise ConfigError("load_audio_from_video: the model has no audio input")
    if options.add_special_tokens:
        raise ConfigError("add_special_tokens=True has no use here: the chat template writes all special tokens")


def chat_token_ids(
    encoder: ConversationEncoder, messages: Sequence[Message], generate: bool, continue_answer: bool
) -> Ids:
    """Returns the token ids of a conversation, up to the beginning or the continuation of an answer."""
    return encoder.prompt(messages, continue_answer) if generate or continue_answer else encoder.encode(messages)[0]


def read_images(
    image_processor: FlorenceVLImageProcessor, conversations: Sequence[Any], wanted: bool
) -> tuple[Sequence[Any], list[Picture]]:
    """Returns the images of conversations, if they are `wanted`, and the conversations as they are to be encoded.

    Where images become tiles, they are read in any case: their sizes decide how many placeholders they have.
    """
    tiled = image_processor.tiling is not None
    if not wanted and not tiled:
        return conversations, []
    sized: list[Any] = []
    shown: list[Picture] = []
    for messages in conversations:
        pictures, sizes = image_processor.cut(pictures_of(messages))
        sized.append(with_sizes(messages, sizes) if tiled else messages)
        shown += pictures
    return sized, shown if wanted else []


def expand_images(text: str, token: str, placeholders: str, tiling: Tiling | None, sizes: Iterator[Size]) -> str:
    """Replaces every image token of a text by the placeholders of one image, or of each of its tiles.

    Args:
        text: the text.
        token: the image token.
        placeholders: those of one image or tile.
        tiling: the rule by which images become tiles; None for none.
        sizes: the sizes of the images; as many are taken as there are image tokens. Unused without tiling.
    """
    first, *others = text.split(token)
    images = [tiling.text(next(sizes), placeholders) if tiling else placeholders for _ in others]
    return first + "".join(image + part for image, part in zip(images, others, strict=True))


def assistant_mask(encoder: ConversationEncoder, messages: Sequence[Message], ids: Ids) -> Ids:
    """Returns 1 for token ids that training supervises and 0 for others, with or without a generation prompt.

    Raises:
        DataError: before a generation prompt, the template writes the answers differently than in training.
    """
    encoded = encoder.encode_turns(messages)
    end = encoded.turn_ends[-1] if encoded.turn_ends else 0
    if ids[:end] != encoded.ids[:end]:
        raise DataError("the chat template writes earlier answers anew before a question, so they cannot be marked")
    return [int(label != IGNORE_INDEX) for label in encoded.labels[:end]] + [0] * (len(ids) - end)


def question_ids(encoder: ConversationEncoder, conversations: Sequence[Any], rows: Sequence[Ids]) -> dict[str, Tensor]:
    """Returns {"question_ids": [I, L]}, the question about each image or tile of conversations with these token ids."""
    counts = [row.count(encoder.image_token_id) // encoder.tokens_per_image for row in rows]
    asked = [[encoder.question(messages)] * count for messages, count in zip(conversations, counts, strict=True)]
    return {"question_ids": pad_questions([question for questions in asked for question in questions])}


def check_placeholders(texts: Sequence[str], images: Any, token: str) -> None:
    """Raises DataError if placeholders and images differ in number, in total or in a row.

    Args:
        texts: the texts.
        images: as in FlorenceVLProcessor.
        token: the image placeholder.
    """
    pictures = 0 if images is None else len(flatten(images))
    counts = [one.count(token) for one in texts]
    if sum(counts) != pictures:
        raise DataError(f"found {sum(counts)} x {token} in the text, expected {pictures}")
    if not isinstance(images, list | tuple) or not any(isinstance(row, list | tuple) for row in images):
        return
    if len(images) != len(texts):
        raise DataError(f"{len(images)} lists of images for {len(texts)} texts")
    for row, (count, given) in enumerate(zip(counts, images, strict=True)):
        if count != len(flatten(given)):
            raise DataError(f"found {count} x {token} in text {row}, expected {len(flatten(given))}")
