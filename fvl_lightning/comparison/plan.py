"""The experiments of a comparison: every arm's stages for every seed, planned alike and differing as declared."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.arms import Arm, arms_of
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.loading import as_plain, differences, load_config
from fvl_lightning.core.config.merging import override
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.runs.setup import build_stage

OWN = ("output", "init_from")
"""Keys in which arms always differ: where they lie and what they start from."""

Arms = dict[str, list[ExperimentConfig]]
"""The stages of every arm, in order."""


@dataclass
class SeedPlan:
    """What is trained with one seed: the encoder for all arms, where there is one, and each arm's stages."""

    encoder: ExperimentConfig | None
    arms: Arms
    folders: dict[str, Path]
    """Where each arm's runs of this seed lie."""


def experiments(
    config: ComparisonConfig, path: Path, folder: Path, seeds: Sequence[int] | None = None
) -> dict[int, SeedPlan]:
    """{seed: its experiments} with the words of the comparison at `path` and of the arms, all of them checked.

    `seeds` are others than those of the comparison; each of them has a folder even where it is the only one.
    """
    arms = arms_of(config, path)
    if not config.stages:
        raise ConfigError(f"stages in {path}: a comparison needs some; see experiments/demo/comparison.yaml")
    if config.lineage == "end_to_end" and config.encoder_stage:
        raise ConfigError(
            f"encoder_stage in {path}: end_to_end means that every arm trains an encoder of its own; name the file "
            "first in `stages`, or choose lineage: frozen_encoder"
        )
    several, base = seeds is not None or len(config.seeds) > 1, path.parent
    plans: dict[int, SeedPlan] = {}
    for seed in config.seeds if seeds is None else seeds:
        common = [
            *config.set,
            f"seed={seed}",
            override("tracking", as_plain(config.tracking)),
            override("plugins", config.plugins),
        ]
        encoder = None
        if config.encoder_stage:
            output = folder / "encoders" / str(seed) if several else folder
            words = [*common, override("output", str(output))]
            encoder = load_config(ExperimentConfig, base / config.encoder_stage, words, f"set in {path}")
        plans[seed] = SeedPlan(encoder, {}, {})
        for name, arm in arms.items():
            own = folder / name / str(seed) if several else folder / name
            words = [*common, override("output", str(own)), "trainer.threads=1", *arm.words]
            if config.lineage == "frozen_encoder":
                words.append(override("feature_cache", str(folder / "feature_cache")))
            plans[seed].folders[name] = own
            plans[seed].arms[name] = [
                load_config(ExperimentConfig, base / stage, words, arm.said) for stage in config.stages
            ]
            for level in config.transfer_levels if seed == config.seeds[0] else ():
                elsewhere = [*words, override("data.level", level)]
                load_config(ExperimentConfig, base / config.stages[-1], elsewhere, f"transfer_levels in {path}")
    _check_swept(config, path, next(iter(plans.values())).arms, [key for arm in arms.values() for key in arm.values])
    return plans


def plan_alike(plans: Sequence[Arms], lineage: str = "frozen_encoder") -> None:
    """Has every arm plan its rows by the tokens per image of the largest: the same samples at every step in all.

    Args:
        plans: the arms of each seed; they are changed in place.
        lineage: as declared, checked here because the stages are built here.

    Raises:
        ConfigError: a stage trains the encoder that all arms share, or none of an arm's trains its own.
    """
    built = {arm: [build_stage(stage, "meta") for stage in stages] for arm, stages in plans[0].items()}
    _check_lineage(lineage, {arm: [stage.trainable["encoder"] for stage in stages] for arm, stages in built.items()})
    for number, stages in enumerate(zip(*built.values(), strict=True)):
        models = [stage.model for stage in stages if isinstance(stage.model, FlorenceVLForConditionalGeneration)]
        tokens = {model.image_spec.tokens_per_image for model in models}
        for arms in plans if len(tokens) > 1 else ():
            for experiments_of_arm in arms.values():
                stage = experiments_of_arm[number]
                planned = dataclasses.replace(stage.data.config, planned_tokens_per_image=max(tokens))
                stage.data = dataclasses.replace(stage.data, config=planned)


