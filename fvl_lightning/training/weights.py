"""Weights by component: out of the saved model of one run into the model of another."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.training.components import CHILDREN, component_of

UNUSED = "encoder.decoder."
"""Only encoder_pretrain has the encoder's decoder; a language stage leaves its weights in the file."""


@torch.no_grad()
def load_components(model: nn.Module, folder: Path) -> list[str]:
    """Copies every component that `folder`'s safetensors and `model` both have; returns their names.

    Raises:
        DataError: no safetensors there, or broken ones.
        ConfigError: a component whose parameters differ; the sentence names the first differences.
    """
    stored = _stored(folder)
    ours = model.state_dict()
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    components = {component_of(name) for name in stored} & {component_of(name) for name in ours}
    wanted = {name for name in ours if component_of(name) in components} - tied
    offered = {name for name in stored if component_of(name) in components and name not in tied}
    offered -= {name for name in offered - wanted if name.startswith(UNUSED)}
    wrong = [f"{name} missing" for name in sorted(wanted - offered)]
    wrong += [f"{name} unknown" for name in sorted(offered - wanted)]
    wrong += [
        f"{name} {tuple(stored[name][1])} for {tuple(ours[name].shape)}"
        for name in sorted(wanted & offered)
        if list(ours[name].shape) != list(stored[name][1])
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(
            f"init_from: {folder} holds another model: {'; '.join(wrong[:3])}{more}; start from a run of the same "
            "components, or from one that has only what both share, such as an encoder_pretrain run"
        )
    for file in sorted({stored[name][0] for name in wanted}):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(name for name in wanted if stored[name][0] == file):
                ours[name].copy_(tensors.get_tensor(name))
    return sorted(components)


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hex digits over names, dtypes, shapes and bytes; equal exactly where the weights are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if name.startswith("decoder."):
            continue
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _stored(folder: Path) -> dict[str, tuple[Path, list[int]]]:
    """{parameter name: (file, shape)} over the safetensors of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise DataError(f"{folder} holds no safetensors; the run it belongs to did not finish")
    stored: dict[str, tuple[Path, list[int]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    stored[name] = (file, tensors.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} is not a readable safetensors file: {error}") from None
    foreign = [name for name in stored if name.split(".", 1)[0] not in CHILDREN]
    if foreign:
        raise DataError(f"{folder} holds parameters of another kind of model, such as {foreign[0]}")
    return stored
