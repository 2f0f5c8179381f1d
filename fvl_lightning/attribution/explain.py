"""Explains runs and comparisons: makes the sections of each, and writes and tracks its report."""

from collections.abc import Sequence
from pathlib import Path

from fvl_lightning.attribution.alignment.report import probed_runs
from fvl_lightning.attribution.opened import Progress, silent
from fvl_lightning.attribution.report import Explanation, check_folder, named, write_report
from fvl_lightning.attribution.request import ExplainRequest, report_folder
from fvl_lightning.attribution.subjects import Subject, subject_of
from fvl_lightning.core.errors import ConfigError


def explain_all(
    references: Sequence[str], request: ExplainRequest, output: Path | None = None, progress: Progress = silent
) -> list[Explanation]:
    """Writes the report of each run or comparison, or one of all runs of alignment_probe; returns what is in it.

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
    probed = probed_runs(references)
    subjects: list[Subject] = [probed] if probed else [subject_of(reference) for reference in references]
    folders = [report_folder(subject.folder, output, len(subjects) > 1) for subject in subjects]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"RUN_OR_COMPARISON: one is named twice in {', '.join(references)}")
    for subject, folder in zip(subjects, folders, strict=True):
        request.wanted(subject.there, str(subject.folder))
        check_folder(folder)
    return [_explained(subject, folder, request, progress) for subject, folder in zip(subjects, folders, strict=True)]


def _explained(subject: Subject, folder: Path, request: ExplainRequest, progress: Progress) -> Explanation:
    names = request.wanted(subject.there, str(subject.folder))
    sections, about = subject.sections(names, request, progress)
    if not sections:
        raise ConfigError(f"--only: {subject.folder} has nothing to show in {', '.join(names)}")
    explained = Explanation(str(subject.folder), named(sections), folder, about)
    write_report(explained)
    subject.track(explained)
    return explained
