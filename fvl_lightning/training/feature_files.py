"""The files of a feature cache, and the images that it is computed from: arrays that several processes write."""

import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BatchData
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
