"""The demo set: synthetic 64-pixel images with captions, words, boxes and questions, split by scene."""

from datamodules.demo.data import DemoData

__all__ = ["DemoData"]
