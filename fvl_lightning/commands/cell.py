"""One arm of a comparison in a process of its own: its stages one after the other, then its answers.

`python -m fvl_lightning.commands.cell SPEC.json` writes result.json beside the specification.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from fvl_lightning.commands.console import INTERRUPTED, MISTAKE, REQUEUE, quiet_libraries
from fvl_lightning.commands.evaluate import score_run
from fvl_lightning.commands.tracked import track_results
from fvl_lightning.commands.train import reuse_or_train, run_training
from fvl_lightning.core.config import check_config
from fvl_lightning.core.errors import ConfigError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.evaluation.answers import Answer
from fvl_lightning.training.run_folder import RunFolder
from fvl_lightning.training.stop import Preempted


def main(specification: Path) -> int:
    """Runs the cell; 0, or 2 with a sentence on standard error, 130 after Ctrl-C, or 75 after SIGTERM."""
    quiet_libraries()
    try:
        result = run_cell(json.loads(specification.read_text(encoding="utf-8")))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Preempted:
        return REQUEUE
    beside = specification.with_name(".result.json.tmp")
    beside.write_text(json.dumps(result, indent=2), encoding="utf-8")
    os.replace(beside, specification.with_name("result.json"))
    return 0


def run_cell(spec: dict[str, Any]) -> dict[str, Any]:
    """Trains the stages of `spec` and scores the last one.

    Args:
        spec: `stages` (plain experiments, in order), `encoder_run` (folder), `encoder_hash`, `transfer_levels`,
            `unseen_splits`, `parent_run_id`, `fresh`.
    """
    runs: list[RunFolder] = []
    for stage in spec["stages"]:
        previous = str(runs[-1].path) if runs else spec["encoder_run"]
        experiment = check_config(ExperimentConfig, {**stage, "init_from": [previous]})
        train = run_training if spec["fresh"] else reuse_or_train
        run = train(experiment, parent_run_id=spec["parent_run_id"])
        if run.info["encoder_hash"] != spec["encoder_hash"]:
            raise ConfigError(f"{run.path}: its encoder is not the one all arms share; the comparison would be unfair")
        runs.append(run)
    return score_cell(runs, spec)


def score_cell(runs: list[RunFolder], spec: dict[str, Any]) -> dict[str, Any]:
    """The arm's entry in comparison.json, with its sample answers; the scores go to the last stage's MLflow run too."""
    last = runs[-1]
    result, answers = score_run(last)
    result["unseen"] = {split: score_run(last, split, controls=False)[0]["accuracy"] for split in spec["unseen_splits"]}
    result["transfer"] = {
        level: score_run(last, level=level, controls=False)[0]["accuracy"] for level in spec["transfer_levels"]
    }
    info = last.info
    result |= {
        "parameters": info["parameters"],
        "trainable": info["trainable"],
        "tokens_per_second": info["tokens_per_second"],
        "peak_memory_bytes": max(run.info["peak_memory_bytes"] for run in runs),
        "seconds": sum(run.info["seconds"] for run in runs),
        "encoder_hash": info["encoder_hash"],
        "mass": {name: curve[-1][1] for name, curve in mass_curves(last).items()},
        "runs": {run.info["stage"]: str(run.path) for run in runs},
        "answers": [
            {"index": a.question.index, "kind": a.question.kind, "question": question_text(a),
             "truth": a.question.answer, "answer": a.text}
            for a in answers
        ],
    }
    track_scores(last, result)
    return result


def question_text(answer: Answer) -> str:
    """The words of a question, without its image part."""
    content = answer.question.prompt_messages[-1]["content"]
    return content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")


def mass_curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """{source: [(step, mass)]} of a run whose fusion reports them."""
    sources = run.config["encoder"]["sources"]
    curves = {source: run.curve(f"mass/{source}") for source in sources}
    return {source: curve for source, curve in curves.items() if curve}


def track_scores(run: RunFolder, result: dict[str, Any]) -> None:
    """Scores as metrics and answers as a table, on the MLflow run of the last stage."""
    if not run.tracking.is_file():
        return
    metrics = {
        f"{name}/{average}": result[name][average]
        for name in ("accuracy", "image_zeroed", "image_shuffled", "prior")
        for average in ("macro", "overall")
    }
    metrics |= {f"accuracy/{kind.replace(' ', '_')}": value for kind, value in result["accuracy"]["by_kind"].items()}
    track_results(run, metrics, {"answers": result["answers"]})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
