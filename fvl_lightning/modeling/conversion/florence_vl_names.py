"""Parameter names of the original Florence-VL and what they are called here.

The language model keeps its names under a prefix. The tower is Microsoft's Florence-2, see encoders/florence2_original.
Some keys have no use here and are left out.
"""

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from fvl_lightning.encoders import florence2_original
from fvl_lightning.encoders.florence2_original import Renamed

TOWER = "model.vision_tower.vision_tower."
PROJECTOR = "model.mm_projector."
ROTARY = ".rotary_emb.inv_freq"
"""End of the names of frequencies that a model computes."""
LANGUAGE_MODEL_HEAD = "lm_head.weight"
LINEAR = re.compile(rf"{re.escape(PROJECTOR)}encoder_mlp\.(?:0|(\d+)\.1)\.(weight|bias)")


def renamed(weights: Mapping[str, Tensor], keep_decoder: bool, tied: bool) -> Renamed:
    """The original's values under the names they have in FlorenceVLForConditionalGeneration; views of `weights`.

    Left out is what the tower has no use for, the language model's head where it is tied, and rotary frequencies.
    """
    inner = {name.removeprefix(TOWER): tensor for name, tensor in weights.items() if name.startswith(TOWER)}
    tower = florence2_original.renamed(inner, keep_decoder)
    found: Renamed = {
        f"{TOWER}{name}": (f"encoder.{ours}" if ours else None, tensor) for name, (ours, tensor) in tower.items()
    }
    for name, tensor in weights.items():
        if not name.startswith(TOWER) and not name.endswith(ROTARY) and not (tied and name == LANGUAGE_MODEL_HEAD):
            found[name] = _our_name(name), tensor
    return found


def projector_depth(names: Collection[str]) -> int:
    """Linear layers of the projector that the keys hold."""
    return sum(name.endswith(".weight") and LINEAR.fullmatch(name) is not None for name in names)


def _our_name(name: str) -> str | None:
    """The name of a parameter of the projector or the language model; None for one that no rule speaks of."""
    linear = LINEAR.fullmatch(name)
    if linear:
        return f"projector.layers.{2 * int(linear[1] or 0)}.{linear[2]}"  # a GELU stands before each but the first
    if name.startswith((PROJECTOR, "model.vision_tower.")):
        return None
    return f"language_model.model.{name}" if name.startswith("model.") or name == LANGUAGE_MODEL_HEAD else None
