"""The layers and shapes of a vision tower of transformers, measured: it is built without weights and run once.

No family has an entry here. A tower of any kind is built on the meta device, where an operation computes shapes alone.
Its `hidden_states` show how many layers or stages it has and what each of them returns, and a backward pass shows which
parameters the sources of an experiment do not read.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, PreTrainedConfig
from transformers.initialization import no_init_weights

from fvl_lightning.core.errors import ConfigError, first_line
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.encoders.hf_vision_towers import tower_config

MAX_PREFIX = 64
"""The most tokens before the map (CLS and registers) that are taken for such."""
IMAGES = 2
"""Images of the measurement; with one, windows of an image could pass for images."""
Form = Literal["tokens", "channels_first", "channels_last"]


@dataclass(frozen=True)
class LayerOutput:
    """The output of a layer: tokens [I, N, D], or a map [I, D, H, W] or [I, H, W, D], and its shape as tokens."""

    form: Form
    spec: FeatureSpec

    def tokens(self, state: Tensor, keep_prefix: bool) -> Tensor:
        """Returns a state as tokens [I, N, D], row by row, with or without those before the map."""
        if self.form == "tokens":
            return state if keep_prefix else state[:, self.spec.prefix :]
        return state.flatten(2).transpose(1, 2) if self.form == "channels_first" else state.flatten(1, 2)


@dataclass(frozen=True)
class Layout:
    """The layers of a tower, and what they and the tower return for images of one size."""

    layers: str
    """The qualified name of the list of layers or stages."""
    first: int
    """The index of the first layer's output among the states."""
    reshaped: bool
    """Whether the states are `reshaped_hidden_states`, as where the layers keep tokens in another order (Hiera)."""
    states: tuple[LayerOutput | str, ...]
    """The output of each layer; where its tokens are no map of the image, a sentence that says so."""
    last: LayerOutput | str
    """The output of the tower."""

    @property
    def staged(self) -> bool:
        """Returns whether the layers are stages of a pyramid: their grids differ."""
        return len({state.spec.grid for state in self.states if isinstance(state, LayerOutput)}) > 1

    def state_of(self, output: Any, number: int) -> Tensor:
        """Returns the output of layer `number`, from 1, among the outputs of the tower."""
        states: Any = output.reshaped_hidden_states if self.reshaped else output.hidden_states
        return states[number - 1 + self.first]


class UnusableSizeError(ConfigError):
    """A tower cannot be run on images of some size."""


def measure(model: Mapping[str, Any], image_size: int) -> Layout:
    """Returns the layout of a tower, given its configuration as fields.

    Raises:
        ConfigError: the tower cannot be built, or has no list of layers.
        UnusableSizeError: it cannot be run on images of this size.
    """
    return _measure(_key(model), image_size)


def build_tower(config: PreTrainedConfig) -> Any:
    """Returns the tower of a configuration, with the values that it starts with; ConfigError if it cannot be built."""
    try:
        return AutoModel.from_config(config, trust_remote_code=False)
    except Exception as error:  # each model class raises errors of its own
        raise ConfigError(f"encoder.model: it cannot be built: {' '.join(str(error).split())}") from None


def prune(tower: nn.Module, model: Mapping[str, Any], image_size: int, layers: tuple[int, ...], last: bool) -> None:
    """Removes what no source reads: layers after the deepest one, norms, pooling heads, necks and mask tokens.

    Their parameters would get no gradient, but would still take memory in a sharded run. What a tower cannot run
    without stays.

    Args:
        tower: the tower, on any device.
        model: its configuration as fields.
        image_size: pixels per side.
        layers: the layers that are read, from 1.
        last: whether the tower's output is read.
    """
    _remove(tower, _surplus(_key(model), image_size, layers, last))


@dataclass(frozen=True)
class _Surplus:
    """The removable part of a tower: layers after `depth` in the list `layers`, and parameters by name."""

    layers: str
    depth: int | None
    parameters: frozenset[str]


