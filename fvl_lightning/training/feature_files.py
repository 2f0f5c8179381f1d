"""The files of a feature cache, and the images that it is computed from: arrays that several processes write."""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BatchData
from datamodules.batching.workers import read_ahead
from fvl_lightning.core.device import fitting
from fvl_lightning.core.errors import FULL_DISK_ERRORS, UserError

BYTES_PER_PIXEL = 1024
"""Bytes per pixel that an encoder's forward pass is taken to need at most, in float32 without gradients."""
FILE_TYPES = {"float32": "<f4", "bfloat16": "<i2"}
"""{type of the features: numpy's type in the files}; numpy has no bfloat16, so its bits stand in an integer."""


def file_type(dtype: str) -> str:
    """Returns numpy's type of the numbers in a file of features."""
    return FILE_TYPES[dtype]


class SampleImages(Dataset[Tensor | UserError]):
    """The pixels of each sample of a split; an error is an item, since torch would make pages of it in a worker."""

    def __init__(self, data: BatchData, split: str) -> None:
        self.data, self.split = data, split

    def __getitem__(self, index: int) -> Tensor | UserError:
        try:
            return self.data.pixels(self.split, [index])
        except UserError as error:
            return error


class ImageCounts(Dataset[list[int] | UserError]):
    """The number of images of each sample of a split, or of their tiles, in chunks of samples; errors are items."""

    CHUNK = 64

    def __init__(self, data: BatchData, split: str) -> None:
        self.data, self.split = data, split

    def __len__(self) -> int:
        return -(-len(self.data.store(self.split)) // self.CHUNK)

    def __getitem__(self, chunk: int) -> list[int] | UserError:
        samples = range(len(self.data.store(self.split)))[chunk * self.CHUNK : (chunk + 1) * self.CHUNK]
        try:
            return [sum(self.data.tile_counts(self.split, sample)) for sample in samples]
        except UserError as error:
            return error


def image_offsets(data: BatchData, split: str, workers: int) -> NDArray[np.int64]:
    """Returns the number of images or tiles before each sample of a split, and at last that of all.

    Where images become tiles, the headers of all images are read.

    Args:
        data: a connected data module.
        split: the name of the split.
        workers: processes that read headers; 0 reads in this one.
    """
    if data.reader.tiling is None:
        return _offsets(_images(data, split))
    counted: list[int] = []
    chunks = ImageCounts(data, split)
    with read_ahead(chunks, workers, range(len(chunks))) as items:
        for counts in items:
            if isinstance(counts, UserError):
                raise counts
            counted += counts
    return _offsets(counted)


def may_be_offsets(offsets: NDArray[np.int64], data: BatchData, split: str) -> bool:
    """Returns whether a file's offsets are those of a split; no image is read, so tiles are not counted again."""
    images = _images(data, split)
    if data.reader.tiling is None or offsets.shape != (len(images) + 1,):
        return np.array_equal(offsets, _offsets(images))
    least = np.array(images, dtype=np.int64)
    return bool(offsets[0] == 0 and (np.diff(offsets) >= least).all() and ((np.diff(offsets) > 0) == (least > 0)).all())


def _images(data: BatchData, split: str) -> list[int]:
    store = data.store(split)
    return [store.image_count(index) for index in range(len(store))]


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def images_per_pass(images: Tensor, device: torch.device, most: int) -> int:
    """Returns how many images [I, 3, P, P] an encoder takes at once: `most`, or as many as fit on a GPU."""
    return fitting(device, BYTES_PER_PIXEL * images.shape[-1] * images.shape[-2], most)


def as_array(features: Tensor, dtype: str) -> np.ndarray:
    """Returns features as they stand in a file of this type."""
    features = features.to(getattr(torch, dtype)).cpu().contiguous()
    return (features if dtype == "float32" else features.view(torch.int16)).numpy()


def as_features(array: Tensor) -> Tensor:
    """Returns what as_array made an array of, as float32."""
    return array if array.is_floating_point() else array.view(torch.bfloat16).float()


def create_array(path: Path, shape: tuple[int, int, int], dtype: str) -> None:
    """Creates a .npy file that consists of its header, with disk space for the whole array.

    It is written, not mapped: a full disk ends a process that writes into a mapped file without a sentence.
    """
    with path.open("wb") as file:
        header = {"descr": file_type(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        if hasattr(os, "posix_fallocate"):
            try:
                size = np.dtype(file_type(dtype)).itemsize * math.prod(shape)
                os.posix_fallocate(file.fileno(), 0, file.tell() + size)
            except OSError as error:
                if error.errno in FULL_DISK_ERRORS:  # any other: a file system that cannot reserve space
                    raise


def open_array(path: Path, images: int, written: ExitStack) -> BinaryIO:
    """Opens a file of create_array until `written` ends, behind its header and its first `images` rows."""
    file = written.enter_context(path.open("r+b"))
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    file.seek(file.tell() + images * math.prod(shape[1:]) * dtype.itemsize)
    return file
