"""Registers the kit's models with transformers: `import fvl_lightning.auto` is all that it takes.

Afterwards AutoConfig, AutoModelForImageTextToText, AutoProcessor and pipeline("image-text-to-text") open model folders
of this kit. Each class registers itself in the module that defines it.
"""

from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor

__all__ = ["FlorenceVLConfig", "FlorenceVLForConditionalGeneration", "FlorenceVLProcessor"]
