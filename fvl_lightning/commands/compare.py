"""`fvl compare`: arms that differ only in the swept keys, on one frozen encoder, under one MLflow parent."""

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from fvl_lightning.commands.cell import mass_curves
from fvl_lightning.commands.cells import Cell, run_cells
from fvl_lightning.commands.evaluate import score_encoder
from fvl_lightning.commands.train import (
    TRAINING_SPLITS,
    build_stage,
    data_context,
    prepare_data,
    reuse_or_train,
    run_training,
)
from fvl_lightning.core.config import as_plain, config_hash, load_config
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.experiment import ComparisonConfig, ExperimentConfig
from fvl_lightning.evaluation.figures import mass_figure
from fvl_lightning.evaluation.report import rich_table, write_report
from fvl_lightning.tracking.null import NullTracker
from fvl_lightning.tracking.provenance import provenance
from fvl_lightning.tracking.tracker import Tracker
from fvl_lightning.training.feature_cache import build_feature_cache
from fvl_lightning.training.run_folder import RunFolder
from fvl_lightning.training.stop import Preempted, preemptible
from fvl_lightning.training.weights import load_components

SAMPLES = 12
"""Questions on the sheet of sample answers."""

Arms = dict[str, list[ExperimentConfig]]
"""The stages of every arm, in order."""


def compare(
    comparison: Annotated[Path, typer.Argument(help="Comparison file, such as experiments/demo/comparison.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value words of the comparison.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what is finished already.")] = False,
) -> None:
    """Train and score every arm, and write the report.

    Finished runs of the same configuration are kept, unfinished ones resumed.

    Example: `fvl compare experiments/demo/comparison.yaml jobs=2`
    """
    run_comparison(comparison, overrides or [], fresh)


@preemptible()
def run_comparison(path: Path, overrides: list[str], fresh: bool = False) -> Path:
    """The whole comparison; returns the folder of its report."""
    config = load_config(ComparisonConfig, path, overrides)
    folder = Path(config.output) / config.name
    encoder_experiment, arms = experiments(config, path, folder)
    for stages in arms.values():
        data = prepare_data(stages[-1])
        for split in config.unseen_splits:
            data.store(split)
    plan_alike(arms)
    console = Console()
    with tracked_parent(config) as tracker:
        train = run_training if fresh else reuse_or_train
        encoder_run = train(encoder_experiment, parent_run_id=tracker.run_id or None)
        scores = encoder_run.info.get("scores") or score_encoder(encoder_run)
        encoder_run.record(scores=scores)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        console.print(f"encoder {encoder_run.path} on the test split: {figures}", highlight=False, soft_wrap=True)
        warm_feature_cache(encoder_run, arms, console)
        cells = [cell_of(config, folder, arm, stages, encoder_run, tracker, fresh) for arm, stages in arms.items()]
        run_cells(cells, config.jobs, console)
        report, samples = collect(config, encoder_run, arms, cells)
        losses = {cell.arm: loss_curves(report["arms"][cell.arm]["runs"]) for cell in cells}
        write_report(report | {"samples": samples}, losses, folder)
        log_report(tracker, report, folder)
    for table in rich_table(report):
        console.print(table)
    console.print(f"report: {folder / 'report.md'}   (follow the runs with `fvl ui`)", highlight=False)
    return folder


def experiments(config: ComparisonConfig, path: Path, folder: Path) -> tuple[ExperimentConfig, Arms]:
    """The encoder's experiment, and each arm's stages with the words of the comparison at `path` and of the arm."""
    if not config.encoder_stage or not config.stages or not config.arms:
        raise ConfigError("a comparison needs encoder_stage, stages and arms; see experiments/demo/comparison.yaml")
    common = [
        *config.set,
        f"seed={config.seed}",
        f"tracking={json.dumps(as_plain(config.tracking))}",
        f"plugins={json.dumps(config.plugins)}",
    ]
    base = path.parent
    output = f"output={json.dumps(str(folder))}"
    encoder = load_config(ExperimentConfig, base / config.encoder_stage, [*common, output], f"set in {path}")
    arms: Arms = {}
    for arm, settings in config.arms.items():
        words = [
            *common,
            f"output={json.dumps(str(folder / arm))}",
            f"feature_cache={json.dumps(str(folder / 'feature_cache'))}",
            "trainer.threads=1",
            *settings.set,
        ]
        said = f"arms.{arm}.set in {path}"
        arms[arm] = [load_config(ExperimentConfig, base / stage, words, said) for stage in config.stages]
        for level in config.transfer_levels:
            elsewhere = [*words, f"data.level={level}"]
            load_config(ExperimentConfig, base / config.stages[-1], elsewhere, f"transfer_levels in {path}")
    return encoder, arms


def plan_alike(arms: Arms) -> None:
    """Has every arm plan its rows by the tokens per image of the largest: the same samples at every step in all."""
    for stages in zip(*arms.values(), strict=True):
        tokens = {build_stage(stage, "meta").model.image_spec.tokens_per_image for stage in stages}
        for stage in stages if len(tokens) > 1 else ():
            planned = dataclasses.replace(stage.data.config, planned_tokens_per_image=max(tokens))
            stage.data = dataclasses.replace(stage.data, config=planned)


@contextmanager
def tracked_parent(config: ComparisonConfig) -> Iterator[Tracker]:
    """The MLflow run above those of the arms; it also creates the store before several processes open it."""
    if not config.tracking.enabled:
        yield NullTracker()
        return
    plain = as_plain(config)
    tags = provenance(plain, config_hash(plain)) | {"fvl.kind": "comparison", "fvl.lineage": "frozen_encoder"}
    tracker = Tracker.start(config.tracking.uri, config.tracking.experiment, config.name, tags)
    tracker.log_config(plain)
    try:
        yield tracker
    except (KeyboardInterrupt, Preempted):
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")


