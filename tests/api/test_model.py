"""load_model: answers, features and source weights of one model, however it is named; nothing is printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from fvl_lightning.api.evaluation import evaluate
from fvl_lightning.api.model import Model, load_model
from fvl_lightning.api.run import open_run
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.inference.generation import Sampling
from tests.conftest import Run

QUESTION = "what colour is the star?"


@pytest.fixture(scope="module")
def model(asked: Path) -> Iterator[Model]:
    Image.new("RGB", (40, 30), "red").save(asked / "red.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(asked)
        yield load_model("runs/tiny")


def test_a_run_and_its_model_folder_answer_alike(model: Model, asked: Path, fvl_here: Run) -> None:
    answer = model.answer("red.png", QUESTION)
    assert load_model("model").answer(Image.open("red.png"), QUESTION) == answer
    assert open_run("runs/tiny").model(device="cpu").answer(Path("red.png"), QUESTION) == answer
    done = fvl_here(asked, "generate", "runs/tiny", "--image", "red.png", "--prompt", QUESTION)
    assert done.stdout.strip() == answer.strip()


def test_all_ways_to_ask_agree(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    greedy = Sampling(max_tokens=6)
    both = [model.answer("red.png", QUESTION, greedy), model.answer([], "how many?", greedy)]
    assert model.answer_batch([("red.png", QUESTION), ([], "how many?")], greedy) == both
    assert model.answer_batch([]) == []
    assert "".join(model.stream("red.png", QUESTION, greedy)) == both[0]
    assert "".join(model.conversation("red.png", greedy).say(QUESTION)) == both[0]
    assert capsys.readouterr().out == ""


def test_features_and_weights_are_those_of_the_model(model: Model) -> None:
    features = model.features(["red.png", "red.png"])
    assert list(features) == model.sources
    for source, spec in model.loaded.model.encoder.specs.items():
        assert features[source].shape == (2, spec.tokens, spec.dim)
        assert torch.equal(features[source][0], features[source][1])
    weights = model.source_weights("red.png")
    assert list(weights.weights) == model.sources
    assert sum(weights.weights.values()) == pytest.approx(1, abs=1e-5)


def test_mistakes_are_errors_of_the_kit(model: Model) -> None:
    with pytest.raises(ConfigError, match="beams: a stream has 1 beam, found 2"):
        model.stream("red.png", QUESTION, Sampling(beams=2))
    with pytest.raises(ConfigError, match="unknown adapter 'b'"):
        model.use_adapter("b")
    with pytest.raises(DataError, match=r"blue\.png"):
        model.answer("blue.png", QUESTION)
    with pytest.raises(DataError, match="is no run folder and no run id"):
        load_model("runs/none")


def test_a_score_is_that_of_fvl_evaluate(model: Model, asked: Path, fvl_here: Run) -> None:
    evaluation = evaluate(model, "validation")
    done = fvl_here(asked, "evaluate", "runs/tiny", "--split", "validation")
    (macro,) = [line for line in done.stdout.splitlines() if "macro" in line]
    controls = evaluation.controls
    assert controls is not None
    scores = [evaluation.scores, controls.image_zeroed, controls.image_shuffled, controls.prior]
    assert [f"{score.macro:.3f}" for score in scores] == [cell for cell in macro.split() if "." in cell]

    with pytest.raises(ConfigError, match="data: model is a model without data; pass an experiment"):
        evaluate("model", "validation")
    again = evaluate("model", "validation", data=open_run("runs/tiny").experiment, controls=False)
    assert (again.scores, again.controls) == (evaluation.scores, None)
    assert again.answers == evaluation.answers


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens: expected a number at least 1, found 0"),
        ({"temperature": -1.0}, r"temperature: expected a number at least 0, found -1\.0"),
        ({"top_p": 0.0}, r"top_p: expected a number above 0, at most 1, found 0\.0"),
        ({"beams": 0}, "beams: expected a number at least 1, found 0"),
    ],
)
def test_a_sampling_that_cannot_be(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}$"):
        Sampling(**settings)  # type: ignore[arg-type]
