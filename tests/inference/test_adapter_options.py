"""`--adapter` of the commands that answer: which one is in use, switching between them, and what is refused."""

import io
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fvl_lightning.evaluation.scoring import score
from fvl_lightning.inference.adapters import attach_adapters
from fvl_lightning.inference.generation import Sampling, answer, encode, user_message
from fvl_lightning.runs.references import answering_model
from fvl_lightning.serving.page import build_page
from fvl_lightning.serving.server import offline_gradio
from tests.conftest import TINY, Run, furnish

pytestmark = pytest.mark.slow  # trainings of adapters; tests/cli/test_export_adapters.py has quick ones

FINETUNE, LORA = "experiments/demo/finetune.yaml", "experiments/demo/finetune_lora.yaml"
QUESTION = "how many shapes are there?"
ADAPTERS = ("--adapter", "a=runs/a/model", "--adapter", "b=runs/b/model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with the run `whole`, the adapters `a` and `b` on it, `other` on another base, and a picture."""
    folder = furnish(tmp_path_factory.mktemp("options"), tiny_data)
    Image.new("RGB", (80, 60), "red").save(folder / "picture.png")
    for words in (
        (FINETUNE, "name=whole"),
        # Rates at which three steps change what is said.
        (LORA, "name=a", "init_from=[runs/whole]", "optimizer.learning_rate=0.1"),
        (LORA, "name=b", "init_from=[runs/whole]", "optimizer.learning_rate=0.3", "lora.rank=4", "seed=1"),
        (LORA, "name=other", "seed=2", "trainer.max_steps=1"),
    ):
        done = fvl_here(folder, "train", *words, *TINY)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def answers(folder: Path, fvl_here: Run) -> dict[str, str]:
    """What each of the runs says; three different things."""
    said = {name: generated(folder, fvl_here, f"runs/{name}") for name in ("whole", "a", "b")}
    assert len(set(said.values())) == 3
    return said


def generated(folder: Path, fvl_here: Run, *words: str) -> str:
    done = fvl_here(folder, "generate", *words, "--image", "picture.png", "--prompt", QUESTION, "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_generate_with_an_adapter_is_its_run(folder: Path, fvl_here: Run, answers: dict[str, str]) -> None:
    for name in ("a", "b"):
        for word in (f"runs/{name}", f"runs/{name}/model", f"encoder=runs/{name}/model", f"keys=runs/{name}"):
            assert generated(folder, fvl_here, "runs/whole", "--adapter", word) == answers[name]
    assert generated(folder, fvl_here, "runs/a", "--adapter", "b=runs/b/model") == answers["b"]


def test_rows_of_a_file_are_those_of_the_adapter(folder: Path, fvl_here: Run, answers: dict[str, str]) -> None:
    """Going on with another one would mix answers."""
    row = f'{{"image": "picture.png", "prompt": "{QUESTION}"}}\n'
    (folder / "rows.jsonl").write_text(row, encoding="utf-8")
    words = ("generate", "runs/whole", "--input", "rows.jsonl", "--output", "out.jsonl", "--max-tokens", "8")
    done = fvl_here(folder, *words, "--adapter", "a=runs/a/model")
    assert done.returncode == 0, done.stderr
    assert answers["a"] in (folder / "out.jsonl").read_text(encoding="utf-8")
    assert fvl_here(folder, *words, "--adapter", "b=runs/b/model").returncode == 2


def test_chat_switches_between_adapters(
    folder: Path, fvl_here: Run, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, expected = [], []
    for name in ("", "b", "whole", "a", "b", "whole"):
        if name:
            lines.append("/adapter" if name == "whole" else f"/adapter {name}")
            expected.append(f"answers with {'no adapter' if name == 'whole' else name}")
        lines += ["/clear", "/image picture.png", QUESTION]
        expected += ["a new conversation", "1 picture for the next message", answers[name or "a"]]
    lines += ["/adapter c", "/help"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, ""])))
    done = fvl_here(folder, "chat", "runs/whole", *ADAPTERS, "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    said = [line.strip() for line in done.stdout.splitlines()]
    assert said[: len(expected)] == expected
    assert said[len(expected)] == "error: /adapter: unknown adapter 'c', allowed: a, b"
    assert any(line.startswith("/adapter <name>") for line in said)


def test_the_own_adapter_of_a_run_is_one_among_them(
    folder: Path, fvl_here: Run, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["/image picture.png", QUESTION, "/clear", "/adapter default", "/image picture.png", QUESTION]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, ""])))
    done = fvl_here(folder, "chat", "runs/a", "--adapter", "b=runs/b/model", "--max-tokens", "8")
    said = [line.strip() for line in done.stdout.splitlines()]
    assert (said[1], said[5]) == (answers["b"], answers["a"])


