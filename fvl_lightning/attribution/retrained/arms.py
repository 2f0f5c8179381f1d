"""The subset of the sources that each arm of a comparison was trained on, read from the arms' configurations."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fvl_lightning.attribution.retrained.shapley import Subset, all_subsets
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.runs.folder import RunFolder

SOURCE_KEYS = ("fused_sources", "encoder.sources", "fusion.repeat")
"""Keys of an experiment that decide which sources a fusion gets; arms of other keys have another family."""
Size = Literal["natural", "matched"]
"""natural: a model has the size of its sources; matched: copies take the places of those that are missing."""
Places = tuple[str, ...]
"""The sources that a fusion gets, in its order, copies included."""


@dataclass(frozen=True)
class SubsetArms:
    """Arms that differ in their sources alone."""

    sources: tuple[str, ...]
    """All of them, in the order of the arm with the most."""
    arms: Mapping[Size, Mapping[Subset, str]]
    """{size: {subset: arm}}; all sources, and none, count at both sizes. A size without further arms is absent."""
    others: tuple[str, ...]
    """Arms that differ in something else too, or whose sources are not known."""

    def missing(self, size: Size) -> list[Subset]:
        """Returns the subsets without an arm."""
        return [subset for subset in all_subsets(self.sources) if subset not in self.arms[size]]

    def whole(self, places: Mapping[str, Places | None]) -> list[str]:
        """Returns the arms that get every source once, those of other families among them."""
        return [arm for arm, own in places.items() if own is not None and sorted(own) == sorted(self.sources)]


def read_places(results: Comparison) -> dict[str, Places | None]:
    """Returns {arm: the places of its fusion}, from the configuration of its first run's last stage.

    Raises:
        DataError: a run's configuration cannot be read.
    """
    runs: dict[str, str] = {}
    for cell in results.cells:
        runs.setdefault(cell.arm, list(cell.result.runs.values())[-1])
    return {arm: places_of(RunFolder(Path(run)).config) for arm, run in runs.items()}


def arms_to_open(results: Comparison) -> list[str] | None:
    """Returns the arms whose runs are worth opening: those with all sources, of a comparison over subsets; else None.

    A study of all subsets has many runs, and what each loses without a source says little beside the whole models.
    """
    places = read_places(results)
    arms = subset_arms(places, results.differences)
    return None if arms is None else arms.whole(places) or None


def places_of(config: Mapping[str, Any]) -> Places | None:
    """Returns the places of the fusion in an experiment's plain configuration; None where it does not name sources."""
    encoder, fusion = config.get("encoder") or {}, config.get("fusion") or {}
    places = config.get("fused_sources")
    if places is None:
        places = encoder.get("sources")
    return None if places is None else tuple(places) * int(fusion.get("repeat", 1))


def subset_arms(
    places: Mapping[str, Places | None], differences: Mapping[str, Mapping[str, Any]]
) -> SubsetArms | None:
    """Returns the largest group of arms that differ in their sources alone; None where no two arms do.

    Args:
        places: {arm: the places of its fusion}.
        differences: {arm: {key: [the baseline's value, the arm's]}}, as a comparison records them.
    """
    families: dict[str, dict[str, Places]] = defaultdict(dict)
    for arm, own in places.items():
        if own is not None:
            further = {key: value for key, value in differences[arm].items() if key not in SOURCE_KEYS}
            families[repr(sorted(further.items()))][arm] = own
    family = max(families.values(), key=lambda arms: len(set(map(frozenset, arms.values()))), default={})
    if len(set(map(frozenset, family.values()))) < 2:
        return None
    sources = _ordered(family.values())
    sizes: dict[Size, dict[Subset, str]] = {"natural": {}, "matched": {}}
    for arm, own in family.items():
        subset = frozenset(own)
        copies = len(own) > len(subset)
        if not copies:
            sizes["natural"].setdefault(subset, arm)
        if len(own) == len(sources) or not own:
            sizes["matched"].setdefault(subset, arm)
    inner = range(1, len(sources))
    there: dict[Size, dict[Subset, str]] = {
        size: by_subset for size, by_subset in sizes.items() if any(len(subset) in inner for subset in by_subset)
    }
    used = {arm for by_subset in there.values() for arm in by_subset.values()}
    return SubsetArms(sources, there, tuple(arm for arm in places if arm not in used)) if there else None


def _ordered(of_arms: Iterable[Places]) -> tuple[str, ...]:
    """Returns all sources, beginning with those of the arm that has the most."""
    by_number = sorted(of_arms, key=lambda own: -len(set(own)))
    return tuple(dict.fromkeys(source for own in by_number for source in own))
