"""Plans how many tokens a sample takes, by the encoders of several models, so that all train on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.encoding.conversation import ConversationEncoder, EncodedConversation
from datamodules.encoding.over_long import Messages
from datamodules.images.tiling import Size


@dataclass(frozen=True)
class PlannedConversation:
    """A conversation as the model's tokens, with the tokens that are planned for it.

    Attributes:
        encoded: the tokens.
        ends: planned tokens up to the end of each answer.
        tokens: planned tokens of the whole conversation.
    """

    encoded: EncodedConversation
    ends: list[int]
    tokens: int


class TokenPlan:
    """Plans the most tokens that one of several encoders makes of a sample.

    Args:
        encoder: the model's.
        planners: the encoders to plan by; none for `encoder` alone.
    """

    def __init__(self, encoder: ConversationEncoder, planners: Sequence[ConversationEncoder] = ()) -> None:
        self.encoder, self.planners = encoder, list(planners) or [encoder]

    @property
    def tiled(self) -> bool:
        """Returns whether any of the encoders cuts images into tiles, for which it needs their sizes."""
        return any(encoder.tiling for encoder in (self.encoder, *self.planners))

    def conversation(self, messages: Messages) -> PlannedConversation:
        """Encodes and plans a conversation; errors as of ConversationEncoder.encode."""
        encoded = self.encoder.encode_turns(messages)
        plans = [self._conversation(planner, encoded, messages) for planner in self.planners]
        ends = [max(planned) for planned in zip(*(ends for ends, _ in plans), strict=True)]
        return PlannedConversation(encoded, ends, max(tokens for _, tokens in plans))

    def caption(
        self, text: str, images: int, sizes: Sequence[Size] | None
    ) -> tuple[tuple[list[int], list[int]], int, int]:
        """Encodes and plans a caption; errors as of ConversationEncoder.caption.

        Returns:
            Its ids and labels, the number of its images or of their tiles, and the planned tokens.
        """
        ids, labels = self.encoder.caption(text, images, sizes)
        tiling, planned = self.encoder.tiling, 0
        tiles = images if tiling is None or sizes is None else sum(tiling.grid(size).tiles for size in sizes)
        for planner in self.planners:
            more = tiles * (planner.tokens_per_image - self.encoder.tokens_per_image)
            other = planner.tiling != tiling
            planned = max(planned, len(planner.caption(text, images, sizes)[0]) if other else len(ids) + more)
        return (ids, labels), tiles, planned

    def _conversation(
        self, planner: ConversationEncoder, encoded: EncodedConversation, messages: Messages
    ) -> tuple[list[int], int]:
        """Returns how many tokens `planner` plans up to the end of each answer, and for all messages."""
        if planner.tiling != self.encoder.tiling:
            planned = planner.encode_turns(messages)
            return planned.turn_ends, len(planned.ids)
        more = planner.tokens_per_image - self.encoder.tokens_per_image
        turns = zip(encoded.turn_ends, encoded.images_before, strict=True)
        return [end + images * more for end, images in turns], len(encoded.ids) + encoded.images * more