def test_evaluate_with_an_adapter_is_its_run(folder: Path, fvl_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is answered: so little has been learnt that all of it is wrong, and the tables are equal."""
    said: list[list[str]] = []

    def recorded(*args: Any, **how: Any) -> Any:
        result, given = score(*args, **how)
        said.append([one.text for one in given])
        return result, given

    monkeypatch.setattr("fvl_lightning.evaluation.scoring.score", recorded)
    for words in (["runs/b"], ["runs/whole", "--adapter", "runs/b/model"], ["runs/whole"]):
        done = fvl_here(folder, "evaluate", *words)
        assert done.returncode == 0, done.stderr
    assert said[0] == said[1]
    assert said[0] != said[2]


@pytest.mark.skipif(find_spec("gradio") is None, reason="the extra serve is not installed")
def test_a_page_answers_with_what_it_has_chosen(folder: Path, answers: dict[str, str]) -> None:
    loaded = answering_model(str(folder / "runs" / "whole"))
    adapters = attach_adapters(loaded, [f"a={folder}/runs/a/model", f"b={folder}/runs/b/model"])
    page = build_page(offline_gradio(), loaded, Sampling(8), "tiny", adapters)
    (chosen,) = [block for block in page.blocks.values() if type(block).__name__ == "Dropdown"]
    assert chosen.choices == [("a", "a"), ("b", "b"), ("no adapter", "")]
    assert chosen.value == "a"
    asking = next(function.fn for function in page.fns.values() if function.name == "answer")
    for name, expected in [("b", "b"), ("", "whole"), ("a", "a")]:
        *_, last = asking({"text": QUESTION, "files": [str(folder / "picture.png")]}, [], [], name)
        assert last[1][-1]["content"].strip() == answers[expected]


def test_the_first_that_was_put_on_is_in_use(folder: Path, answers: dict[str, str]) -> None:
    loaded = answering_model(str(folder / "runs" / "whole"))
    prompt = encode(loaded, [user_message([folder / "picture.png"], QUESTION)])
    before = answer(loaded, [prompt], Sampling(8))
    assert attach_adapters(loaded, None) == []
    assert answer(loaded, [prompt], Sampling(8)) == before
    assert attach_adapters(loaded, [str(folder / "runs" / "b"), f"{folder}/runs/a/model"]) == ["b", "a"]
    assert answer(loaded, [prompt], Sampling(8)) == [answers["b"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--adapter", "runs/whole"], "runs/whole/model is no adapter folder (it has no adapter_config.json)"),
        (["--adapter", "x y=runs/a/model"], "expected <name>=<folder> with letters, digits, - and _ in the name"),
        (["--adapter", "o=runs/other/model"], "the adapter runs/other/model was trained on another base than"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, fvl_here: Run, words: list[str], said: str) -> None:
    done = fvl_here(folder, "generate", "runs/whole", "--image", "picture.png", "--prompt", QUESTION, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_stands_for_one_adapter(folder: Path, fvl_here: Run) -> None:
    done = fvl_here(folder, "chat", "runs/whole", "--adapter", "x=runs/a/model", "--adapter", "x=runs/b/model")
    assert done.returncode == 2
    assert "--adapter x=runs/b/model: the name x is taken, write <another name>=runs/b/model" in done.stderr
