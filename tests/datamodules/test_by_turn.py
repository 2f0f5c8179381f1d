"""For a fusion that reads the question, every answer of a conversation is a row of its own, after its question."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fvl_lightning.core.types import IGNORE_INDEX, NO_TOKEN, Batch, DataContext
from tests.datamodules.connecting import connected

TURNS = [("what is red?", "a cube"), ("and blue?", "the small ball"), ("how many?", "two")]


def record(turns: list[tuple[str, str]]) -> dict[str, Any]:
    first: list[dict[str, Any]] = [{"type": "image"}]
    messages = [{"role": "system", "content": "look"}]
    for number, (question, answer) in enumerate(turns):
        content = [*first, {"type": "text", "text": question}] if number == 0 else question
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]  # type: ignore[list-item]
    return {"messages": messages}


def batch_of(
    folder: Path, write_split: Any, context: DataContext, image: bytes, turns: list[tuple[str, str]], **fields: Any
) -> Batch:
    for split in ("train", "validation"):
        write_split(folder, split, 1, {0: (record(turns), [image])})
    (batch,) = connected(folder, context, **{"sequence_length": 200, **fields}).val_dataloader()
    return batch


@pytest.fixture
def make_batch(
    tmp_path: Path,
    write_split: Any,
    make_context: Callable[..., DataContext],
    image_bytes: Callable[..., bytes],
) -> Callable[..., Batch]:
    def make(name: str, turns: list[tuple[str, str]] = TURNS, conditioned: bool = True, **fields: Any) -> Batch:
        context = make_context(conditioned=conditioned)
        return batch_of(tmp_path / name, write_split, context, image_bytes(), turns, **fields)

    return make


def asked(batch: Batch) -> list[list[int]]:
    assert batch.questions is not None
    return [[i for i in row if i != NO_TOKEN] for row in batch.questions.tolist()]


def test_a_row_has_the_turns_up_to_its_answer_and_learns_that_answer_alone(
    make_batch: Callable[..., Batch], tokenizer: Any
) -> None:
    batch, whole = make_batch("by_turn"), make_batch("whole", conditioned=False)
    assert whole.questions is None
    assert len(batch.token_ids) == len(TURNS)
    assert len(batch.images if batch.images is not None else []) == len(TURNS), "each row has its image"
    learnt: list[int] = []
    for ids, labels in zip(batch.token_ids.tolist(), batch.labels.tolist(), strict=True):
        last = max(k for k, label in enumerate(labels) if label != IGNORE_INDEX)
        assert ids[: last + 1] == whole.token_ids[0, : last + 1].tolist(), "the row begins as the whole conversation"
        learnt += [label for label in labels if label != IGNORE_INDEX]
    assert learnt == [label for label in whole.labels[0].tolist() if label != IGNORE_INDEX]
    assert asked(batch) == [tokenizer(question, add_special_tokens=False).input_ids for question, _ in TURNS]


def test_another_fusion_can_have_the_same_rows(make_batch: Callable[..., Batch]) -> None:
    plain, reading = make_batch("plain", conditioned=False, by_turn=True), make_batch("reading")
    assert plain.questions is None
    assert torch.equal(plain.token_ids, reading.token_ids)
    assert torch.equal(plain.labels, reading.labels)


def test_a_question_depends_neither_on_its_answer_nor_on_later_turns(make_batch: Callable[..., Batch]) -> None:
    other = [TURNS[0], (TURNS[1][0], "another answer"), ("something else?", "no")]
    assert asked(make_batch("one"))[:2] == asked(make_batch("other", other))[:2]


def test_packed_and_cached_rows_have_the_same_questions(
    tmp_path: Path,
    write_split: Any,
    make_context: Callable[..., DataContext],
    image_bytes: Callable[..., bytes],
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 1, {0: (record(TURNS), [image_bytes()])})
    context = make_context(conditioned=True, batch_size=1)
    found = {}
    for packing in ("none", "best_fit"):
        data = connected(tmp_path, context, sequence_length=200, packing=packing)
        loader = iter(data.train_dataloader())
        rows = [next(loader) for _ in range(3)]
        found[packing] = {tuple(question) for batch in rows for question in asked(batch)}
        assert all(batch.images.shape[0] == len(batch.questions) for batch in rows)
        data.attach_features(lambda split, index: {"davit": torch.zeros(1, 4, 2)})
        cached = next(iter(data.train_dataloader()))
        assert asked(cached) == asked(rows[0])
    assert len(found["none"]) == 3
    assert found["best_fit"] == found["none"]


def test_an_over_long_conversation_is_split_into_turns_with_what_fits_before_them(
    make_batch: Callable[..., Batch],
) -> None:
    long = [(f"question {k}?", "a long answer " * 3) for k in range(4)]
    batch = make_batch("split", long, over_long="split", sequence_length=140)
    assert len(batch.token_ids) == 4
    assert batch.token_ids.shape[1] <= 140
    assert len({tuple(question) for question in asked(batch)}) == 4


def test_a_caption_has_no_question(
    tmp_path: Path, write_split: Any, make_context: Callable[..., DataContext]
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 2)
    (batch,) = connected(tmp_path, make_context(conditioned=True), view="caption").val_dataloader()
    assert asked(batch) == [[], []]