def arm_differences(arms: Arms, baseline: str) -> dict[str, dict[str, list[Any]]]:
    """{arm: {dotted key: [the baseline's value, the arm's]}}, of the last stage in which they differ."""
    found: dict[str, dict[str, list[Any]]] = {arm: {} for arm in arms}
    for arm, key, theirs, ours in _differing(arms, baseline):
        found[arm] |= _leaves(key, theirs, ours)
    return found


def axis_values(arms: Mapping[str, Arm], stages: Arms) -> dict[str, dict[str, str]]:
    """{arm: {key: value}} for every key that any arm sets: what the arm sets, or else what its last stage has there.

    Each arm has a value for each key, since MLflow's parallel coordinates leave out a run that lacks one.
    """
    keys = list(dict.fromkeys(key for arm in arms.values() for key in arm.values))
    last = {name: as_plain(of_arm[-1]) for name, of_arm in stages.items()}
    return {
        name: {key: _shown(arm.values[key] if key in arm.values else _value(last[name], key)) for key in keys}
        for name, arm in arms.items()
    }


def _shown(value: Any) -> str:
    """Short, and different from the first letter on where it can be: davit+ocr, attention heads=2."""
    if isinstance(value, Mapping):
        facts = [f"{key}={_shown(fact)}" for key, fact in value.items() if key != "name"]
        return " ".join([str(value["name"]), *facts] if "name" in value else facts)
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _differing(arms: Arms, baseline: str) -> Iterator[tuple[str, str, Any, Any]]:
    """(arm, key, the baseline's value, the arm's) of every stage."""
    for arm, stages in arms.items():
        for theirs, ours in zip(map(as_plain, arms[baseline]), map(as_plain, stages), strict=True):
            for key in differences(theirs, ours):
                if key.partition(".")[0] not in OWN:
                    yield arm, key, _value(theirs, key), _value(ours, key)


def _leaves(key: str, one: Any, other: Any) -> dict[str, list[Any]]:
    """{dotted key: [one, other]}; of a mapping that only one of them has, what it says."""
    if not isinstance(one, Mapping) and not isinstance(other, Mapping):
        return {key: [one, other]}
    one, other = one or {}, other or {}
    return {f"{key}.{inner}": [_value(one, inner), _value(other, inner)] for inner in differences(one, other)}


def _check_swept(config: ComparisonConfig, path: Path, arms: Arms, told: Iterable[str]) -> None:
    """ConfigError where two arms differ in more than what is compared."""
    swept = config.swept or list(dict.fromkeys(told))
    variants = {name for stages in arms.values() for stage in stages for name in stage.chosen}
    if variants & set(swept):
        return  # a choice of a file's stands for any number of keys
    baseline = config.baseline or next(iter(arms))
    for arm, key, theirs, ours in _differing(arms, baseline):
        if not any(key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for one in swept):
            raise ConfigError(
                f"arms in {path}: {arm} differs from {baseline} in {key} too ({ours!r}, not {theirs!r}), and only "
                f"{', '.join(swept) or 'nothing'} is compared; make it equal, or add it to `swept`"
            )


def _check_lineage(lineage: str, modes: Mapping[str, Sequence[str]]) -> None:
    for arm, stages in modes.items():
        if lineage == "frozen_encoder" and set(stages) != {"frozen"}:
            raise ConfigError(
                f"lineage: all arms are to share one frozen encoder, and {arm} trains it; write `trainable: {{encoder: "
                "frozen}` in the stage, or choose lineage: end_to_end"
            )
        if lineage == "end_to_end" and set(stages) == {"frozen"}:
            raise ConfigError(f"lineage: end_to_end, and no stage of {arm} trains its encoder; choose frozen_encoder")


def _value(plain: Any, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, Mapping) else None
    return plain
