"""Matches the image tokens of arms: every arm's projector gives the language model the same number of them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import torch

from fvl_lightning.comparison.checks.models import build_arms
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.plan import Arms
from fvl_lightning.core.config.loading import Choice
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.stages.base import Stage


def match_tokens(
    plans: Sequence[Arms],
    baseline: str,
    config: ComparisonConfig,
    build: Callable[[ExperimentConfig], Stage] | None = None,
) -> None:
    """Sets the projector of every arm so that an image becomes as many tokens as declared; only with `match: tokens`.

    Nothing but the number of tokens changes in a projector: each lists the Configs that it can have (`token_options`).

    Args:
        plans: the arms of each seed; they are changed in place.
        baseline: the arm whose number is taken where `image_tokens` is null.
        config: the comparison.
        build: see build_arms.

    Raises:
        ConfigError: an arm cannot be built, its projector cannot make this number of tokens, or arms make other tiles
            of an image.
    """
    if config.match != "tokens":
        return
    tiles = [stages[-1].data.config.tiles for stages in plans[0].values()]
    if any(one != tiles[0] for one in tiles):
        raise ConfigError(
            "match: tokens gives every tile the same number of tokens, and the arms differ in data.tiles, so that an "
            "image has other numbers in them; take match: natural, which shows them as a cost"
        )
    built = {arm: stages[0].model for arm, stages in build_arms(_last(plans[0]), build).items()}
    wanted = config.image_tokens or built[baseline].image_spec.tokens_per_image
    for arm, model in built.items():
        for arms in plans:
            for number, stage in enumerate(arms[arm]):
                if stage.projector is not None:
                    projector = _with_tokens(arm, stage.projector, model, wanted)
                    arms[arm][number] = dataclasses.replace(stage, projector=projector)


def _last(arms: Arms) -> Arms:
    return {arm: stages[-1:] for arm, stages in arms.items()}


def _with_tokens(arm: str, choice: Choice, model: Any, wanted: int) -> Choice:
    """Returns the projector of an arm with the Config that makes `wanted` tokens; ConfigError where none does."""
    features, dim, component = model.fusion.output, model.language_model.dim, choice.component
    options = component.token_options(choice.config, features)
    if wanted in options:
        chosen = dataclasses.replace(choice, config=options[wanted])
        with torch.device("meta"):
            made = component(chosen.config, features, dim).tokens
        if made == wanted:
            return chosen
        raise ConfigError(
            f"match: tokens: {arm}'s projector {choice.name} makes {made} tokens of an image where its token_options "
            f"promise {wanted}"
        )
    raise ConfigError(
        f"match: tokens: {arm} cannot make {wanted} tokens of an image: its projector {choice.name} now makes "
        f"{model.projector.tokens} and can make {numbers_in_words(options)}; take another projector or another "
        "image_tokens"
    )


def numbers_in_words(numbers: Iterable[int]) -> str:
    """Returns numbers as text, consecutive ones as a range: 1, 4, 16; 1 to 64."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda entry: entry[1] - entry[0])
    texts: list[str] = []
    for _, run in runs:
        values = [value for _, value in run]
        texts += [f"{values[0]} to {values[-1]}"] if len(values) > 2 else map(str, values)
    return ", ".join(texts)
