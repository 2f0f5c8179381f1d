"""Types that pass between the slots: feature and image specifications, fusion output, batches.

Shape legend, used in every docstring:
    B  rows of a batch          S  tokens per row
    I  images of a batch        N  image tokens per image
    D  width                    P  pixels per side
    V  vocabulary               T  prompts (tasks) per image
    L  tokens of a prompt or of its target
"""

from __future__ import annotations  # torch is imported for its types alone, and takes seconds

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that is not supervised (the convention of torch's cross_entropy and of transformers)."""
NO_TOKEN = -1
"""Fills up the rows of a tensor of questions; no token has this id."""


@dataclass(frozen=True)
class FeatureSpec:
    """The shape of one feature source: `tokens` vectors of width `dim` per image.

    The last `grid[0] * grid[1]` tokens are a row-major map of the image; tokens before them, such as a pooled token,
    have no position in it. `grid` is None where no token has a position.

    `parts` are the sources {name: its shape} that lie side by side in fused features, where a fusion keeps them apart:
    on channels if each part has all of the tokens, otherwise on tokens. `==` compares shapes without their parts, and
    `repr` leaves them out: feature caches are named by it.
    """

    tokens: int
    dim: int
    grid: tuple[int, int] | None
    parts: Mapping[str, FeatureSpec] = field(default_factory=dict, compare=False, repr=False)

    @property
    def prefix(self) -> int:
        """Number of tokens before the map, which have no position in the image."""
        return self.tokens - self.grid[0] * self.grid[1] if self.grid else 0

    @property
    def parts_on_tokens(self) -> tuple[FeatureSpec, ...]:
        """The parts in their order, if they follow each other on the token axis; otherwise none."""
        parts = tuple(self.parts.values())
        return parts if any(part.tokens != self.tokens for part in parts) else ()


@dataclass(frozen=True)
class ImageSpec:
    """The encoder's input format, and the number of language-model tokens per image.

    `size` is the side in pixels, `mean` and `std` are per RGB channel for values in [0, 1]. The fusion and the
    projector turn one image into `tokens_per_image` tokens.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokens_per_image: int


@dataclass
class FusionOutput:
    """The output of a fusion: `features` [I, N, D], and `diagnostics` {name: scalar or [I, ...]} to look at.

    A diagnostic named `mass/<source>` is the source weight (gate or attention weight, in [0, 1]); `map/<source>`
    [I, N] is that weight per token. `inner_layers` {k: [I, N_k, D_k]} are features that enter the language model in
    front of its block k.
    """

    features: Tensor
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    inner_layers: dict[int, Tensor] = field(default_factory=dict)


Position = int | tuple[int, ...]
"""Where in the order of the data a batch ends: samples consumed; of a stream, shards passed over of each data set."""


def earliest(positions: Sequence[Position]) -> Position:
    """Returns the position up to which all ranks have come; data set by data set for a stream."""
    first = positions[0]
    if isinstance(first, int):
        return min(position for position in positions if isinstance(position, int))
    columns = zip(*(position for position in positions if isinstance(position, tuple)), strict=True)
    return tuple(min(column) for column in columns)


@dataclass
class Batch:
    """Rows of token ids with their images, in the order of the image placeholders in the rows.

    Attributes:
        token_ids: [B, S] int64, padded on the right.
        labels: [B, S] int64, IGNORE_INDEX where unsupervised.
        images: [I, 3, P, P] float32 normalised; None where features are given.
        features: {source: [I, N, D]} of a frozen encoder, computed before; None where images are given.
        keys: the key of each sample, row by row.
        position: the end of this batch in the order of the data; a stopped run resumes there. It is equal on all
            ranks, except for a stream.
        positions: [B, S] int64 of packed rows, restarting at 0 with each sample, which attends to itself only; None
            where a row is one sample.
        dataset_ids: [B, S] int64, for a mixture: the index in `datasets` of each token's dataset.
        questions: [I, L] int64, for a conditioned fusion: the token ids of the question that is asked about each image,
            NO_TOKEN after it; None for other fusions.
    """

    token_ids: Tensor
    labels: Tensor
    images: Tensor | None
    features: dict[str, Tensor] | None
    keys: tuple[str, ...]
    position: Position
    positions: Tensor | None = None
    dataset_ids: Tensor | None = None
    datasets: tuple[str, ...] = ()
    questions: Tensor | None = None

    @property
    def has_images(self) -> bool:
        """Returns whether any row has an image."""
        inputs = [self.images] if self.features is None else list(self.features.values())
        return any(x is not None and x.shape[0] > 0 for x in inputs)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the same batch with its tensors on `device`."""
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            labels=self.labels.to(device),
            images=None if self.images is None else self.images.to(device),
            features=None if self.features is None else {k: v.to(device) for k, v in self.features.items()},
            positions=None if self.positions is None else self.positions.to(device),
            dataset_ids=None if self.dataset_ids is None else self.dataset_ids.to(device),
            questions=None if self.questions is None else self.questions.to(device),
        )


@dataclass
class PromptedBatch:
    """Images with the target text of the encoder's own decoder for each of its prompts.

    Attributes:
        images: [I, 3, P, P] float32 normalised.
        targets: [I, T, L] int64, end token included, IGNORE_INDEX after it; T in the order of the encoder's prompts.
        keys: as in Batch.
        position: as in Batch.
    """

    images: Tensor
    targets: Tensor
    keys: tuple[str, ...]
    position: Position

    @property
    def has_images(self) -> bool:
        """True: every prompted target has an image."""
        return True

    def to(self, device: torch.device | str) -> PromptedBatch:
        """Returns the same batch with its tensors on `device`."""
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))


@dataclass(frozen=True)
class DataContext:
    """The properties of model and run that a data module needs to make batches.

    Attributes:
        image: the encoder's input format.
        tokenizer: a transformers tokenizer: the language model's for conversations and captions, the encoder's own
            for prompted targets.
        image_token_id: stands in token_ids once per image token.
        tasks: the encoder's prompts, in order.
        batch_size: samples per rank.
        position: where the data resumes.
        conditioned: whether the fusion reads the question, so that every turn is a row of its own and batches have
            `questions`.
    """

    image: ImageSpec
    tokenizer: Any
    image_token_id: int
    tasks: tuple[str, ...]
    batch_size: int
    seed: int
    position: Position = 0
    rank: int = 0
    world_size: int = 1
    conditioned: bool = False
