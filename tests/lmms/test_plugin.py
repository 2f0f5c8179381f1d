"""The plugin in lmms-eval: a Parquet task gives the predictions and scores there that it gives in the kit.

`make test-lmms` runs it in an environment of its own; elsewhere there is no lmms-eval, and it is skipped.
"""

import importlib.util
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

if not all(map(importlib.util.find_spec, ("lmms_eval", "accelerate", "datasets"))):
    pytest.skip("lmms-eval is in the environment of `make test-lmms`", allow_module_level=True)
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # before datasets is imported

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.loggers import EvaluationTracker
from lmms_eval.tasks import TaskManager
from PIL import Image, ImageFile

from fvl_lightning.evaluation.batched_answers import Asking
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.lookup import find_task
from fvl_lightning.evaluation.tasks.result import TaskResult
from fvl_lightning.evaluation.tasks.samples import outputs_for, read_samples
from fvl_lightning.evaluation.tasks.score import score_task
from fvl_lightning.modeling.build import LoadedModel, load_model
from fvl_lightning.modeling.processing.processor import make_processor
from tests.tiny_models import LLAMA, tiny_model, tiny_tokenizer

ROWS = 20
TEMPLATE = (
    "{% for message in messages %}{{ '<bos> ' if loop.first }}{{ message['content'] + ' ' }}"
    "{{ 'w5' if message['role'] == 'user' else '<eos>' }} {% endfor %}"
)
KIT_TASKS = {
    "generation": """
title: Generation
data: {files: [rows.parquet]}
fields: {images: [images], answers: [answer]}
answer: {tokens: 5}
""",
    "choices": """
title: Choices
data: {files: [rows.parquet]}
fields: {images: [images], answers: [right], answers_as: number, choices: [options]}
answer: {by: likelihood}
""",
}
COMMON = """
dataset_path: parquet
dataset_kwargs: {data_files: {test: FOLDER/rows.parquet}}
test_split: test
doc_to_visual: !function utils.visuals
doc_to_text: question
metadata: {version: 0}
"""
LMMS_TASKS = {
    "generation": """
task: generation
output_type: generate_until
doc_to_target: answer
generation_kwargs: {max_new_tokens: 5, temperature: 0, do_sample: false}
process_results: !function utils.results
metric_list: [{metric: accuracy, aggregation: mean, higher_is_better: true}]
""",
    "choices": """
task: choices
output_type: multiple_choice
doc_to_target: right
doc_to_choice: options
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}
UTILS = '''
import io

from PIL import Image


def visuals(doc):
    return [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in doc["images"]]


def results(doc, results):
    return {"accuracy": float(results[0].strip() == doc["answer"])}
'''


def png(seed: int) -> bytes:
    image = Image.new("RGB", (20, 14 + seed % 5), (40 * seed % 256, 90 * seed % 256, 200))
    image.paste((255, 255, 255), (seed % 7, 0, seed % 7 + 6, 7))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def row(number: int) -> dict[str, Any]:
    """A question about no image, one or several; some pictures are asked about twice."""
    images = [[number % 4], [number % 4, 5], [], [9]][number % 4]
    return {
        "question": " ".join(f"w{6 + (number * step) % 30}" for step in range(1, 2 + number % 5)),
        "images": [{"bytes": png(image), "path": None} for image in images],
        "answer": "w4",
        "options": [f"w{10 + number % 9}", f"w{20 + number % 7} w{30 - number % 5}", "w7"][: 2 + number % 2],
        "right": number % 2,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and two tasks over the same rows, each for the kit and for lmms-eval."""
    folder = tmp_path_factory.mktemp("lmms")
    os.environ["HF_HOME"] = str(folder / "hub")
    llama = LLAMA | {"tie_word_embeddings": False, "initializer_range": 0.6}
    model, tokenizer = tiny_model(7, fusion="gated", llama=llama), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    model.save_pretrained(folder / "model")
    make_processor(model.image_spec, tokenizer, "stretch").save_pretrained(folder / "model")
    (folder / "lmms").mkdir()
    (folder / "lmms" / "utils.py").write_text(UTILS)
    for name, text in KIT_TASKS.items():
        (folder / f"{name}.yaml").write_text(text)
        (folder / "lmms" / f"{name}.yaml").write_text(LMMS_TASKS[name] + COMMON.replace("FOLDER", str(folder)))
    rows = [row(number) for number in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    # Half of the references are what the model writes, so that scores differ.
    for number, sample in enumerate(by_the_kit(load_model(folder / "model"), folder, "generation").samples):
        rows[number]["answer"] = sample.prediction if number % 2 else "w4"
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder


def by_the_kit(loaded: LoadedModel, folder: Path, name: str) -> TaskResult:
    task = find_task(folder / f"{name}.yaml")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # which lmms-eval sets, and the kit refuses
    return score_task(loaded, task, read_questions(task), Asking())


@pytest.fixture(scope="module")
def kit(folder: Path) -> dict[str, TaskResult]:
    loaded = load_model(folder / "model")
    return {name: by_the_kit(loaded, folder, name) for name in KIT_TASKS}


def by_lmms_eval(folder: Path, name: str, batch_size: int, simple: bool, out: Path | None = None) -> Any:
    """What lmms-eval finds; with `out` it writes its files of samples there."""
    tracker = EvaluationTracker(output_path=str(out)) if out else None
    found = simple_evaluate(
        model="fvl_lightning",
        model_args=f"pretrained={folder / 'model'}",
        tasks=[name],
        task_manager=TaskManager(include_path=str(folder / "lmms"), include_defaults=False),
        batch_size=batch_size,
        device="cpu",
        force_simple=simple,
        evaluation_tracker=tracker,
        bootstrap_iters=0,
    )
    if tracker:
        samples = found.pop("samples")
        tracker.save_results_aggregated(found, samples, "2026-01-01T00:00:00")
        tracker.save_results_samples(name, samples[name])
        return next(out.glob(f"**/*_samples_{name}.jsonl"))
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize(("batch_size", "simple"), [(1, False), (16, False), (16, True)])
def test_generation_is_the_same(folder: Path, kit: dict[str, TaskResult], batch_size: int, simple: bool) -> None:
    wanted = kit["generation"].samples
    found = by_lmms_eval(folder, "generation", batch_size, simple)
    assert [sample["filtered_resps"] for sample in found] == [[sample.output] for sample in wanted]
    assert [sample["accuracy"] for sample in found] == [sample.score for sample in wanted]
    assert {sample.score for sample in wanted} == {0.0, 1.0}
    assert len({sample.output for sample in wanted}) > ROWS // 2, "answers that are all alike compare nothing"


@pytest.mark.parametrize("batch_size", [1, 16])
def test_multiple_choice_is_the_same(folder: Path, kit: dict[str, TaskResult], batch_size: int) -> None:
    """lmms-eval asks for likelihoods in its simple interface alone."""
    wanted = kit["choices"].samples
    for sample, other in zip(by_lmms_eval(folder, "choices", batch_size, True), wanted, strict=True):
        losses = [loss for loss, _ in sample["filtered_resps"]]
        assert [-loss for loss in losses] == pytest.approx(json.loads(other.output), abs=1e-5)
        assert sample["acc"] == other.score
    assert {sample.score for sample in wanted} == {0.0, 1.0}


@pytest.mark.parametrize(("name", "metric"), [("generation", "accuracy"), ("choices", "acc")])
def test_its_files_of_samples_are_read(
    folder: Path, kit: dict[str, TaskResult], tmp_path: Path, name: str, metric: str
) -> None:
    path = by_lmms_eval(folder, name, 16, True, tmp_path)
    wanted = kit[name].samples
    outputs = outputs_for(path, read_questions(find_task(folder / f"{name}.yaml")).questions)
    if name == "generation":
        assert outputs == [sample.output for sample in wanted]
    samples = {sample.id: sample for sample in read_samples(path, metric)}
    assert [samples[sample.id].score for sample in wanted] == [sample.score for sample in wanted]
    assert [samples[sample.id].prediction for sample in wanted] == [sample.prediction for sample in wanted]
