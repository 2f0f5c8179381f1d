"""The features of a few images as colours, in bases that sources of one width share."""

from string import ascii_uppercase

from torch import Tensor

from datamodules.storage.sample import spread
from fvl_lightning.core.terminal import plural
from fvl_lightning.feature_analysis.images import ImageFeatures
from fvl_lightning.feature_analysis.places import feature_map
from fvl_lightning.feature_analysis.shared_pca import by_width, shared_pca

SHOWN = 5
"""Pictures in a figure."""
MAX_NUMBERS = 2**25
"""The most numbers from which principal components are computed, 256 MiB in float64."""


def colour_maps(features: ImageFeatures, alone: tuple[str, ...] = ()) -> tuple[dict[str, Tensor], str]:
    """Returns {title: colours [SHOWN, rows, columns, 3]} of the sources that are maps, and a sentence about them.

    Args:
        features: the sources of some images, of which SHOWN are spread evenly.
        alone: sources that share no basis, whatever their width, since their channels mean something else.
    """
    maps = {name: feature_map(x, spec) for name, x in features.sources.items() if (spec := features.specs[name]).grid}
    groups = [*by_width({name: x.flatten(2).mT for name, x in maps.items() if name not in alone})]
    groups += [[name] for name in maps if name in alone]
    largest = max((sum(maps[name][0].numel() for name in names) for names in groups), default=1)
    shown = spread(len(features), SHOWN)
    images = sorted({*shown, *spread(len(features), max(1, MAX_NUMBERS // largest))})
    rows, colours, shares = [images.index(image) for image in shown], {}, []
    for letter, names in zip(ascii_uppercase, groups, strict=False):
        found = shared_pca({name: maps[name][images].flatten(2).mT for name in names})
        shares.append(f"{letter} {sum(found.shares):.0%}" if len(groups) > 1 else f"{sum(found.shares):.0%}")
        for name in names:
            title = f"{name} ({letter})" if len(groups) > 1 else name
            colours[title] = found.colours[name][rows].unflatten(1, maps[name].shape[2:])
    basis = "All columns share one basis" if len(groups) == 1 else "Columns with the same letter share one basis"
    return colours, (
        f"The first three principal components of the features as red, green and blue. {basis} and one scale, so that "
        "equal colours are equal directions; the mean of each source is subtracted. Their share of the variance over "
        f"{plural(len(images), 'image')}: {', '.join(shares)}."
    )
