"""Plans the experiments of a comparison: every arm's stages for every seed, which differ only as declared."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvl_lightning.comparison.arms import FEATURE_CACHE, Arm, arms_of, written_at
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.comparison.scoring.names import is_task_score
from fvl_lightning.core.component_sources.components import source_check
from fvl_lightning.core.config.fields import differences
from fvl_lightning.core.config.loading import as_plain, load_config, read_config
from fvl_lightning.core.config.merging import override
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.metrics.lookup import metric_of
from fvl_lightning.launchers.placement import on_one_device, placed

if TYPE_CHECKING:
    from fvl_lightning.stages.base import Stage

ALWAYS_DIFFERENT = ("output", "init_from")
"""Keys in which arms always differ: their folder, and the run that they start from."""

Arms = dict[str, list[ExperimentConfig]]
"""The stages of every arm, in order."""


@dataclass
class SeedPlan:
    """The experiments of one seed."""

    encoder: ExperimentConfig | None
    """Trains the encoder that all arms share, on one device; None where there is none."""
    arms: Arms
    """The stages as their files ask for them; `placed` (launchers/placement.py) puts them on the cell's devices."""
    folders: dict[str, Path]
    """{arm: folder of its runs with this seed}."""


def check_files(path: Path, overrides: Sequence[str]) -> None:
    """Finds the mistakes in a comparison and its arms that show before any component is imported.

    Raises:
        ConfigError: as `experiments`.
    """
    config = load_config(ComparisonConfig, path, overrides)
    with source_check():
        experiments(config, path, Path(config.output) / config.name, config.seeds[:1], import_components=False)


def experiments(
    config: ComparisonConfig,
    path: Path,
    folder: Path,
    seeds: Sequence[int] | None = None,
    import_components: bool = True,
) -> dict[int, SeedPlan]:
    """Returns {seed: its experiments}, with the overrides of the comparison and of the arms, all of them checked.

    Args:
        config: the comparison.
        path: its file.
        folder: the folder of the comparison's runs.
        seeds: seeds to plan instead of the comparison's; each of them has a folder even if it is the only one.
        import_components: False leaves out the checks of the metric and of levels, for which components are imported.

    Raises:
        ConfigError: the comparison, an arm, or an experiment with its overrides is not valid.
    """
    arms = arms_of(config, path)
    load = load_config if import_components else read_config
    if import_components:
        _check_metrics(config, path)
    _check_stages(config, path)
    several, base = seeds is not None or len(config.seeds) > 1, path.parent
    common_origin = written_at(config, "set", path)
    plans: dict[int, SeedPlan] = {}
    for seed in config.seeds if seeds is None else seeds:
        common, encoder = _common_overrides(config, seed), None
        if config.encoder_stage:
            output = folder / "encoders" / str(seed) if several else folder
            overrides = [*common, override("output", str(output))]
            encoder = on_one_device(load(ExperimentConfig, base / config.encoder_stage, overrides, common_origin))
        plans[seed] = SeedPlan(encoder, {}, {})
        for name, arm in arms.items():
            own = folder / name / str(seed) if several else folder / name
            overrides = [*common, override("output", str(own)), "trainer.threads=1", *arm.overrides]
            if config.lineage != "end_to_end" and config.feature_cache:
                overrides.append(override("feature_cache", str(folder / FEATURE_CACHE)))
            plans[seed].folders[name] = own
            origins = dict.fromkeys(overrides, common_origin) | dict.fromkeys(arm.overrides, arm.origin)
            plans[seed].arms[name] = [
                load(ExperimentConfig, base / stage, overrides, origins) for stage in config.stages
            ]
            for level in config.transfer_levels if seed == config.seeds[0] else ():
                if import_components:
                    _check_levels(plans[seed].arms[name][-1], path)
                at_level = [*overrides, override("data.level", level)]
                load(ExperimentConfig, base / config.stages[-1], at_level, written_at(config, "transfer_levels", path))
    _check_placement(config, path, next(iter(plans.values())))
    _track_together(plans.values())
    _check_swept(config, path, next(iter(plans.values())).arms, [key for arm in arms.values() for key in arm.values])
    return plans


def _check_metrics(config: ComparisonConfig, path: Path) -> None:
    """Raises ConfigError for an unknown metric of a split; scores of tasks are checked with the tasks."""
    scores = {"metric": config.metric, "tune.metric": (config.tune and config.tune.metric) or None}
    for key, score in scores.items():
        if score is not None and not (key == "metric" and is_task_score(score)):
            metric_of(score, written_at(config, key, path))


