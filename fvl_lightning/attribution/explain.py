"""Explains runs and comparisons: opens each once, makes its sections, and writes and tracks the report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.makers import AVERAGED, COMPARISON_SECTIONS, RUN_SECTIONS
from fvl_lightning.attribution.opened import OpenedRun, Progress, open_for_explaining, silent
from fvl_lightning.attribution.over_seeds import averaged_section
from fvl_lightning.attribution.report import Explanation, check_folder, named, write_report
from fvl_lightning.attribution.request import ExplainRequest, report_folder
from fvl_lightning.attribution.tracking import track_comparison, track_run
from fvl_lightning.comparison.result_files.comparison import read_comparison
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import plural
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.reporting.section import Section
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import check_answers, finished_run

Subject = RunFolder | OpenedComparison


def explain_all(
    references: Sequence[str], request: ExplainRequest, output: Path | None = None, progress: Progress = silent
) -> list[Explanation]:
    """Writes the report of each run or comparison, and returns what is in it.

    Mistakes in names and folders are found before anything is computed.

    Args:
        references: folders of runs and comparisons, or MLflow ids of runs.
        request: sections and questions.
        output: folder of the report, or of the folders of several; None for `explain` within each run or comparison.
        progress: called as images are encoded and questions answered.

    Raises:
        ConfigError: a run is not finished, or has none of the sections; the output folder has other files.
        DataError: there is no such run, split or file, or the report cannot be written.
    """
    subjects = [_subject(reference, request, progress) for reference in references]
    folders = [report_folder(_folder(subject), output, len(subjects) > 1) for subject in subjects]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"RUN_OR_COMPARISON: one is named twice in {', '.join(references)}")
    for subject, folder in zip(subjects, folders, strict=True):
        request.wanted(_there(subject), str(_folder(subject)))
        check_folder(folder)
    return [_written(subject, folder, request, progress) for subject, folder in zip(subjects, folders, strict=True)]


def _written(subject: Subject, folder: Path, request: ExplainRequest, progress: Progress) -> Explanation:
    if isinstance(subject, RunFolder):
        explained = explain_run(subject, request, folder, progress)
        write_report(explained)
        track_run(subject, explained)
    else:
        explained = explain_comparison(subject, request, folder)
        write_report(explained)
        track_comparison(subject.folder, explained)
    return explained


def explain_run(run: RunFolder, request: ExplainRequest, folder: Path, progress: Progress = silent) -> Explanation:
    """Returns the sections of a finished run; nothing is written.

    Args:
        run: the run.
        request: sections and questions.
        folder: where a report of them belongs.
        progress: called as images are encoded and questions answered.
    """
    opened = open_for_explaining(run, request.split, request.limit, request.accelerator, progress)
    opened = replace(opened, precision=request.precision)
    names = request.wanted(RUN_SECTIONS, str(run.path))
    return Explanation(str(run.path), named(sections_of(opened, names, request)), folder, _about(opened))


def sections_of(opened: OpenedRun, names: Sequence[str], request: ExplainRequest) -> list[Section]:
    """Returns the sections of these names, keys of RUN_SECTIONS; a name may stand for several."""
    return [section for name in names for section in RUN_SECTIONS[name](opened, request)]


def explain_comparison(opened: OpenedComparison, request: ExplainRequest, folder: Path) -> Explanation:
    """Returns the sections of a comparison: those of its runs averaged over seeds, then those of the whole.

    Args:
        opened: the comparison.
        request: sections and questions.
        folder: where a report of them belongs.
    """
    names = request.wanted(_there(opened), str(opened.folder))
    averaged = [name for name in names if name in AVERAGED]
    by_name = opened.sections(averaged) if averaged else {}
    made = [averaged_section(name, by_name[name]) for name in averaged]
    for name in names:
        if name in COMPARISON_SECTIONS:
            made += COMPARISON_SECTIONS[name](opened, request)
    seeds = ", ".join(map(str, opened.results.seeds))
    about = {
        "comparison": f"{opened.results.name}: {', '.join(opened.arms)}",
        "seeds": seeds,
        "asked": f"at most {request.limit} questions of the split {request.split}, spread evenly",
        "precision": request.precision,
    }
    return Explanation(str(opened.folder), named(made), folder, about)


def _subject(reference: str, request: ExplainRequest, progress: Progress) -> Subject:
    """Returns a finished run that answers questions, or a comparison; raises the errors of explain_all."""
    path = Path(reference)
    if is_model_folder(path):
        raise ConfigError(f"{reference} is a model without data; name the run that it comes from, or a comparison")
    if (path / "comparison.json").is_file() and not (path / "run.json").is_file():

        def make(run: RunFolder, names: Sequence[str], shown: Progress) -> dict[str, Section]:
            opened = open_for_explaining(run, request.split, request.limit, request.accelerator, shown)
            return named(sections_of(replace(opened, precision=request.precision), names, request))

        return OpenedComparison(path, read_comparison(path), make, progress)
    run = finished_run(reference)
    check_answers(run)
    return run


def _folder(subject: Subject) -> Path:
    return subject.path if isinstance(subject, RunFolder) else subject.folder


def _there(subject: Subject) -> list[str]:
    """Returns the names of the sections that can be made of a run or comparison."""
    return [*RUN_SECTIONS] if isinstance(subject, RunFolder) else [*AVERAGED, *COMPARISON_SECTIONS]


def _about(opened: OpenedRun) -> dict[str, str]:
    model = opened.built.model
    asked, images = plural(len(opened.questions), "question"), plural(len(opened.samples), "image")
    of = f" of {len(opened.data.questions(opened.split)):,}" if opened.limit else ""
    return {
        "run": f"{opened.run.path}, stage {opened.run.info['stage']}",
        "fusion": model.config.fusion["name"],
        "sources": ", ".join(model.encoder.specs),
        "asked": f"{asked}{of} about {images} of the split {opened.split}, spread evenly",
        "precision": opened.precision,
    }
