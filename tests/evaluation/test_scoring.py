"""`fvl evaluate` on a model folder, whose data an experiment file names, equals that of the run it is from."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY_DATA, Run


@pytest.fixture
def folder(asked: Path) -> Path:
    """The working folder, with an experiment on the data of its run."""
    fields = ", ".join(word.removeprefix("data.").replace("=", ": ") for word in TINY_DATA)
    file = asked / "mine.yaml"
    file.write_text(f"base: experiments/demo/finetune.yaml\ndata: {{{fields}}}\n", encoding="utf-8")
    return asked


def table(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_a_model_folder_scores_as_its_run(folder: Path, fvl_here: Run) -> None:
    by_run = fvl_here(folder, "evaluate", "runs/tiny")
    by_folder = fvl_here(folder, "evaluate", "model", "--data", "mine.yaml")
    assert by_run.returncode == by_folder.returncode == 0, by_run.stderr + by_folder.stderr
    assert len(table(by_run.stdout)) > 5
    assert table(by_folder.stdout) == table(by_run.stdout)


def test_a_run_may_be_asked_about_other_data(folder: Path, fvl_here: Run) -> None:
    own = fvl_here(folder, "evaluate", "runs/tiny", "--split", "validation")
    other = fvl_here(folder, "evaluate", "runs/tiny", "--split", "validation", "--data", "mine.yaml")
    assert other.returncode == 0, other.stderr
    assert table(other.stdout) == table(own.stdout)


def test_a_run_that_was_never_asked_anything_is_scored_with_a_warning(folder: Path, fvl_here: Run) -> None:
    run = shutil.copytree(folder / "runs" / "tiny", folder / "runs" / "captions", symlinks=True)
    path = run / "model" / "processor_config.json"
    content = json.loads(path.read_text())
    content["asking"]["captions"] = True
    path.write_text(json.dumps(content))
    done = fvl_here(folder, "evaluate", "runs/captions", "--split", "validation")
    assert done.returncode == 0, done.stderr
    assert "runs/captions was trained on captions alone" in " ".join(done.stderr.split())
    assert table(done.stdout)


@pytest.mark.slow
def test_some_questions_and_some_controls_of_data_without_training(folder: Path, fvl_here: Run) -> None:
    """A benchmark has one split; its prior, which counts answers in training, is left out with a line that says so."""
    (drawn,) = (folder / "data" / "demo").glob("easy-*/test-000000.tar")
    shards = shutil.copytree(drawn.parent, folder / "bench", ignore=shutil.ignore_patterns("train*", "validation*"))
    (folder / "bench.yaml").write_text(
        f"data: {{name: shards, root: {shards}, view: conversation, sequence_length: 96}}\n", encoding="utf-8"
    )
    whole = table(fvl_here(folder, "evaluate", "runs/tiny").stdout)
    other = fvl_here(folder, "evaluate", "runs/tiny", "--data", "bench.yaml")
    assert other.returncode == 0, other.stderr
    assert "prior: the data has no split train" in other.stderr
    assert table(other.stdout) == [row[:-1] for row in whole]
    some = fvl_here(folder, "evaluate", "runs/tiny", "--data", "bench.yaml", "--limit", "7", "--controls", "none")
    assert some.returncode == 0, some.stderr
    assert "on test, 7 questions" in " ".join(some.stdout.split())
    assert {len(row) for row in table(some.stdout)} == {2}
    words = ("--data", "bench.yaml", "--limit", "7", "--controls", "none", "--sources", "davit")
    kept = fvl_here(folder, "evaluate", "runs/tiny", *words)
    assert kept.returncode == 0, kept.stderr
    assert "on test with davit only, 7 questions" in " ".join(kept.stdout.split())
    one = fvl_here(folder, "evaluate", "runs/tiny", "--controls", "image_shuffled")
    assert [row[2] for row in table(one.stdout)] == [row[3] for row in whole]


MISTAKES = [
    (("model",), "--data: model is a model without data; name an experiment file whose data it answers"),
    (("model", "--data", "mine.yml"), "no configuration file mine.yml"),
    (("model", "--data", "mine.yaml", "--split", "tst"), "did you mean 'test'?"),
    (("model", "--data", "mine.yaml", "--level", "eassy"), "did you mean 'easy'?"),
    (("model", "--data", "mine.yaml", "--sources", "davt"), "--sources: unknown source 'davt', allowed: caption, dav"),
    (("experiments", "--data", "mine.yaml"), "experiments is not a run folder"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=lambda value: " ".join(value)[:40] if value else "")
def test_a_mistake_is_one_sentence(words: tuple[str, ...], sentence: str, folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, "evaluate", *words)
    assert done.returncode == 2, done.stdout
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_data_is_fitted_as_the_model_knows_it(folder: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file says of it: a model that was trained on padded pictures is asked about such."""
    from fvl_lightning.evaluation.scoring import open_with_data
    from fvl_lightning.modeling.processing.image_processor import FlorenceVLImageProcessor
    from fvl_lightning.modeling.processing.processor import FlorenceVLProcessor

    monkeypatch.chdir(folder)
    original = FlorenceVLImageProcessor.__init__

    def padded(self: FlorenceVLImageProcessor, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs | {"fit": "pad"})  # type: ignore[arg-type]

    monkeypatch.setattr(FlorenceVLImageProcessor, "__init__", padded)
    processor = FlorenceVLProcessor.from_pretrained("model")
    processor.asking = {"behind_image": "\n"}
    monkeypatch.setattr(FlorenceVLProcessor, "from_pretrained", lambda *args, **settings: processor)
    _, data = open_with_data("model", Path("mine.yaml"))
    assert data.config.image_fit == "pad"
    questions = data.questions("test")
    assert questions
    for question in questions:
        content = question.prompt_messages[-1]["content"]
        assert next(part["text"] for part in content[1:]) == "\n", "as behind every image of its training"