def warm_feature_cache(encoder_run: RunFolder, arms: Arms, console: Console) -> None:
    """Computes the frozen encoder's features once, before the arms start, for every set of sources among them."""
    with Progress(console=console, transient=True) as progress:
        for stages in arms.values():
            experiment = stages[0]
            data = prepare_data(experiment)
            stage = build_stage(experiment)
            load_components(stage.model, encoder_run.model)
            stage.train()
            data.connect(data_context(stage.model, stage.tokenizer, experiment))
            task = progress.add_task("features of the frozen encoder", total=None)

            def show(split: str, done: int, total: int, task: Any = task) -> None:
                progress.update(task, description=f"features of {split}", completed=done, total=total)

            assert experiment.feature_cache is not None
            build_feature_cache(stage.model.encoder, data, TRAINING_SPLITS, Path(experiment.feature_cache), show)
            progress.remove_task(task)


def cell_of(
    config: ComparisonConfig,
    folder: Path,
    arm: str,
    stages: list[ExperimentConfig],
    encoder_run: RunFolder,
    tracker: Tracker,
    fresh: bool,
) -> Cell:
    """The arm's process, with its specification written where it will find it."""
    spec = {
        "stages": [as_plain(stage) for stage in stages],
        "encoder_run": str(encoder_run.path),
        "encoder_hash": encoder_run.info["encoder_hash"],
        "unseen_splits": config.unseen_splits,
        "transfer_levels": config.transfer_levels,
        "parent_run_id": tracker.run_id or None,
        "fresh": fresh,
    }
    (folder / arm).mkdir(parents=True, exist_ok=True)
    (folder / arm / "cell.json").write_text(json.dumps(spec, indent=2), encoding="utf-8")
    return Cell(arm, folder / arm, [(stage.name, stage.trainer.max_steps) for stage in stages])


def collect(
    config: ComparisonConfig, encoder_run: RunFolder, arms: Arms, cells: list[Cell]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The comparison as it is written to comparison.json, and the sample answers of its sheet."""
    results = {cell.arm: cell.result() for cell in cells}
    hashes = {result["encoder_hash"] for result in results.values()}
    if hashes != {encoder_run.info["encoder_hash"]}:
        raise DataError(f"the arms do not share one encoder: {', '.join(sorted(hashes))}")
    for stage in next(iter(results.values()))["runs"]:
        check_same_samples(stage, {arm: RunFolder(Path(result["runs"][stage])) for arm, result in results.items()})
    samples = sample_answers(next(iter(arms.values()))[-1], {arm: r.pop("answers") for arm, r in results.items()})
    report = {
        "name": config.name,
        "level": getattr(next(iter(arms.values()))[-1].data.config, "level", None),
        "seed": config.seed,
        "lineage": "frozen_encoder",
        "encoder": {
            "run": str(encoder_run.path),
            "hash": encoder_run.info["encoder_hash"],
            "scores": encoder_run.info["scores"],
            "seconds": encoder_run.info["seconds"],
        },
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "arms trained at a time": config.jobs,
        },
        "arms": results,
    }
    return report, samples


def check_same_samples(stage: str, runs: dict[str, RunFolder]) -> None:
    """DataError where two arms did not train on the same samples at the same step."""
    seen: dict[int, tuple[str, float]] = {}
    for arm, run in runs.items():
        for step, keys in run.curve("data/step_keys"):
            other, theirs = seen.setdefault(step, (arm, keys))
            if keys != theirs:
                raise DataError(
                    f"arms {other} and {arm} trained on different samples at step {step} of {stage}; the comparison "
                    "would be unfair, train both again with --fresh"
                )


def sample_answers(experiment: ExperimentConfig, answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Questions spread over the kinds, each with its image and every arm's answer."""
    store = prepare_data(experiment).store("test")
    first = next(iter(answers.values()))
    kinds = sorted({answer["kind"] for answer in first})
    chosen: list[int] = []
    while len(chosen) < min(SAMPLES, len(first)):
        # One kind after the other, each time a question of an image that is not on the sheet yet.
        kind, used = kinds[len(chosen) % len(kinds)], {first[number]["index"] for number in chosen}
        fitting = [n for n, a in enumerate(first) if a["kind"] == kind and a["index"] not in used]
        chosen.append(fitting[0] if fitting else next(n for n in range(len(first)) if n not in chosen))
    return [
        {
            "image": store.images(first[number]["index"])[0],
            "question": first[number]["question"],
            "truth": first[number]["truth"],
            "answers": {arm: texts[number]["answer"] for arm, texts in answers.items()},
        }
        for number in chosen
    ]


def loss_curves(runs: dict[str, str]) -> dict[str, list[tuple[int, float]]]:
    """{stage: [(step, training loss)]} of one arm."""
    return {stage: RunFolder(Path(path)).curve("train/loss") for stage, path in runs.items()}


def log_report(tracker: Tracker, report: dict[str, Any], folder: Path) -> None:
    """Report, figures and scores onto the parent run."""
    for name in ("report.md", "comparison.json", "comparison.png", "loss_curves.png", "samples.png"):
        tracker.log_artifact(folder / name)
    masses = {arm: mass_curves(RunFolder(Path(entry["runs"]["finetune"]))) for arm, entry in report["arms"].items()
              if "finetune" in entry["runs"]}
    masses = {arm: curves for arm, curves in masses.items() if curves}
    if masses:
        tracker.log_figure(mass_figure(masses), "source_mass.png")
    tracker.log_metrics({f"{arm}/accuracy_macro": entry["accuracy"]["macro"] for arm, entry in report["arms"].items()})