def _check_stages(config: ComparisonConfig, path: Path) -> None:
    if not config.stages:
        where = written_at(config, "stages", path)
        raise ConfigError(f"{where}: a comparison needs some; see experiments/demo/comparison.yaml")
    if config.lineage == "end_to_end" and config.encoder_stage:
        raise ConfigError(
            f"{written_at(config, 'encoder_stage', path)}: end_to_end means that every arm trains an encoder of its "
            "own; name the file first in `stages`, or choose lineage: frozen_encoder"
        )
    if config.lineage == "frozen_per_arm" and config.encoder_stage:
        raise ConfigError(
            f"{written_at(config, 'encoder_stage', path)}: it trains one encoder for all arms, and frozen_per_arm "
            "means that every arm names one of its own as `pretrained`; leave it out, or choose lineage: frozen_encoder"
        )


def _common_overrides(config: ComparisonConfig, seed: int) -> list[str]:
    """Returns the overrides that the experiments of all arms have."""
    tracking = {key: value for key, value in as_plain(config.tracking).items() if value is not None}
    fields = [override(f"tracking.{key}", value) for key, value in tracking.items()]
    return [*config.overrides, f"seed={seed}", *fields, override("plugins", config.plugins)]


def _track_together(plans: Iterable[SeedPlan]) -> None:
    """Has all experiments tracked where the last stage is, since a run and its parent must be in one place."""
    plans = list(plans)
    tracking = next(iter(plans[0].arms.values()))[-1].tracking
    for plan in plans:
        for experiment in (plan.encoder, *(stage for stages in plan.arms.values() for stage in stages)):
            if experiment is not None:
                experiment.tracking = tracking


def plan_alike(
    plans: Sequence[Arms],
    lineage: str = "frozen_encoder",
    build: "Callable[[ExperimentConfig], Stage] | None" = None,
) -> "dict[str, list[Stage]]":
    """Makes all arms train on the same samples at every step, by planning rows for the largest number of image tokens.

    Args:
        plans: the arms of each seed; they are changed in place.
        lineage: as declared; it is checked here because the stages are built here.
        build: see build_arms.

    Returns:
        The stages of every arm, with shapes and without values.

    Raises:
        ConfigError: an arm cannot be built or cannot compute; a stage trains the encoder that all arms share, or no
            stage of an arm trains the arm's own.
    """
    from fvl_lightning.comparison.checks.models import build_arms
    from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration

    built = build_arms(plans[0], build)
    _check_lineage(lineage, {arm: [stage.trainable["encoder"] for stage in stages] for arm, stages in built.items()})
    for number, stages in enumerate(zip(*built.values(), strict=True)):
        whole = [stage for stage in stages if isinstance(stage.model, FlorenceVLForConditionalGeneration)]
        planned = _planned_alike(whole)
        for arms in plans if planned else ():
            for experiments_of_arm in arms.values():
                stage = experiments_of_arm[number]
                stage.data = dataclasses.replace(stage.data, config=dataclasses.replace(stage.data.config, **planned))
    return built


def _planned_alike(stages: "Sequence[Stage]") -> dict[str, Any]:
    """Returns the fields of the data by which the models of one stage plan equal rows; none where they do already."""
    from datamodules.batching.config import PlannedImage
    from datamodules.images.tiling import Tiling

    reading = [stage.model.conditioned for stage in stages]
    by_turn = {"by_turn": True} if any(reading) and not all(reading) else {}
    images = [stage.model.image_spec for stage in stages]
    tiles = [stage.experiment.data.config.tiles for stage in stages]
    tilings = [Tiling.of(one, image.size) for one, image in zip(tiles, images, strict=True)]
    if any(tiling != tilings[0] for tiling in tilings):
        pairs = zip(images, tiles, strict=True)
        made = [PlannedImage(image.tokens_per_image, image.size, one) for image, one in pairs]
        return by_turn | {"planned_images": [one for place, one in enumerate(made) if one not in made[:place]]}
    tokens = {image.tokens_per_image for image in images}
    return by_turn | ({"planned_tokens_per_image": max(tokens)} if len(tokens) > 1 else {})


def arm_differences(arms: Arms, baseline: str) -> dict[str, dict[str, list[Any]]]:
    """Returns {arm: {dotted key: [the baseline's value, the arm's]}}, for the last stage in which they differ."""
    differing: dict[str, dict[str, list[Any]]] = {arm: {} for arm in arms}
    for arm, key, base, value in _differing(arms, baseline):
        differing[arm] |= _leaves(key, base, value)
    return differing


