"""fvl_lightning: how should a vision encoder's features enter a language model?

A PyTorch Lightning kit around Florence-VL (arXiv 2412.04424) in which the encoder, the fusion, the projector and the
language model are slots that a YAML file fills. This import has no effects and takes no time: each public name is
loaded with its module on first use (PEP 562). `import fvl_lightning.auto` registers the models with transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvl_lightning.auto import FlorenceVLConfig as FlorenceVLConfig
    from fvl_lightning.auto import FlorenceVLForConditionalGeneration as FlorenceVLForConditionalGeneration
    from fvl_lightning.auto import FlorenceVLProcessor as FlorenceVLProcessor

__version__ = "0.1.0"

_MODULES = {
    "FlorenceVLConfig": "fvl_lightning.auto",
    "FlorenceVLForConditionalGeneration": "fvl_lightning.auto",
    "FlorenceVLProcessor": "fvl_lightning.auto",
}
"""Each public name and the module that is imported for it."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
