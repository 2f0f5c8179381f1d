"""fvl_lightning: how should a vision encoder's features enter a language model?

A PyTorch Lightning kit around Florence-VL (arXiv 2412.04424) in which the encoder, the fusion, the projector and the
language model are slots that a YAML file fills. This import has no effects and takes no time: each public name is
loaded with its module on first use (PEP 562). `import fvl_lightning.auto` registers the models with transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvl_lightning.api.comparison import compare as compare
    from fvl_lightning.api.comparison import open_comparison as open_comparison
    from fvl_lightning.api.evaluation import evaluate as evaluate
    from fvl_lightning.api.evaluation import evaluate_tasks as evaluate_tasks
    from fvl_lightning.api.experiment import build as build
    from fvl_lightning.api.experiment import load_experiment as load_experiment
    from fvl_lightning.api.explanation import explain as explain
    from fvl_lightning.api.model import load_model as load_model
    from fvl_lightning.api.plugins import import_plugins as import_plugins
    from fvl_lightning.api.run import open_run as open_run
    from fvl_lightning.api.run import train as train
    from fvl_lightning.auto import FlorenceVLConfig as FlorenceVLConfig
    from fvl_lightning.auto import FlorenceVLForConditionalGeneration as FlorenceVLForConditionalGeneration
    from fvl_lightning.auto import FlorenceVLProcessor as FlorenceVLProcessor
    from fvl_lightning.core.errors import ConfigError as ConfigError
    from fvl_lightning.core.errors import DataError as DataError
    from fvl_lightning.core.experiment import LoraConfig as LoraConfig
    from fvl_lightning.core.terminal import quiet_libraries as quiet_libraries
    from fvl_lightning.inference.generation import Sampling as Sampling
    from fvl_lightning.training.step_logging import LogWindow as LogWindow

__version__ = "0.1.0"

_MODULES = {
    "ConfigError": "fvl_lightning.core.errors",
    "DataError": "fvl_lightning.core.errors",
    "FlorenceVLConfig": "fvl_lightning.auto",
    "FlorenceVLForConditionalGeneration": "fvl_lightning.auto",
    "FlorenceVLProcessor": "fvl_lightning.auto",
    "LoraConfig": "fvl_lightning.core.experiment",
    "LogWindow": "fvl_lightning.training.step_logging",
    "Sampling": "fvl_lightning.inference.generation",
    "build": "fvl_lightning.api.experiment",
    "compare": "fvl_lightning.api.comparison",
    "evaluate": "fvl_lightning.api.evaluation",
    "evaluate_tasks": "fvl_lightning.api.evaluation",
    "explain": "fvl_lightning.api.explanation",
    "import_plugins": "fvl_lightning.api.plugins",
    "load_experiment": "fvl_lightning.api.experiment",
    "load_model": "fvl_lightning.api.model",
    "open_comparison": "fvl_lightning.api.comparison",
    "open_run": "fvl_lightning.api.run",
    "quiet_libraries": "fvl_lightning.core.terminal",
    "train": "fvl_lightning.api.run",
}
"""Each public name and the module that is imported for it."""

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__", "__name__", "__file__", "__path__"])