def axis_values(arms: Mapping[str, Arm], stages: Arms) -> dict[str, dict[str, str]]:
    """Returns {arm: {key: value}} for every key that any arm sets: the arm's value, or else that of its last stage.

    Each arm has a value for each key, because MLflow's parallel coordinates leave out a run that lacks one.
    """
    keys = list(dict.fromkeys(key for arm in arms.values() for key in arm.values))
    last = {name: as_plain(of_arm[-1]) for name, of_arm in stages.items()}
    return {
        name: {key: _shown(arm.values[key] if key in arm.values else _value(last[name], key)) for key in keys}
        for name, arm in arms.items()
    }


def _shown(value: Any) -> str:
    """Returns a short text of a value that starts with what differs: davit+ocr, attention heads=2."""
    if isinstance(value, Mapping):
        entries = [f"{key}={_shown(entry)}" for key, entry in value.items() if key != "name"]
        return " ".join([str(value["name"]), *entries] if "name" in value else entries)
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _differing(arms: Arms, baseline: str) -> Iterator[tuple[str, str, Any, Any]]:
    """Yields (arm, key, the baseline's value, the arm's) for every stage."""
    for arm, stages in arms.items():
        for base, own in zip(map(as_plain, arms[baseline]), map(as_plain, stages), strict=True):
            for key in differences(base, own):
                if key.partition(".")[0] not in ALWAYS_DIFFERENT:
                    yield arm, key, _value(base, key), _value(own, key)


def _leaves(key: str, one: Any, other: Any) -> dict[str, list[Any]]:
    """Returns {dotted key: [one, other]}; a mapping that only one of them has is split into its keys."""
    if not isinstance(one, Mapping) and not isinstance(other, Mapping):
        return {key: [one, other]}
    one, other = one or {}, other or {}
    return {f"{key}.{inner}": [_value(one, inner), _value(other, inner)] for inner in differences(one, other)}


def _check_swept(config: ComparisonConfig, path: Path, arms: Arms, set_keys: Iterable[str]) -> None:
    """Raises ConfigError where an arm differs from the baseline in more than the swept keys."""
    swept = config.swept or list(dict.fromkeys(set_keys))
    variants = {name for stages in arms.values() for stage in stages for name in stage.chosen}
    if variants & set(swept):
        return  # a variant that a file offers stands for any number of keys
    baseline = config.baseline or next(iter(arms))
    for arm, key, base, value in _differing(arms, baseline):
        if not any(key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for one in swept):
            raise ConfigError(
                f"arms in {path}: {arm} differs from {baseline} in {key} too ({value!r}, not {base!r}), and only "
                f"{', '.join(swept) or 'nothing'} is compared; make it equal, or add it to `swept`"
            )


def _check_placement(config: ComparisonConfig, path: Path, plan: SeedPlan) -> None:
    """Raises ConfigError where a stage of an arm cannot be trained on the devices of a cell."""
    where = written_at(config, "resources", path)
    for arm, stages in plan.arms.items():
        for stage in stages:
            placed(stage, config.resources, f"{where}: arm {arm}")
    if config.resources.nodes > 1 and config.launcher != "slurm":
        raise ConfigError(f"{where}: cells of {config.resources.nodes} machines (nodes) need launcher: slurm")


def _check_levels(experiment: ExperimentConfig, path: Path) -> None:
    from fvl_lightning.evaluation.scoring import levels_of

    if experiment.data is None or not levels_of(experiment.data.name):
        name = "none" if experiment.data is None else experiment.data.name
        raise ConfigError(f"transfer_levels in {path}: the data of the last stage is {name}, which has no levels")


def _check_lineage(lineage: str, modes: Mapping[str, Sequence[str]]) -> None:
    for arm, stages in modes.items():
        if lineage != "end_to_end" and set(stages) != {"frozen"}:
            kept = "all arms must share one frozen encoder" if lineage == "frozen_encoder" else "encoders stay frozen"
            raise ConfigError(
                f"lineage: {kept}, and {arm} trains it; write `trainable: {{encoder: frozen}}` in the stage, or choose "
                "lineage: end_to_end"
            )
        if lineage == "end_to_end" and set(stages) == {"frozen"}:
            raise ConfigError(
                f"lineage: end_to_end trains encoders, but no stage of {arm} trains its encoder; choose "
                "frozen_encoder, or frozen_per_arm where arms have different ones"
            )


def _value(plain: Any, key: str) -> Any:
    """Returns the value at a dotted key; None where there is none."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, Mapping) else None
    return plain
