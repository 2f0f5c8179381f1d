"""The subjects of `fvl explain`: a run that answers questions, and a comparison of such runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fvl_lightning.attribution.comparison import OpenedComparison
from fvl_lightning.attribution.makers import AVERAGED, COMPARISON_SECTIONS, RUN_SECTIONS
from fvl_lightning.attribution.opened import OpenedRun, Progress, open_for_explaining
from fvl_lightning.attribution.over_seeds import averaged_section
from fvl_lightning.attribution.report import Explanation, named
from fvl_lightning.attribution.request import ExplainRequest
from fvl_lightning.attribution.retrained.arms import arms_to_open
from fvl_lightning.attribution.tracking import track_comparison, track_run
from fvl_lightning.comparison.result_files.comparison import Comparison, read_comparison
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.terminal import plural
from fvl_lightning.modeling.adapters.folders import is_model_folder
from fvl_lightning.reporting.section import Section
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import check_answers, finished_run


class Subject(Protocol):
    """A run or a comparison that is explained."""

    @property
    def folder(self) -> Path:
        """Its folder."""

    @property
    def there(self) -> Sequence[str]:
        """The names of the sections that can be made of it, in the order of a report."""

    def sections(
        self, names: Sequence[str], request: ExplainRequest, progress: Progress
    ) -> tuple[list[Section], dict[str, str]]:
        """Returns the sections of these names, and {name: text} of what was opened."""

    def track(self, explained: Explanation) -> None:
        """Adds a report to MLflow, if the run or comparison is tracked."""


class AnsweringRun:
    """A finished run of a model that answers questions."""

    there: Sequence[str] = tuple(RUN_SECTIONS)

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.folder = run.path

    def sections(
        self, names: Sequence[str], request: ExplainRequest, progress: Progress
    ) -> tuple[list[Section], dict[str, str]]:
        """Opens the run once for all sections of these names."""
        opened = _opened(self.run, request, progress)
        return _sections_of(opened, names, request), _about(opened)

    def track(self, explained: Explanation) -> None:
        """Adds report and numbers to the run."""
        track_run(self.run, explained)


class ComparedRuns:
    """A comparison with results: its runs averaged over seeds, and the whole."""

    there: Sequence[str] = tuple(dict.fromkeys([*AVERAGED, *COMPARISON_SECTIONS]))

    def __init__(self, folder: Path, results: Comparison) -> None:
        self.folder, self.results = folder, results

    def sections(
        self, names: Sequence[str], request: ExplainRequest, progress: Progress
    ) -> tuple[list[Section], dict[str, str]]:
        """Opens each run once for all sections that need its model."""

        def make(run: RunFolder, wanted: Sequence[str], shown: Progress) -> dict[str, Section]:
            return named(_sections_of(_opened(run, request, shown), wanted, request))

        opened = OpenedComparison(self.folder, self.results, make, progress)
        averaged = [name for name in names if name in AVERAGED]
        by_name = opened.sections(averaged, arms_to_open(self.results)) if averaged else {}
        made = [averaged_section(name, by_name[name]) for name in averaged]
        for name in names:
            if name in COMPARISON_SECTIONS:
                found = COMPARISON_SECTIONS[name](opened, request)
                made += [section for section in found if section.values or request.only]  # others have nothing to show
        about = {
            "comparison": f"{self.results.name}: {', '.join(opened.arms)}",
            "seeds": ", ".join(map(str, self.results.seeds)),
            "asked": f"at most {request.limit} questions of the split {request.split}, spread evenly",
            "precision": request.precision,
        }
        return made, about

    def track(self, explained: Explanation) -> None:
        """Adds the report to the comparison's own run."""
        track_comparison(self.folder, explained)


def subject_of(reference: str) -> Subject:
    """Returns what a reference names.

    Raises:
        ConfigError: a run is not finished or trains an encoder alone, or a model folder is named.
        DataError: there is no such run or comparison, or its files are damaged.
    """
    path = Path(reference)
    if is_model_folder(path):
        raise ConfigError(f"{reference} is a model without data; name the run that it comes from, or a comparison")
    if (path / "comparison.json").is_file() and not (path / "run.json").is_file():
        return ComparedRuns(path, read_comparison(path))
    run = finished_run(reference)
    check_answers(run)
    return AnsweringRun(run)


def _opened(run: RunFolder, request: ExplainRequest, progress: Progress) -> OpenedRun:
    opened = open_for_explaining(run, request.split, request.limit, request.accelerator, progress)
    return replace(opened, precision=request.precision)


def _sections_of(opened: OpenedRun, names: Sequence[str], request: ExplainRequest) -> list[Section]:
    return [section for name in names for section in RUN_SECTIONS[name](opened, request)]


def _about(opened: OpenedRun) -> dict[str, str]:
    model = opened.built.model
    asked, images = plural(len(opened.questions), "question"), plural(len(opened.samples), "image")
    of = f" of {len(opened.data.questions(opened.split)):,}" if opened.limit else ""
    return {
        "run": f"{opened.run.path}, stage {opened.run.info['stage']}",
        "fusion": model.config.fusion["name"],
        "sources": ", ".join(model.alignment.sources),
        "asked": f"{asked}{of} about {images} of the split {opened.split}, spread evenly",
        "precision": opened.precision,
    }
