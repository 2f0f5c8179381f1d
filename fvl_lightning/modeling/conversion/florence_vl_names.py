"""Converts parameter names of the original Florence-VL to those of this kit.

The language model keeps its names under a prefix. The tower is Microsoft's Florence-2, see encoders/florence2_original.
Keys without a use here are left out.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from fvl_lightning.encoders import florence2_original
from fvl_lightning.encoders.florence2_original import RenamedWeights

TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
ROTARY = ".rotary_emb.inv_freq"
"""The ending of the names of rotary frequencies, which a model computes."""
LANGUAGE_MODEL_HEAD = "lm_head.weight"
LINEAR = re.compile(rf"{re.escape(PROJECTOR)}encoder_mlp\.(?:0|(\d+)\.1)\.(weight|bias)")


def rename_weights(weights: Mapping[str, Tensor], keep_decoder: bool, tied: bool) -> RenamedWeights:
    """Returns views of the original's weights under the names of FlorenceVLForConditionalGeneration.

    It leaves out the keys that the tower does not use, a tied head of the language model, and rotary frequencies.
    """
    inner = {name.removeprefix(TOWER): tensor for name, tensor in weights.items() if name.startswith(TOWER)}
    tower = florence2_original.rename_weights(inner, keep_decoder)
    converted: RenamedWeights = {
        f"{TOWER}{name}": (f"encoder.{kit_name}" if kit_name else None, tensor)
        for name, (kit_name, tensor) in tower.items()
    }
    for name, tensor in weights.items():
        if not name.startswith(TOWER) and not name.endswith(ROTARY) and not (tied and name == LANGUAGE_MODEL_HEAD):
            converted[name] = _kit_name(name), tensor
    return converted


def projector_depth(names: Collection[str]) -> int:
    """Returns the number of linear layers of the projector among the keys."""
    return sum(name.endswith(".weight") and LINEAR.fullmatch(name) is not None for name in names)


def _kit_name(name: str) -> str | None:
    """Returns the kit's name for a parameter of the projector or the language model; None if no rule matches."""
    linear = LINEAR.fullmatch(name)
    if linear:
        return f"projector.layers.{2 * int(linear[1] or 0)}.{linear[2]}"  # a GELU stands before each but the first
    if name.startswith((PROJECTOR, "model.vision_tower.")):
        return None
    return f"language_model.model.{name}" if name.startswith("model.") or name == LANGUAGE_MODEL_HEAD else None
