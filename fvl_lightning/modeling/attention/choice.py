"""Chooses the attention of a training, by its rows, its device and its language model."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.modeling.attention.kernels import KERNELS, PREFIX

OF_DEVICES = {"cpu": "documents", "cuda": "varlen"}
"""The attention over packed rows that `auto` takes, where it can train the model."""
FLASH_CAPABILITY = (8, 0)
"""The compute capability of the first GPUs with flash attention."""
FLASH_WIDTHS = range(8, 257, 8)
"""The widths of heads that flash attention has."""


@dataclass(frozen=True)
class AttentionChoice:
    """The attention of a language model.

    Attributes:
        name: sdpa, documents, varlen, flex or cudnn; or the implementation of transformers that the model has instead.
        reason: why, as the end of a sentence.
        problem: why a training cannot have the attention that is asked for; None if it can.
    """

    name: str
    reason: str
    problem: str | None = None

    def check(self) -> None:
        """Raises ConfigError for an attention that was asked for and cannot train this model on this machine."""
        if self.problem is not None:
            raise ConfigError(self.problem)


def choose_attention(experiment: ExperimentConfig, model: Any, device: str | None = None) -> AttentionChoice:
    """Returns the attention that `trainer.attention` leads to.

    Args:
        experiment: names attention, layout of rows, accelerator and precision.
        model: a whole model, on any device.
        device: the type of the device of the training; None for what `trainer.accelerator` means on this machine.
    """
    asked, text = experiment.trainer.attention, model.language_model.model
    device = device or planned_device(experiment.trainer.accelerator)
    plain = text.config._attn_implementation.removeprefix(PREFIX)
    plain = "sdpa" if plain in KERNELS else plain
    packed = experiment.data is not None and experiment.data.config.layout == "packed"
    if not packed and asked != "cudnn":
        return AttentionChoice(plain, "rows are not packed")
    if asked == "sdpa" or (asked == "auto" and device not in OF_DEVICES):
        return AttentionChoice(plain, "packed rows have a dense mask")
    wanted = OF_DEVICES[device] if asked == "auto" else asked
    problem = _problem(wanted, text, device, precise=experiment.trainer.precision == "32-true")
    if problem is None:
        mask = "no dense mask" if wanted in KERNELS else "a dense mask"
        return AttentionChoice(wanted, f"packed rows have {mask}" if packed else "rows are not packed")
    if asked == "auto":
        return AttentionChoice(plain, f"packed rows have a dense mask, since for {wanted} {problem}")
    refused = f"trainer.attention: {asked} is not possible, since {problem}; take auto or sdpa"
    return AttentionChoice(plain, "trainer.attention asks for another", refused)


def use_attention(model: Any, name: str) -> None:
    """Sets the attention of a model's language model to one of AttentionChoice's names."""
    text = model.language_model.model
    if name in KERNELS:
        text.set_attn_implementation(PREFIX + name)
    elif text.config._attn_implementation.startswith(PREFIX):
        text.set_attn_implementation("sdpa")


def preferred_kernels(choice: AttentionChoice) -> AbstractContextManager[None]:
    """Returns the context in which `sdpa` takes cuDNN's kernels where they can compute, if they are chosen."""
    if choice.name != "cudnn":
        return nullcontext()
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def planned_device(accelerator: str) -> str:
    """Returns the type of device that `trainer.accelerator` means; this machine need not have it."""
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator


def _problem(name: str, text: PreTrainedModel, device: str, precise: bool) -> str | None:
    """Returns why an attention cannot train a language model; None if it can."""
    family, implementation = text.config.model_type, text.config._attn_implementation
    if name == "cudnn":
        return None if device == "cuda" else f"{device} has no cuDNN"
    if implementation.removeprefix(PREFIX) not in ("sdpa", *KERNELS):
        return f"{family} has the {implementation} attention of transformers"
    # With flash attention, too, transformers passes boundaries and windows on to layers, and makes no mask.
    if not (text._supports_flash_attn and text._supports_attention_backend and text._can_set_attn_implementation()):
        return f"{family} has an attention of its own"
    if name == "documents":
        return None
    if device != "cuda":
        return f"there is no backward pass on {device}"
    if dropouts := _attention_dropouts(text.config):
        return f"the language model has {dropouts[0]}"
    return _problem_of_flash(text.config, precise) if name == "varlen" else None


def _problem_of_flash(config: Any, precise: bool) -> str | None:
    """Returns why torch's flash attention cannot train a language model on a GPU; None if it can."""
    if precise:
        return "trainer.precision is not bf16-mixed"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width not in FLASH_WIDTHS or getattr(config, "v_head_dim", None) not in (None, width):
        return f"the heads of {config.model_type} are of another width"
    if not torch.cuda.is_available():  # planned here for another machine
        return None
    capable = torch.cuda.get_device_capability() >= FLASH_CAPABILITY and torch.version.hip is None
    return None if capable else "this GPU has no flash attention"


def _attention_dropouts(config: Any) -> list[str]:
    """Returns the fields with a dropout of attention weights, which each family names in its own way."""
    return [name for name, value in vars(config).items() if "att" in name and "drop" in name and value]