class Unused(nn.Identity):
    """Stands in the place of a module whose output no source reads; it returns its first argument."""

    def forward(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns its first argument."""
        return input


@lru_cache(maxsize=64)
def _measure(key: str, image_size: int) -> Layout:
    config = tower_config(json.loads(key))
    with _shapes_only(), _RandomNumbers() as drawn:
        tower = build_tower(config)
        drawn.found = False
        output = _run(tower, image_size)
    if drawn.found:
        raise ConfigError(f"encoder.model: {config.model_type} draws random numbers, so that its tokens are no map")
    maps, last = getattr(output, "reshaped_hidden_states", None), getattr(output, "last_hidden_state", None)
    states = maps or getattr(output, "hidden_states", None)
    if not isinstance(states, tuple | list) or last is None:
        raise ConfigError(f"encoder.model: {config.model_type} returns no hidden states of its layers")
    name, first = _find_layers(tower, len(states))
    forms = {form for state in states[first:] if (form := _form(state))}
    form = forms.pop() if len(forms) == 1 else None
    found = [_state(state, config, image_size, form) for state in states[first:]]
    return Layout(name, first, bool(maps), tuple(found), _state(last, config, image_size, form))


@lru_cache(maxsize=64)
def _surplus(key: str, image_size: int, layers: tuple[int, ...], last: bool) -> _Surplus:
    """Returns what can be removed: parameters without a gradient, as far as the tower runs without them."""
    layout, config = _measure(key, image_size), tower_config(json.loads(key))

    def read(tower: Any) -> list[Tensor]:
        output = _run(tower, image_size)
        return [layout.state_of(output, number) for number in layers] + [output.last_hidden_state] * last

    with _shapes_only():
        tower = build_tower(config)
        states = read(tower)
        learning = {name: parameter for name, parameter in tower.named_parameters() if parameter.requires_grad}
        total = torch.stack([state.sum() for state in states]).sum()
        gradients = torch.autograd.grad(total, list(learning.values()), allow_unused=True)
        unused = frozenset(name for name, gradient in zip(learning, gradients, strict=True) if gradient is None)
        for depth in [None] if last else [max(layers), None]:
            surplus = _Surplus(layout.layers, depth, unused)
            if depth is None:
                tower = build_tower(config)
            _remove(tower, surplus)
            with suppress(UnusableSizeError, IndexError):
                if [state.shape for state in read(tower)] == [state.shape for state in states]:
                    return surplus
    return _Surplus(layout.layers, None, frozenset())


def _remove(tower: nn.Module, surplus: _Surplus) -> None:
    if surplus.depth is not None:
        parent, _, leaf = surplus.layers.rpartition(".")
        blocks: Any = tower.get_submodule(surplus.layers)
        setattr(tower.get_submodule(parent), leaf, blocks[: surplus.depth])
    removed: list[str] = []
    for name, module in list(tower.named_modules()):
        own = [f"{name}.{leaf}" for leaf, _ in module.named_parameters()]
        if name and own and surplus.parameters.issuperset(own) and not name.startswith(tuple(removed)):
            parent, _, leaf = name.rpartition(".")
            setattr(tower.get_submodule(parent), leaf, Unused())
            removed.append(f"{name}.")
    for name, parameter in list(tower.named_parameters()):
        if name in surplus.parameters:
            parent, _, leaf = name.rpartition(".")
            owner = tower.get_submodule(parent)
            delattr(owner, leaf)
            # A buffer rather than None, since the towers' initialisation writes to it.
            owner.register_buffer(leaf, parameter.detach(), persistent=False)


def _key(model: Mapping[str, Any]) -> str:
    return json.dumps(dict(model), sort_keys=True, default=str)


@contextmanager
def _shapes_only() -> Iterator[None]:
    """Builds and runs modules without memory and values, with gradients, whatever surrounds it."""
    with torch.inference_mode(False), torch.enable_grad(), torch.device("meta"), no_init_weights():
        yield


def _run(tower: Any, image_size: int) -> Any:
    try:
        return tower.eval()(pixel_values=torch.zeros(IMAGES, 3, image_size, image_size), output_hidden_states=True)
    except Exception as error:  # each model class raises errors of its own
        raise UnusableSizeError(
            f"encoder.model: {tower.config.model_type} cannot be run on images of {image_size} px: {first_line(error)}"
        ) from None


def _find_layers(tower: Any, states: int) -> tuple[str, int]:
    """Returns the name of the list of layers, and the index of the first one's output among the hidden states.

    That is a list with as many modules as states, or one less: most towers return the input of the first layer too. If
    there are several, it is the one with the most parameters: some towers have lists of embeddings or norms beside it.
    """
    fitting = {
        name: sum(parameter.numel() for parameter in modules.parameters())
        for name, modules in tower.named_modules()
        if isinstance(modules, nn.ModuleList) and len(modules) in (states - 1, states) and len(modules) > 0
    }
    if not fitting:
        raise ConfigError(
            f"encoder.model: {tower.config.model_type} returns {states} hidden states and has no list of as many layers"
        )
    name = max(fitting, key=lambda name: fitting[name])
    return name, states - len(tower.get_submodule(name))


def _form(state: Any) -> Form | None:
    """Returns the form of a map by its shape, whose rows and columns are alike; None if all are, or it is no map."""
    shape = tuple(state.shape) if isinstance(state, Tensor) else ()
    if len(shape) != 4 or shape[0] != IMAGES:
        return None
    first, last = shape[2] == shape[3], shape[1] == shape[2]
    return None if first == last else "channels_first" if first else "channels_last"


def _state(state: Any, config: PreTrainedConfig, image_size: int, form: Form | None) -> LayerOutput | str:
    """Returns what a layer returned, or a sentence where it is no map of the image.

    Args:
        state: the tensor.
        config: the configuration, for its patch size.
        image_size: pixels per side.
        form: the form of the tower's other maps, for one of as many channels as rows.
    """
    shape = tuple(state.shape) if isinstance(state, Tensor) else ()
    if len(shape) == 4 and shape[0] == IMAGES:
        form = _form(state) or (form if len(set(shape[1:])) == 1 else None)
        if form is None:
            return f"its output {list(shape)} does not show which numbers are rows, columns and channels"
        rows, width = (shape[2], shape[1]) if form == "channels_first" else (shape[1], shape[3])
        return LayerOutput(form, FeatureSpec(rows * rows, width, (rows, rows)))
    if len(shape) == 3 and shape[0] == IMAGES and (side := _side(shape[1], config, image_size)):
        return LayerOutput("tokens", FeatureSpec(shape[1], shape[2], (side, side)))
    return f"its output {list(shape)} is no square map of the image with at most {MAX_PREFIX} tokens before it"


def _side(tokens: int, config: PreTrainedConfig, image_size: int) -> int | None:
    """Returns the side of the map in this many tokens, or None.

    Where the patch size does not show it, as in the stages of a pyramid, it is all tokens, or all but one CLS token.
    """
    patch = getattr(config, "patch_size", None)
    patch = patch[0] if isinstance(patch, list | tuple) and patch else patch
    # As in the towers, pixels after the last whole patch do not count.
    side = image_size // patch if isinstance(patch, int) and patch > 0 else 0
    if side and 0 <= tokens - side * side <= MAX_PREFIX:
        return side
    side = math.isqrt(tokens)
    return side if side and tokens - side * side in (0, 1) else None


class _RandomNumbers(TorchDispatchMode):
    """Finds out whether a computation draws random numbers."""

    found = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and notes one that depends on the seed."""
        self.found |= torch.Tag.nondeterministic_seeded in function.tags
        return function(*args, **(kwargs or {}))
