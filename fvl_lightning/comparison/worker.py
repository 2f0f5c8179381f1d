"""One arm of a comparison with one seed, in a process of its own: its stages one after the other, then its answers.

`python -m fvl_lightning.comparison.worker SPEC.json` writes result.json beside the specification.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fvl_lightning.comparison.test_split_log import note_reading
from fvl_lightning.core.atomic import write_text_atomically
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, EXIT_USAGE_ERROR, ConfigError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.core.terminal import quiet_libraries
from fvl_lightning.core.weight_files import weights_hash
from fvl_lightning.evaluation.answers import Answer
from fvl_lightning.evaluation.cost import count_cost
from fvl_lightning.evaluation.scoring import open_model, score, score_run
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.run import reuse_or_train, run_training
from fvl_lightning.runs.setup import build_stage
from fvl_lightning.runs.tracking import track_results
from fvl_lightning.training.fault_tolerance.signals import Preempted


def main(specification: Path) -> int:
    """Runs the cell; 0, or 2 with a sentence on standard error, 130 after Ctrl-C, or 75 after SIGTERM."""
    quiet_libraries()
    try:
        result = run_cell(json.loads(specification.read_text(encoding="utf-8")), specification.parent)
        write_text_atomically(specification.with_name("result.json"), json.dumps(result, indent=2))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USAGE_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Preempted:
        return EXIT_REQUEUE
    return 0


def run_cell(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Trains the stages of `spec` and scores the last one; a reading of the test split is noted in `folder`.

    Args:
        spec: `stages` (plain experiments, in order), `encoder_run` (folder) and `encoder_hash`, both None where the
            arms' own encoder is taken, `split` to score on, `transfer_levels`, `unseen_splits`, `parent_run_id`,
            `tags`, `fresh`, and `cell`, which names all that makes the result.
    """
    runs: list[RunFolder] = []
    for stage in spec["stages"]:
        previous = str(runs[-1].path) if runs else spec["encoder_run"]
        started = stage if previous is None else {**stage, "init_from": [previous]}
        experiment = check_config(ExperimentConfig, started)
        train = run_training if spec["fresh"] else reuse_or_train
        run = train(experiment, parent_run_id=spec["parent_run_id"], tags=spec["tags"])
        shared, own = spec["encoder_hash"], run.info["encoder_hash"]
        if shared not in (None, own):
            raise ConfigError(
                f"{run.path}: its encoder is not the one all arms share ({own}, not {shared}); the comparison would be "
                "unfair"
            )
        runs.append(run)
    if spec["split"] != "test":
        return tried_cell(runs, spec)
    note_reading(folder, spec["cell"])
    return score_cell(runs, spec)


def tried_cell(runs: list[RunFolder], spec: dict[str, Any]) -> dict[str, Any]:
    """What a choice is made by, of another split than the one that is reported."""
    result, _ = score_run(runs[-1], spec["split"], controls=False)
    if runs[-1].tracking.is_file():
        track_results(runs[-1], dict(numbers(result, f"{spec['split']}/")), {})
    return result | {"cell": spec["cell"]}


def score_cell(runs: list[RunFolder], spec: dict[str, Any]) -> dict[str, Any]:
    """What the cell measured, with all its answers; it goes to the last stage's MLflow run too."""
    last = runs[-1]
    built, data = open_model(last)
    result, answers = score(built, data, "test")
    result["unseen"] = {
        split: score(built, data, split, controls=False)[0]["accuracy"] for split in spec["unseen_splits"]
    }
    result["transfer"] = {
        level: score_run(last, level=level, controls=False)[0]["accuracy"] for level in spec["transfer_levels"]
    }
    info = last.info
    result |= count_cost(last, built, data) | {
        "parameters": info["parameters"],
        "trainable": info["trainable"],
        "tokens_per_second": info["tokens_per_second"],
        "peak_memory_bytes": max(run.info["peak_memory_bytes"] for run in runs),
        "seconds": sum(run.info["seconds"] for run in runs),
        "mass": {name: curve[-1][1] for name, curve in last.source_weights().items()},
    }
    rows = [
        {"index": a.question.index, "kind": a.question.kind, "question": question_text(a),
         "truth": a.question.answer, "answer": a.text}
        for a in answers
    ]  # fmt: skip
    if last.tracking.is_file():
        track_results(last, dict(numbers(result)), {"answers": rows}, data)
    return result | {
        "cell": spec["cell"],
        "encoder_hash": info["encoder_hash"],
        "initial": initial_weights(spec["stages"][-1]),
        "runs": {run.info["stage"]: str(run.path) for run in runs},
        "answers": rows,
    }


def numbers(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of every number in a result, such as accuracy/macro, accuracy/colour and transfer/medium/macro."""
    for key, value in result.items():
        if isinstance(value, dict):
            yield from numbers(value, prefix if key == "by_kind" else f"{prefix}{key}/")
        elif value is not None:
            yield f"{prefix}{key.replace(' ', '_')}", float(value)


def initial_weights(stage: dict[str, Any]) -> dict[str, list[Any]]:
    """{parameter: [its shape, the hash of its initial values]} of an experiment, before any run is loaded into it."""
    model = build_stage(check_config(ExperimentConfig, stage)).model
    return {
        name: [list(parameter.shape), weights_hash({"": parameter})] for name, parameter in model.named_parameters()
    }


def question_text(answer: Answer) -> str:
    """The words of a question, without its image part."""
    content = answer.question.prompt_messages[-1]["content"]
    return content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
