"""The features of the arms of a comparison of prompts, in numbers: each arm's encoder on the same images."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.views.numbers import unexplained
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.core.florence2_prompts import RELEASED_PROMPTS
from fvl_lightning.encoders.florence2 import Florence2Encoder
from fvl_lightning.encoders.florence2_sources import is_depth
from fvl_lightning.evaluation.scoring import open_model
from fvl_lightning.evaluation.statistics.means import mean_estimate
from fvl_lightning.evaluation.statistics.resampling import Estimate
from fvl_lightning.feature_analysis.effective_rank import effective_rank
from fvl_lightning.feature_analysis.explained import held_out_fits
from fvl_lightning.feature_analysis.images import SAMPLES, encode_images
from fvl_lightning.feature_analysis.places import at_common_places, without_place
from fvl_lightning.feature_analysis.similarity import linear_cka
from fvl_lightning.runs.folder import RunFolder


@dataclass(frozen=True)
class PromptFeatures:
    """Numbers of the features that an arm's encoder makes, over the arm's encoders if there are several.

    Attributes:
        prompts: {source: text of its prompt}.
        rank: effective rank of all sources side by side, without the mean over images at each place.
        beyond: share of the variance of the prompts' features that the depth source does not explain.
        cka: linear CKA of the prompts' features with those of the baseline.
    """

    prompts: Mapping[str, str]
    rank: float
    beyond: Estimate
    cka: float


@dataclass(frozen=True)
class _Features:
    """Features of an arm at places [I, M, D]: its prompts' side by side, and its first depth source."""

    prompts: Tensor | None
    depth: Tensor | None
    rank: float
    samples: tuple[int, ...]


def prompts_of(run: RunFolder) -> dict[str, str]:
    """Returns {source: text of its prompt} of a run; empty for an encoder without prompts."""
    config = run.experiment().encoder.config
    if not isinstance(config, Florence2Encoder.Config):
        return {}
    texts = RELEASED_PROMPTS | config.prompts
    return {name: texts[name] for name in config.sources if not is_depth(name)}


def asks_about_prompts(results: Comparison) -> bool:
    """Returns whether the arms of a comparison differ in the sources or the prompts of the encoder."""
    keys = {key for changed in results.differences.values() for key in changed}
    return any(key.startswith(("encoder.sources", "encoder.prompts")) for key in keys)


def prompt_features(
    opened: OpenedComparison, split: str = "test", accelerator: str | None = None, samples: int = SAMPLES
) -> dict[str, PromptFeatures]:
    """Returns {arm: numbers of its features}; an encoder that seeds of an arm share is run once.

    All arms see the same images: as many as those of the arm with most sources.

    Args:
        opened: the comparison.
        split: the split of the images.
        accelerator: the device; None for that of the training.
        samples: the most samples whose images are encoded.

    Raises:
        DataError, ConfigError: a run, its data or its device are not there.
    """
    arms, prompts = opened.arms, {}
    for arm, by_seed in opened.arms.items():
        prompts[arm] = prompts_of(next(iter(by_seed.values())))
    hashes = {(cell.arm, cell.seed): cell.result.encoder_hash for cell in opened.results.cells}
    baseline = opened.results.statistics.baseline
    found: dict[str, dict[str, _Features]] = {}
    for done, arm in enumerate(sorted(arms, key=lambda arm: -len(prompts[arm]))):
        found[arm] = {}
        for seed, run in arms[arm].items():
            key = hashes.get((arm, seed)) or f"seed {seed}"
            if key not in found[arm]:
                found[arm][key] = _encoded(run, [*prompts[arm]], split, accelerator, samples)
                samples = min(samples, len(set(found[arm][key].samples)))
        opened.progress("features of prompts", done + 1, len(arms))
    return {arm: _numbers(prompts[arm], found[arm], found.get(baseline, {})) for arm in arms}


def _encoded(run: RunFolder, prompts: list[str], split: str, accelerator: str | None, samples: int) -> _Features:
    built, data = open_model(run, split=split, accelerator=accelerator)
    features = encode_images(built.model.encoder, data, split, samples)
    places = at_common_places(features.sources, features.specs)
    own = [places[name] for name in prompts if name in places]
    depth = next((x for name, x in places.items() if name not in prompts), None)
    whole = torch.cat([*map(without_place, places.values())], dim=2) if places else None
    rank = nan if whole is None else effective_rank(whole)
    return _Features(torch.cat(own, dim=2) if own else None, depth, rank, features.samples)


def _numbers(
    prompts: Mapping[str, str], found: Mapping[str, _Features], baseline: Mapping[str, _Features]
) -> PromptFeatures:
    """Returns the means over an arm's encoders; with one encoder, the interval of `beyond` is over images."""
    beyond = [estimate for one in found.values() if (estimate := _beyond(one)) is not None]
    several = len(beyond) > 1
    share = mean_estimate([one.value for one in beyond], range(len(beyond))) if several else None
    alike = [
        linear_cka(without_place(one.prompts), without_place(other.prompts))
        for key, one in found.items()
        if (other := baseline.get(key) or next(iter(baseline.values()), None)) is not None
        and one.prompts is not None
        and other.prompts is not None
        and one.prompts.shape[:2] == other.prompts.shape[:2]
        and one.samples == other.samples
    ]
    return PromptFeatures(
        prompts,
        _mean([one.rank for one in found.values()]),
        share or next(iter(beyond), Estimate(nan)),
        _mean(alike),
    )


def _beyond(one: _Features) -> Estimate | None:
    """Returns the share of the prompts' variance that the depth source does not explain, if there are both."""
    if one.prompts is None or one.depth is None or len(set(one.samples)) < 3:
        return None
    return unexplained(held_out_fits(one.depth, {"prompts": one.prompts}, one.samples)["prompts"], one.samples)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else nan
