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


def normalized(images: Tensor, spec: ImageSpec) -> Tensor:
    """Returns pixels [I, 3, P, P] in 0-255 as float32 of the encoder's mean and deviation; float32 ones in place."""
    scaled = images.float().div_(255)
    for channel, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        scaled[:, channel].sub_(mean).div_(std)  # numbers, since a tensor of them would have to be copied to the device
    return scaled


@dataclass
class FusionOutput:
    """The output of a fusion: `features` [I, N, D], and `diagnostics` {name: scalar or [I, ...]} to look at.

    A diagnostic named `mass/<source>` is the source weight (gate or attention weight, in [0, 1]), the mean over images
    and tokens; `map/<source>` [I, N] is that weight per token, and `weight/<source>` [I] per image. `inner_layers`
    {k: [I, N_k, D_k]} are features that enter the language model in front of its block k.
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
        images: [I, 3, P, P] float32 normalised, or uint8 with `pixel_spec`; None where features are given.
        features: {source: [I, N, D]} of a frozen encoder, computed before; None where images are given.
        keys: the key of each sample, row by row.
        position: the end of this batch in the order of the data; a stopped run resumes there. It is equal on all
            ranks, except for a stream.
        positions: [B, S] int64 of packed rows, restarting at 0 with each sample, which attends to itself only; None
            where a row is one sample.
        boundaries: [samples + 1] int32 of packed rows, ascending over the flattened rows: 0, where each further sample
            begins, and B * S; the padding of a row is cut into samples of its own. None where attention has to find
            the samples by their positions.
        longest: at least the tokens of the longest sample between boundaries.
        dataset_ids: [B, S] int64, for a mixture: the index in `datasets` of each token's dataset.
        questions: [I, L] int64, for a conditioned fusion: the token ids of the question that is asked about each image,
            NO_TOKEN after it; None for other fusions.
        pixel_spec: how `to` normalises images that are uint8; None where they are float32.
    """

    token_ids: Tensor
    labels: Tensor
    images: Tensor | None
    features: dict[str, Tensor] | None
    keys: tuple[str, ...]
    position: Position
    positions: Tensor | None = None
    boundaries: Tensor | None = None
    longest: int = 0
    dataset_ids: Tensor | None = None
    datasets: tuple[str, ...] = ()
    questions: Tensor | None = None
    pixel_spec: ImageSpec | None = None

    @property
    def has_images(self) -> bool:
        """Returns whether any row has an image."""
        inputs = [self.images] if self.features is None else list(self.features.values())
        return any(x is not None and x.shape[0] > 0 for x in inputs)

    def to(self, device: torch.device | str) -> Batch:
        """Returns the same batch with its tensors on `device`, and float32 images."""
        tensors = ("token_ids", "labels", "features", "positions", "boundaries", "dataset_ids", "questions")
        moved = {name: _moved(getattr(self, name), device) for name in tensors}
        return replace(self, **moved, images=_pixels_on(device, self.images, self.pixel_spec), pixel_spec=None)


@dataclass
class PromptedBatch:
    """Images with the target text of the encoder's own decoder for each of its prompts.

    Attributes:
        images: [I, 3, P, P] float32 normalised, or uint8 with `pixel_spec`.
        targets: [I, T, L] int64, end token included, IGNORE_INDEX after it; T in the order of the encoder's prompts.
        keys: as in Batch.
        position: as in Batch.
        pixel_spec: as in Batch.
    """

    images: Tensor
    targets: Tensor
    keys: tuple[str, ...]
    position: Position
    pixel_spec: ImageSpec | None = None

    @property
    def has_images(self) -> bool:
        """True: every prompted target has an image."""
        return True

    def to(self, device: torch.device | str) -> PromptedBatch:
        """Returns the same batch with its tensors on `device`, and float32 images."""
        images = _pixels_on(device, self.images, self.pixel_spec)
        return replace(self, images=images, targets=_moved(self.targets, device), pixel_spec=None)


def _pixels_on(device: torch.device | str, images: Any, spec: ImageSpec | None) -> Any:
    """Returns images on `device`, which normalises those that are bytes: a quarter of the copy, and of its memory."""
    moved = _moved(images, device)
    return moved if spec is None or moved is None else normalized(moved, spec)


def _moved(value: Any, device: torch.device | str) -> Any:
    """Returns a tensor, or the tensors of a dict, on `device`; None stays None.

    The host does not wait for a copy from pinned memory to a GPU.
    """
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: _moved(tensor, device) for name, tensor in value.items()}
    pinned = value.device.type == "cpu" and str(device).startswith("cuda")
    return value.pin_memory().to(device, non_blocking=True) if pinned else value.to(device)


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
        byte_images: whether the images of batches are uint8, which `Batch.to` normalises on the device. Without it the
            loader's workers do, which compute beside a model on the CPU.
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
    byte_images: bool = False
