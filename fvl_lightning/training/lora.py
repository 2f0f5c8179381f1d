"""LoRA through peft: the layers that get adapters, their settings and their initial values."""

import importlib.util
import logging
import re
from collections.abc import Mapping

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fvl_lightning.core.errors import ConfigError, nearest, unknown_name
from fvl_lightning.core.experiment import LoraConfig
from fvl_lightning.modeling.adapters.folders import ADAPTER
from fvl_lightning.modeling.adapters.patterns import check_patterns
from fvl_lightning.modeling.initialization import derived_seed, seed_streams
from fvl_lightning.training.components import freeze, is_trainable, trainable_names

logger = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"
LANGUAGE_MODEL_LORA = {"language_model": "lora"}
Layers = dict[str, nn.Module]
"""{qualified name: linear layer}."""


def lora_components(trainable: Mapping[str, str]) -> list[str]:
    """Returns the components in mode lora, in order."""
    return [name for name, mode in trainable.items() if mode == "lora"]


def check_lora(settings: LoraConfig | None, trainable: Mapping[str, str], model: nn.Module) -> None:
    """Checks the LoRA settings.

    Raises:
        ConfigError: settings without effect, or that the model or the machine does not support.
    """
    components = lora_components(trainable)
    if components:
        adapter_config(model, trainable, settings or LoraConfig())
    if settings is None:
        return
    if not components:
        raise ConfigError(
            "lora: no component is trained with LoRA, so these settings have no effect; "
            "write `trainable: {language_model: lora}`"
        )
    for name in settings.components:
        if name in trainable and name not in components:
            raise ConfigError(f"lora.components.{name}: {name} is not trained with LoRA; write trainable.{name}=lora")
        if name not in components:
            raise unknown_name("adapted component", name, components, "lora.components")
    if settings.quantization is not None:
        if "language_model" not in components:
            raise ConfigError(
                "lora.quantization: it needs a language model trained with LoRA; write trainable.language_model=lora"
            )
        if settings.quantization == "4bit" and not torch.cuda.is_available():
            raise ConfigError("lora.quantization: 4bit needs a CUDA device, this machine has none; set it to null")
        if settings.quantization == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError("lora.quantization: 4bit needs bitsandbytes, install it with the extra `qlora`")


def adapter_bytes(model: nn.Module, trainable: Mapping[str, str]) -> int:
    """Returns the bytes of all trained tensors: the adapters, and the components in mode full."""
    state = model.state_dict()
    return sum(state[name].nbytes for name in trainable_names(model, trainable))


def add_adapters(model: PreTrainedModel, trainable: Mapping[str, str], settings: LoraConfig, seed: int) -> None:
    """Adds adapters to the components in mode lora, after the weights are loaded.

    The random state of each matrix A is hash(seed, its name) and B is zero, so that two models with one seed start
    equal, and the output of the model does not change.
    """
    config = adapter_config(model, trainable, settings)
    for component, (name, smaller) in find_excess_ranks(model, trainable, settings).items():
        logger.warning(
            "lora.rank %d of %s is above the smaller side of %s, %d: its adapter has more parameters than one of rank "
            "%d, and can learn nothing more",
            _rank(settings, component), component, name, smaller, smaller,
        )  # fmt: skip
    if settings.quantization == "4bit":
        quantize(model)
    with torch.random.fork_rng(devices=[]):
        peft.inject_adapter_in_model(config, model, ADAPTER)
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer):
                seed_streams(derived_seed(seed, f"{name}.lora_A"))
                module.reset_lora_parameters(ADAPTER, init_lora_weights=True)
    freeze(model, trainable)  # peft has frozen all parameters but its own
    if settings.quantization == "bfloat16":
        narrow(model)


def adapter_config(model: nn.Module, trainable: Mapping[str, str], settings: LoraConfig) -> peft.LoraConfig:
    """Returns peft's configuration: one regular expression for all layers; rank and alpha may differ by component."""
    patterns: list[str] = []
    ranks: dict[str, int] = {}
    alphas: dict[str, int] = {}
    for component in lora_components(trainable):
        own = settings.components.get(component)
        rank = _rank(settings, component)
        ranks[component], alphas[component] = rank, (own and own.alpha) or settings.alpha or 2 * rank
        names = linear_layers(model, component, _targets(settings, component))
        patterns.append(name_pattern(component, names, model))
    first, *others = ranks
    return peft.LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],
        lora_dropout=settings.dropout,
        target_modules="|".join(patterns),
        rank_pattern={rf"^{name}\..*": ranks[name] for name in others},
        alpha_pattern={rf"^{name}\..*": alphas[name] for name in others},
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        bias="none",
    )


def find_excess_ranks(
    model: nn.Module, trainable: Mapping[str, str], settings: LoraConfig
) -> dict[str, tuple[str, int]]:
    """Returns {component: (its adapted layer with the smallest side, that side)} if the rank exceeds that side."""
    excess: dict[str, tuple[str, int]] = {}
    for component in lora_components(trainable):
        names = linear_layers(model, component, _targets(settings, component))
        weights = {name: model.get_parameter(f"{name}.weight") for name in names}
        sides = {name: min(weight.shape) for name, weight in weights.items()}
        if sides and _rank(settings, component) > min(sides.values()):
            excess[component] = min(sides.items(), key=lambda item: item[1])
    return excess


