"""The demo set: 64-pixel pictures with captions, words, boxes and questions, drawn in seconds and split by scene."""

from datamodules.demo.data import DemoData

__all__ = ["DemoData"]
