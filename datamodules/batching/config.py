"""Settings of batches, shared by all data modules."""

from dataclasses import dataclass
from typing import Literal, Self

from datamodules.batching.rows import Layout
from datamodules.encoding.over_long import OverLong
from datamodules.images.transforms import Fit
from fvl_lightning.core.config.fields import number


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
    image_fit: Fit = "stretch"
    """How an image is made square: stretch it, pad it with the encoder's mean colour, or crop its centre."""
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

    def for_one_batch(self) -> Self:
        """Returns a configuration that suffices for a trial step; a component that makes its data makes less of it."""
        return self

    @property
    def layout(self) -> Layout:
        """The layout of rows."""
        return "packed" if self.packing != "none" else "grouped" if self.group_by_length else "padded"
