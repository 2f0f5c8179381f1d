"""Settings of batches, shared by all data modules."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from datamodules.batching.rows import Layout
from datamodules.encoding.over_long import OverLong
from datamodules.images.tiling import Tiles
from datamodules.images.transforms import Fit
from fvl_lightning.core.config.fields import number


@dataclass
class PlannedImage:
    """The tokens and tiles that another model makes of an image."""

    tokens: int = number(1, at_least=1)
    """Tokens per image or tile."""
    side: int = number(1, at_least=1)
    """Pixels per side of the encoder's images."""
    tiles: Tiles | None = None
    """Its `data.tiles`."""


@dataclass
class BatchConfig:
    """Settings of batches."""

    view: Literal["conversation", "caption", "tasks"] = "conversation"
    """Train on the conversation of a sample, its caption, or one target per prompt of the encoder."""
    workers: int = number(0, at_least=0, changes="nothing")
    """Processes that read ahead; 0 reads in the training process. Batches are the same for any number."""
    sequence_length: int = number(2048, at_least=1)
    """Maximum number of tokens in a row, image tokens included."""
    over_long: OverLong = "truncate"
    """A longer conversation loses its last turns (truncate), becomes several (split) or is left out (drop)."""
    packing: Literal["none", "best_fit"] = "none"
    """best_fit packs as many samples into a row as fit, each attending to itself only; none pads one sample per row."""
    group_by_length: bool = False
    """Without packing, batch rows of similar length, so that less is padded."""
    planned_tokens_per_image: int | None = number(None, at_least=1)
    """Tokens per image for planning rows; null for the model's own number. A comparison sets its largest arm's, so that
    all arms train on the same samples at every step."""
    planned_images: list[PlannedImage] = field(default_factory=list)
    """What each model of a comparison makes of an image, where their `tiles` differ; rows are planned for the longest.
    A comparison sets it."""
    by_turn: bool = False
    """Make every answer of a conversation a row of its own, with the turns before it. This is always so for a fusion
    that reads the question; a comparison sets it for all arms if one of them has such a fusion."""
    image_fit: Fit = "stretch"
    """How an image is made square: stretch it, pad it with the encoder's mean colour, or crop its centre. With `tiles`
    it is brought to the shape of its grid in the same way."""
    tiles: Tiles | None = None
    """Cut an image into tiles by a grid that fits its aspect ratio, and show it as a whole, too; null shows each image
    once. Every tile has as many tokens as an image without tiles."""
    jpeg_decoder: Literal["pillow", "simplejpeg"] = "pillow"
    """simplejpeg is faster and an extra (`pip install fvl-lightning[simplejpeg]`)."""
    scaled_decode: bool = False
    """Decode large JPEGs at a fraction of their size, not below the encoder's: about twice as fast, other pixels."""
    max_bad_fraction: float = number(0.01, at_least=0, at_most=1, changes="nothing")
    """Fraction of samples that may be unusable; above it, the run stops and names shard and key."""

    def __post_init__(self) -> None:
        if self.packing != "none" and (self.group_by_length or self.view == "tasks"):
            what = "group_by_length" if self.group_by_length else "view: tasks"
            raise ValueError(f"{what} cannot be combined with packing: {self.packing}")
        if self.tiles is not None and (self.scaled_decode or self.view == "tasks"):
            what = "scaled_decode, which would make another image of a JPEG" if self.scaled_decode else "view: tasks"
            raise ValueError(f"tiles cannot be combined with {what}")

    def for_one_batch(self) -> Self:
        """Returns a configuration that suffices for a trial step; a component that makes its data makes less of it."""
        return self

    def for_test_at(self, level: str) -> Self:
        """Returns the configuration of another level (see BatchData.levels), of which the split test alone is read."""
        return replace(self, level=level)  # type: ignore[call-arg]  # a set with levels has the field

    @property
    def layout(self) -> Layout:
        """The layout of rows."""
        return "packed" if self.packing != "none" else "grouped" if self.group_by_length else "padded"
