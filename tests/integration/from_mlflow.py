"""A comparison's report made again from what MLflow holds, and from nothing else."""

import json
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from fvl_lightning.comparison.report.report import grids
from fvl_lightning.comparison.result_files.cell import AnswerRow, ArmResult
from fvl_lightning.comparison.result_files.comparison import Comparison, MlflowEntry
from fvl_lightning.comparison.result_files.statistics import ComparisonStatistics
from fvl_lightning.comparison.results import mean_result
from fvl_lightning.comparison.scoring.task_answers import BY
from fvl_lightning.comparison.statistics.summary import summarize
from fvl_lightning.comparison.statistics.tasks import JudgedTasks
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.tasks.result import TaskSample
from fvl_lightning.reporting.tables import Grid

SCORES = ("accuracy", "image_zeroed", "image_shuffled", "prior")
NUMBERS = (
    "parameters", "trainable", "image_tokens", "training_flops", "inference_flops", "tokens_per_second",
    "peak_memory_bytes", "seconds",
)  # fmt: skip


class FromMlflow:
    """The parent, its cells, and what the report makes of them."""

    def __init__(self, uri: str, parent_run_id: str, folder: Path) -> None:
        self._client, self._folder = MlflowClient(tracking_uri=uri), folder
        self.parent = self._client.get_run(parent_run_id)
        self.config = yaml.safe_load(self.artifact(self.parent, "config.yaml"))
        children = self._client.search_runs(
            [self.parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
        )
        self.encoders = [run for run in children if "fvl.arm" not in run.data.tags]
        scored = [run for run in children if "accuracy/macro" in run.data.metrics]
        order = {arm: number for number, arm in enumerate(self.config["arms"])}
        scored.sort(key=lambda run: (order[run.data.tags["fvl.arm"]], int(run.data.params["seed"])))
        self.evaluation = Comparison.read(json.loads(self.artifact(self.parent, "comparison.json"))).evaluation
        """What was asked, which no metric says."""
        self.cells = {(run.data.tags["fvl.arm"], int(run.data.params["seed"])): run for run in scored}
        """{(arm, seed): the run of its last stage}, in the order of the report."""

    def artifact(self, run: Run, name: str) -> str:
        """The text of one."""
        return Path(self._client.download_artifacts(run.info.run_id, name, str(self._folder))).read_text("utf-8")

    def answers(self, run: Run) -> list[AnswerRow]:
        """The rows of a cell's table."""
        table = json.loads(self.artifact(run, "answers.json"))
        return [AnswerRow.read(dict(zip(table["columns"], row, strict=True))) for row in table["data"]]

    def statistics(self) -> dict[str, Any]:
        """As comparison.json has them."""
        tags, results, answers = self.parent.data.tags, {}, {arm: {} for arm, _ in self.cells}  # type: ignore[var-annotated]
        for (arm, seed), run in self.cells.items():
            answers[arm][seed] = self.answers(run)
            results.setdefault(seed, {})[arm] = self._result(run, answers[arm][seed])
        metric, effect = tags["fvl.metric"], self.config["smallest_effect"]
        found = summarize(metric, tags["fvl.baseline"], effect, results, answers, self._judged())
        return json.loads(json.dumps(found.plain()).replace("NaN", "null"))

    def tables(self, statistics: dict[str, Any]) -> list[Grid]:
        """The report's tables.

        Args:
            statistics: as `statistics` has them, its nulls as numbers.
        """
        by_arm: dict[str, list[ArmResult]] = {}
        for (arm, _), run in self.cells.items():
            by_arm.setdefault(arm, []).append(self._result(run, self.answers(run)))
        some = next(iter(self.cells.values()))
        return grids(
            Comparison(
                name="",
                seed=0,
                lineage="",
                mlflow=MlflowEntry(None, "", "", ""),
                encoder=None,
                machine={},
                cells=[],
                differences={},
                arms={arm: mean_result(results) for arm, results in by_arm.items()},
                seeds=sorted({seed for _, seed in self.cells}),
                metric=self.parent.data.tags["fvl.metric"],
                level=yaml.safe_load(self.artifact(some, "config.yaml"))["data"]["level"],
                statistics=ComparisonStatistics.read(statistics),
                evaluation=self.evaluation,
            )
        )

    def _result(self, run: Run, answers: list[AnswerRow]) -> ArmResult:
        """A cell's result as it was before its numbers became metrics."""
        metrics = run.data.metrics
        kinds = sorted({row.kind for row in answers})
        result: dict[str, Any] = {name: self._score(metrics, f"{name}/", kinds) for name in SCORES}
        for group in ("unseen", "transfer"):
            names = {key.split("/")[1] for key in metrics if key.startswith(f"{group}/")}
            result[group] = {name: self._score(metrics, f"{group}/{name}/", kinds) for name in sorted(names)}
        result["tasks"], result["macro"] = self._tasks(run), {}
        for name in self.evaluation.macro if self.evaluation else ():
            result["macro"][name] = metrics[f"macro/{name}"]
        sources = run.data.params["sources"].split(", ")
        result["mass"] = {name: metrics[f"mass/{name}"] for name in sources if f"mass/{name}" in metrics}
        return ArmResult.read(result | {name: metrics[name] for name in NUMBERS})

    def _tasks(self, run: Run) -> dict[str, Any]:
        """A cell's scores on tasks."""
        found = {}
        for name, task in (self.evaluation.tasks if self.evaluation else {}).items():
            kinds = sorted({sample.kind for sample in self._samples(run, name)})
            scores = self._score(run.data.metrics, f"tasks/{name}/", kinds)
            found[name] = {"identity": task.identity, "scores": scores}
        return found

    def _samples(self, run: Run, task: str) -> list[TaskSample]:
        table = json.loads(self.artifact(run, f"answers_{task}.json"))
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        return [
            TaskSample(
                row["id"],
                "",
                row["answer"],
                row["score"],
                Reference((row["truth"],)),
                row["kind"],
                row["cluster"],
                {name.removeprefix(BY): value for name, value in row.items() if name.startswith(BY)},
            )
            for row in rows
        ]

    def _judged(self) -> JudgedTasks | None:
        """The answers to tasks of all cells."""
        if self.evaluation is None:
            return None
        samples: dict[str, dict[str, dict[int, list[TaskSample]]]] = {name: {} for name in self.evaluation.tasks}
        for (arm, seed), run in self.cells.items():
            for name, by_arm in samples.items():
                by_arm.setdefault(arm, {})[seed] = self._samples(run, name)
        return JudgedTasks(self.evaluation, samples)

    @staticmethod
    def _score(metrics: dict[str, float], prefix: str, kinds: list[str]) -> dict[str, Any]:
        by_kind = {kind: metrics[found] for kind in kinds if (found := f"{prefix}{kind.replace(' ', '_')}") in metrics}
        return {"macro": metrics[f"{prefix}macro"], "overall": metrics[f"{prefix}overall"], "by_kind": by_kind}
