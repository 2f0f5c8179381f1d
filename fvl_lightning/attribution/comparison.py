"""A finished comparison, opened once for all sections: its results, and the sections of its runs on demand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fvl_lightning.attribution.opened import Progress, silent
from fvl_lightning.comparison.result_files.comparison import Comparison
from fvl_lightning.reporting.section import Section
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import finished_run

SectionsOfRun = Callable[[RunFolder, Sequence[str], Progress], Mapping[str, Section]]
"""Makes the sections of these names of a run."""
SectionsOfArms = dict[str, dict[int, Section]]
"""{arm: {seed: a section of its run}}"""


@dataclass(frozen=True)
class OpenedComparison:
    """The results of a comparison, and the runs of its cells."""

    folder: Path
    results: Comparison
    make: SectionsOfRun
    progress: Progress = silent
    _made: dict[tuple[str, int], dict[str, Section]] = field(default_factory=dict)

    @property
    def arms(self) -> dict[str, dict[int, RunFolder]]:
        """{arm: {seed: the run of its last stage}} of the finished cells."""
        found: dict[str, dict[int, RunFolder]] = {}
        for cell in self.results.cells:
            last = list(cell.result.runs.values())[-1]
            found.setdefault(cell.arm, {})[cell.seed] = finished_run(last)
        return found

    def sections(self, names: Sequence[str], arms: Sequence[str] | None = None) -> dict[str, SectionsOfArms]:
        """Returns {name: {arm: {seed: section}}} of the runs; a run is opened once for the names that it lacks.

        Args:
            names: sections of a run, such as gates and knock_out.
            arms: the arms whose runs are opened; None for all.
        """
        runs = {arm: by_seed for arm, by_seed in self.arms.items() if arms is None or arm in arms}
        for arm, by_seed in runs.items():
            for seed, run in by_seed.items():
                known = self._made.setdefault((arm, seed), {})
                if lacking := [name for name in names if name not in known]:
                    known.update(self.make(run, lacking, self._progress_of(arm, seed)))
        return {
            name: {arm: {seed: self._made[arm, seed][name] for seed in by_seed} for arm, by_seed in runs.items()}
            for name in names
        }

    def _progress_of(self, arm: str, seed: int) -> Progress:
        return lambda what, done, total: self.progress(f"{arm}, seed {seed}: {what}", done, total)
