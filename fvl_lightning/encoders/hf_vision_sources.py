"""The names of `hf_vision`'s sources, and the layers that they stand for."""

import re

from fvl_lightning.core.errors import ConfigError, nearest
from fvl_lightning.encoders.hf_vision_shapes import LayerOutput, Layout

LAST = "last"
"""The source that is the output of the tower."""
DEPTH = re.compile(r"depth_(\d{1,3})")
"""A source that is the output of the layer at this percentage of the depth."""
GROUP = re.compile(r"group_(\d+)_of_(\d+)")
"""A source that is the mean over a group of consecutive layers: one of as many groups, as equal as they can be."""


def source_layers(sources: list[str], layout: Layout) -> dict[str, tuple[int, ...]]:
    """Returns {source: the layers, from 1, whose mean it is}, in order; none for `last`.

    Raises:
        ConfigError: the tower has no such source, it is no map of the image, or two of them are the same.
    """
    count, staged = len(layout.states), layout.staged
    one = "stage" if staged else "layer"
    more = "" if staged else f", depth_1 to depth_100, group_1_of_2 to group_{count}_of_{count}"
    known = f"last, {one}_1 to {one}_{count}{more}"
    if not sources:
        raise ConfigError(f"encoder.sources: it is empty, name at least one of {known}")
    names = {LAST: (), **{f"{one}_{number}": (number,) for number in range(1, count + 1)}}
    found: dict[str, tuple[int, ...]] = {}
    for name in sources:
        layers = names.get(name)
        if layers is None and not staged:
            layers = _layers_of_part(name, count)
        if layers is None:
            close = nearest(name, names)
            hint = f"; did you mean '{close}'?" if close else ""
            raise ConfigError(f"encoder.sources: '{name}' is not one of {known}{hint}")
        if layers in found.values():
            same = next(other for other, numbers in found.items() if numbers == layers)
            twice = f"a source is named twice in {', '.join(sources)}"
            raise ConfigError(f"encoder.sources: {twice if same == name else f'{same} and {name} are equal'}")
        found[name] = layers
        _check_maps(name, layers, layout)
    return found


def _layers_of_part(name: str, count: int) -> tuple[int, ...] | None:
    """Returns the layers of a percentage of the depth or of a group; None if the name is neither, or out of bounds."""
    if (match := DEPTH.fullmatch(name)) and 1 <= (percent := int(match[1])) <= 100:
        return (max(1, (percent * count + 50) // 100),)
    if (match := GROUP.fullmatch(name)) and 1 <= (group := int(match[1])) <= (groups := int(match[2])) <= count:
        return tuple(range((group - 1) * count // groups + 1, group * count // groups + 1))
    return None


def _check_maps(name: str, layers: tuple[int, ...], layout: Layout) -> None:
    for state in [layout.states[number - 1] for number in layers] or [layout.last]:
        if not isinstance(state, LayerOutput):
            raise ConfigError(f"encoder.sources: {name} cannot be a source, {state}")
