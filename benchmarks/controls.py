"""What a trained model scores without its image, with another one's, and on corrupted images.

    python benchmarks/controls.py [--run runs/demo/concat/finetune] [--output runs/evaluations/controls] [--limit N]

The model is that of a finished run of the demo. `fvl evaluate` asks it all questions of its test split, under all
controls and corruptions. Prints a table and saves benchmarks/results/controls.json, with the answer prior of the
questions and that of the training set. Takes five minutes on one core; started again, it goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from recording import record
from rich.console import Console
from rich.table import Table

from fvl_lightning.evaluation.answers import prior_answers, score_answers
from fvl_lightning.evaluation.robustness.corruptions import CORRUPTIONS
from fvl_lightning.evaluation.scoring import open_model, training_questions
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.request import EvaluationRequest
from fvl_lightning.evaluation.tasks.run import run_evaluation, write_results
from fvl_lightning.runs.folder import RunFolder

TASK = "demo"


def main() -> None:
    """Asks the questions, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo/concat/finetune")
    parser.add_argument("--output", type=Path, default=Path("runs/evaluations/controls"))
    parser.add_argument("--limit", type=int, help="number of questions; all by default")
    words = parser.parse_args()
    torch.set_num_threads(1)
    _, data = open_model(RunFolder.open(words.run), accelerator="cpu")
    questions, metric = data.questions("test"), "accuracy"
    prior = score_answers(prior_answers(questions, training_questions(data)), metric).macro
    words.output.mkdir(parents=True, exist_ok=True)
    file = words.output / f"{TASK}.yaml"
    shards = [str(Path(shard).absolute()) for shard in data.store("test").shards]
    task = {"title": "Test split of the demo", "data": {"files": shards}, "metric": metric}
    file.write_text(yaml.safe_dump(task), encoding="utf-8")
    request = EvaluationRequest(
        [words.run], [find_task(file)], words.output, limit=words.limit, variations=("controls", "corruptions"),
        accelerator="cpu",
    )  # fmt: skip
    write_results(request, run_evaluation(request))
    found = json.loads((words.output / "evaluation.json").read_text(encoding="utf-8"))["tasks"][TASK]
    (score,) = found["statistics"]["scores"].values()
    varied = {row["variation"]: {"score": row["score"], "change": row["change"]} for row in found["varied"]}
    console, table = Console(), Table("images", "score", "change")
    table.add_row("as they are", f"{score['value']:.3f}", "")
    for name, row in varied.items():
        table.add_row(name, f"{row['score']['value']:.3f}", f"{row['change']['value']:+.3f}")
    table.add_row("answer prior", f"{found['prior']['value']:.3f}", "")
    table.add_row("answer prior of training", f"{prior:.3f}", "")
    console.print(table)
    result = {
        "run": words.run,
        "questions": found["statistics"]["questions"],
        "images": found["statistics"]["clusters"],
        "as it is": score,
        "varied": varied,
        "prior": found["prior"],
        "prior of training": prior,
        "parameters": {name: list(corruption.parameters) for name, corruption in CORRUPTIONS.items()},
    }
    record("controls", result)


if __name__ == "__main__":
    main()
