"""Controls: which images are shown in place of others, prompts, and the names that select them."""

import numpy as np
import pytest

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.robustness.corruptions import CORRUPTIONS, corrupt
from fvl_lightning.evaluation.robustness.variations import known_variations, shuffled, variations_of
from fvl_lightning.evaluation.tasks.config import TaskConfig, TaskData, TaskFields
from fvl_lightning.evaluation.tasks.question import TaskQuestion

TASK = TaskConfig("T", TaskData(), paraphrases=["{question} In short?", "Say: {question}"])


def asked(*images: tuple[int, ...]) -> list[TaskQuestion]:
    return [TaskQuestion(str(number), (), shown, Reference(("yes",))) for number, shown in enumerate(images)]


def names(*wanted: str, task: TaskConfig = TASK) -> list[str]:
    return [variation.name for variation in variations_of(wanted, task)]


def test_names_select_variations() -> None:
    assert names() == []
    assert names("controls") == ["blind", "shuffled", "paraphrase-1", "paraphrase-2"]
    assert names("paraphrase", "blind") == ["blind", "paraphrase-1", "paraphrase-2"]
    assert names("paraphrase-2") == ["paraphrase-2"]
    assert names("jpeg") == [f"jpeg-{strength}" for strength in range(1, 6)]
    assert names("blur-3", "blur", "blur-3") == [f"blur-{strength}" for strength in range(1, 6)]
    assert len(names("corruptions")) == 5 * len(CORRUPTIONS)
    with pytest.raises(ConfigError, match=r"--controls: unknown control 'shufled'.*did you mean 'shuffled'"):
        variations_of(["shufled"], TASK, "--controls")
    with pytest.raises(ConfigError, match="unknown control 'blur-6'"):
        variations_of(["blur-6"], TASK)


def test_a_task_without_images_or_paraphrases_has_fewer() -> None:
    text = TaskConfig("T", TaskData(), fields=TaskFields(images=[]), paraphrases=["{question}"])
    assert list(known_variations(text)) == ["paraphrase-1"]
    assert names("controls", "corruptions", task=text) == ["paraphrase-1"]
    assert names("controls", "paraphrase-1", task=TaskConfig("T", TaskData())) == ["blind", "shuffled"]


def test_each_variation_changes_one_thing() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    questions = asked((0,), (1,))
    known = known_variations(TASK)
    assert (known["blind"].image(image) == np.zeros((20, 30, 3))).all()
    assert (known["noise-4"].image(image) == corrupt(image, "noise", 4)).all()
    assert known["shuffled"].image(image) is image
    assert known["paraphrase-2"].task(TASK).prompt == "Say: {question}"
    for name, variation in known.items():
        assert (variation.task(TASK) is TASK) == (not name.startswith("paraphrase"))
        assert (variation.questions(questions) == questions) == (name != "shuffled")
        assert (variation.pixels is None) == (variation.family == "control" and name != "blind")


def test_every_question_sees_other_pictures_than_its_own() -> None:
    questions = asked((0,), (0,), (1,), (2,), (), (3, 4), (4, 3), (5, 0), (6, 7), (2,))
    found = shuffled(questions)
    assert found == shuffled(questions)
    for question, other in zip(questions, found, strict=True):
        assert (other.id, other.reference) == (question.id, question.reference)
        assert len(other.images) == len(question.images)
        assert not set(other.images) & set(question.images)
    assert found[0].images == found[1].images
    assert found[3].images == found[9].images


def test_pictures_of_questions_with_another_number_of_images_serve_too() -> None:
    assert shuffled(asked((0, 1, 2), (3,), (4,)))[0].images == (3, 4, 3)
    with pytest.raises(DataError, match="every question has the same images"):
        shuffled(asked((0,), (0,)))