def linear_layers(model: nn.Module, component: str, targets: object) -> list[str]:
    """Returns the names of the linear layers of `component` that `targets` selects (see LoraConfig).

    Raises:
        ConfigError: a name or an expression matches no linear layer, or a head shares its weights with the embeddings.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if name.startswith(f"{component}.") and isinstance(module, nn.Linear | Conv1D)
    }
    heads = _heads(model.get_submodule(component))
    if targets == ALL_LINEAR:
        return [name for name, layer in layers.items() if layer not in heads]
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    offered = {name.rpartition(".")[2] for name, layer in layers.items() if layer.weight not in tables}
    found = _select_layers(layers, targets, component, offered)
    for name in found:
        if layers[name].weight in tables:
            raise ConfigError(
                f"lora.targets: {name} shares its weights with the table of tokens, which an adapter would change "
                "too; leave it out"
            )
    return found


def name_pattern(component: str, names: list[str], model: nn.Module) -> str:
    """Returns a regular expression that matches exactly these modules, of the last parts of their names if possible."""
    parts = "|".join(sorted({re.escape(name.rpartition(".")[2]) for name in names}))
    short = rf"{re.escape(component)}\.(?:.*\.)?(?:{parts})"
    if [name for name, _ in model.named_modules() if re.fullmatch(short, name)] == names:
        return short
    return "|".join(re.escape(name) for name in names)


def quantizable_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Returns the linear layers of the language model that `4bit` quantises: all but its head and the adapters."""
    language_model = model.get_submodule("language_model")
    heads = _heads(language_model)
    linear = {name: layer for name, layer in language_model.named_modules() if type(layer) is nn.Linear}
    return {
        name: layer
        for name, layer in linear.items()
        if layer not in heads and not is_trainable(f"language_model.{name}.", LANGUAGE_MODEL_LORA)
    }


def quantize(model: PreTrainedModel) -> None:
    """Replaces linear layers of the language model by NF4 ones, which quantise when moved to a CUDA device (QLoRA)."""
    import bitsandbytes

    language_model = model.get_submodule("language_model")
    for name, layer in quantizable_layers(model).items():
        bias = layer.bias is not None
        quantized = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias, torch.bfloat16, quant_type="nf4", device="meta"
        )
        quantized.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", module=quantized
        )
        quantized.bias = layer.bias
        language_model.set_submodule(name, quantized)
    model.is_loaded_in_4bit = True  # peft chooses its layer classes by this attribute


class NarrowLinear(nn.Linear):
    """A frozen linear layer with its weight in bfloat16, in which it computes as autocast to bfloat16 does."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns the output in bfloat16 under autocast, else in the type of the input."""
        bias = None if self.bias is None else self.bias.to(self.weight.dtype)
        output = nn.functional.linear(input.to(self.weight.dtype), self.weight, bias)
        return output if torch.is_autocast_enabled(input.device.type) else output.to(input.dtype)


def narrowed_layers(model: nn.Module) -> list[nn.Linear]:
    """Returns the frozen linear layers of the language model, under adapters too, which `bfloat16` narrows.

    A head that shares its weight with the token table is none: embeddings stay float32.
    """
    language_model = model.get_submodule("language_model")
    tables = {module.weight for module in language_model.modules() if isinstance(module, nn.Embedding)}
    linear = [module for module in language_model.modules() if isinstance(module, nn.Linear)]
    linear = [layer for layer in linear if type(layer) in (nn.Linear, NarrowLinear)]
    return [layer for layer in linear if not layer.weight.requires_grad and layer.weight not in tables]


def narrow(model: nn.Module) -> None:
    """Holds the weights of `narrowed_layers` in bfloat16; call it after adapters are added, which stay float32."""
    for layer in narrowed_layers(model):
        layer.__class__ = NarrowLinear
        layer.weight = nn.Parameter(layer.weight.detach().to(torch.bfloat16), requires_grad=False)


def _rank(settings: LoraConfig, component: str) -> int:
    own = settings.components.get(component)
    return (own and own.rank) or settings.rank


def _targets(settings: LoraConfig, component: str) -> object:
    own = settings.components.get(component)
    return settings.targets if own is None or own.targets is None else own.targets


def _select_layers(layers: Layers, targets: object, component: str, offered: set[str]) -> list[str]:
    """Selects layers by the last parts of their names, or by an expression for the whole name.

    Args:
        layers: the linear layers to select from.
        targets: a list of names, or a regular expression.
        component: the component of the layers, for errors.
        offered: the last parts of names that an error may suggest.

    Raises:
        ConfigError: `targets` is of another type, or matches no layer.
    """
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets) and targets:
        ends = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets}
        for target, names in ends.items():
            if not names:
                raise unknown_name(f"linear layer of {component}", target, offered, "lora.targets")
        return [name for name in layers if any(name in names for names in ends.values())]
    if not isinstance(targets, str):
        raise ConfigError(f"lora.targets: expected {ALL_LINEAR}, a list of names or an expression, found {targets!r}")
    try:
        re.compile(targets)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"lora.targets: '{targets}' is no regular expression ({error})") from None
    check_patterns([targets], list(layers), "lora.targets")
    found = [name for name in layers if re.fullmatch(targets, name)]
    if not found:
        close = nearest(targets, [ALL_LINEAR, *sorted(offered)])
        near = f"; did you mean {close if close == ALL_LINEAR else f'[{close}]'}?" if close else ""
        raise ConfigError(
            f"lora.targets: '{targets}' fits no linear layer of {component}, such as {next(iter(layers), 'none')}{near}"
        )
    return found


def _heads(component: nn.Module) -> set[nn.Module | None]:
    return {m.get_output_embeddings() for m in component.modules() if isinstance(m, PreTrainedModel)}
