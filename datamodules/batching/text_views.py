"""Builds the view of a data set for a model, with the planners that make rows equal for several models."""

from collections.abc import Sequence

from datamodules.batching.config import BatchConfig
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.views import CaptionView, ConversationView, TextView
from datamodules.images.tiling import Tiling
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import DataContext


def conversation_encoder(context: DataContext, config: BatchConfig) -> ConversationEncoder:
    """Returns the encoder of conversations and captions for a model and the settings of its data."""
    tiling = Tiling.of(config.tiles, context.image.size)
    return ConversationEncoder(context.tokenizer, context.image_token_id, context.image.tokens_per_image, tiling)


def text_view(name: str, context: DataContext, config: BatchConfig, encoder: ConversationEncoder) -> TextView:
    """Returns the view `name`, which turns conversations or captions into tokens.

    Raises:
        ConfigError: rows are planned for fewer tokens per image than the model makes, or the largest image with all
            its tiles does not fit into a row.
    """
    planners = _planners(context, config, encoder)
    for planner in planners or [encoder]:
        _check_room(planner, config.sequence_length)
    view = ConversationView if name == "conversation" else CaptionView
    by_turn = context.conditioned or config.by_turn
    return view(encoder, config.sequence_length, config.over_long, planners, by_turn)


def _planners(
    context: DataContext, config: BatchConfig, encoder: ConversationEncoder
) -> Sequence[ConversationEncoder]:
    """Returns the encoders by which rows are planned; none for the model's own."""
    tokenizer, image_token_id = context.tokenizer, context.image_token_id
    if config.planned_images:
        return [
            ConversationEncoder(tokenizer, image_token_id, planned.tokens, Tiling.of(planned.tiles, planned.side))
            for planned in config.planned_images
        ]
    planned = config.planned_tokens_per_image
    if planned is None:
        return []
    if planned < context.image.tokens_per_image:
        raise ConfigError(
            f"data.planned_tokens_per_image: {planned} are planned for an image, "
            f"the model makes {context.image.tokens_per_image} of it"
        )
    return [ConversationEncoder(tokenizer, image_token_id, planned, encoder.tiling)]


def _check_room(encoder: ConversationEncoder, sequence_length: int) -> None:
    """Raises ConfigError if an image with the most tiles leaves no room in a row, or if its marks are no tokens."""
    tiling = encoder.tiling
    if tiling is None:
        return
    tokens, tiles = max((len(encoder.image_ids([size])), tiling.grid(size).tiles) for size in tiling.longest)
    if tiling.marks != "none" and tokens == tiles * encoder.tokens_per_image > encoder.tokens_per_image:
        raise ConfigError("data.tiles.marks: this tokenizer makes no tokens of marks between tiles; choose none")
    if tokens >= sequence_length:
        raise ConfigError(
            f"data.sequence_length: {sequence_length} tokens do not hold an image of {tiles} tiles, which has {tokens} "
            f"tokens ({encoder.tokens_per_image} per tile); raise it, or lower data.tiles.max"
        )
