"""Runs all checks of `fvl doctor` on a comparison: those before its start, and one training step of every stage."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from fvl_lightning.comparison.arms import arms_of
from fvl_lightning.comparison.checks.before_start import PlannedComparison, plan_comparison, steps_of_checks
from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import plural
from fvl_lightning.doctor.finding import Finding, run_check, skipped
from fvl_lightning.doctor.model import shaped_stage
from fvl_lightning.doctor.one_batch import check_one_batch
from fvl_lightning.doctor.resources import check_tracking

ADVICE = {
    "data": "`fvl shards check` and `fvl shards preview` show what the splits hold",
    "tasks": "docs/evaluation.md has the form of a task's file; `fvl evaluate --tasks` scores one model on it",
    "evaluation": "docs/evaluation.md has the section on scores during a training",
    "arms": "fix what it names, or leave the arm out (`fvl describe` lists every field of a component)",
    "sizes": "take match: natural, or a projector whose width can be solved",
    "output": "take another `name` or `output`, or `fvl compare --fresh`, which trains everything again",
    "memory": "take a larger device, or what the sentence names; `fvl compare FILE --plan` estimates every stage",
    "disk": "make room, name another `output`, or compare fewer arms or seeds",
}
"""What to do where a check has failed."""


def examine_comparison(
    path: Path, overrides: list[str], report_progress: Callable[[str], None], memory: int | None = None
) -> list[Finding]:
    """Runs every check in order; after a failure those that need its result are skipped.

    Args:
        path: the comparison file.
        overrides: `key=value` from the command line.
        report_progress: called with the name of each check before it starts.
        memory: bytes of the devices that will train; None for those of this machine.
    """
    report_progress("configuration")
    found: list[PlannedComparison] = []
    findings = run_check("configuration", lambda: _configuration(path, overrides, found))
    if not found:
        return findings
    (planned,) = found
    failed = ""
    for checks in steps_of_checks(planned, fresh=False, report_only=False, memory=memory):
        if failed:
            findings += [skipped(name, failed) for name in checks]
            continue
        for name, check in checks.items():
            report_progress(name)
            try:
                findings.append(Finding(name, "ok", check()))
            except UserError as error:
                findings.append(Finding(name, "failed", str(error), ADVICE[name]))
        failed = ", ".join(finding.check for finding in findings if finding.status == "failed")
    stage = next(iter(planned.plans[planned.config.seeds[0]].arms.values()))[-1]
    findings += run_check("tracking", lambda: check_tracking(stage))
    if failed:
        return [*findings, skipped("one batch", failed)]
    return findings + _batches(planned, report_progress)


def _configuration(path: Path, overrides: list[str], found: list[PlannedComparison]) -> Iterator[Finding]:
    """Loads the comparison and its experiments, and appends them to `found`."""
    planned = plan_comparison(load_config(ComparisonConfig, path, overrides), path)
    config, plan = planned.config, planned.plans[planned.config.seeds[0]]
    cells = plural(len(plan.arms) * len(config.seeds), "cell")
    message = f"{plural(len(plan.arms), 'arm')} x {plural(len(config.seeds), 'seed')} = {cells}"
    yield Finding("configuration", "ok", f"{message} of {plural(len(config.stages), 'stage')}")
    if planned.lack_of_seeds is not None:
        advice = "name more `seeds`"
        yield Finding("configuration", "warning", f"no difference will be tested: {planned.lack_of_seeds}", advice)
    found.append(planned)


def _batches(planned: PlannedComparison, report_progress: Callable[[str], None]) -> list[Finding]:
    """Takes one training step of every stage of the first seed's arms and encoder, on two samples."""
    findings: list[Finding] = []
    config, base = planned.config, planned.path.parent
    plan, arms = planned.plans[config.seeds[0]], arms_of(config, planned.path)
    trained: list[tuple[str, str, ExperimentConfig, Sequence[str]]] = []
    if plan.encoder is not None:
        trained.append(("encoder", config.encoder_stage, plan.encoder, []))
    trained += [
        (arm, file, experiment, arms[arm].overrides)
        for arm, stages in plan.arms.items()
        for file, experiment in zip(config.stages, stages, strict=True)
    ]
    for who, file, experiment, words in trained:
        name = f"{who}, {experiment.name}"
        report_progress(f"one batch of {name}")
        check = partial(_one_batch, base / file, [*config.overrides, *words], experiment)
        for finding in run_check("one batch", check):
            findings.append(Finding(finding.check, finding.status, f"{name}: {finding.message}", finding.advice))
    return findings


def _one_batch(path: Path, overrides: Sequence[str], experiment: ExperimentConfig) -> list[Finding]:
    return check_one_batch(path, overrides, experiment, shaped_stage(experiment))
