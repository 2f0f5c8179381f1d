"""Rows of WebDataset shards: a row for each answer of a conversation, or for each record without one."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from datamodules.encoding.messages import Message, parts_of
from datamodules.encoding.questions import Question, list_questions
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.task_rows.base import Images, TaskRow, TaskRows
from fvl_lightning.evaluation.task_rows.fields import plain_fields

QUESTION, ANSWER, KIND, MESSAGES, IMAGES = "question", "answer", "kind", "messages", "image"
"""Fields of a row that is an answer of a conversation. `messages` is the prompt with its images and system message;
`image` stands for all images of the sample."""
_ANY = "all"


class ShardRows(TaskRows):
    """The rows of shards: one per answer of a conversation, and one per record without a conversation.

    Raises:
        DataError: the shards cannot be read, or have content that cannot be used.
    """

    image_fields = frozenset({IMAGES})

    def __init__(self, shards: Sequence[str]) -> None:
        self._store = SampleStore(list(shards), "test")
        if self._store.problems:
            reason, found = next(iter(self._store.problems.items()))
            raise DataError(f"{shards[0]}: {found.count} x {reason} ({', '.join(found.examples[:1])})")
        self.where = shards[0] + (f" and {len(shards) - 1} more shards" if len(shards) > 1 else "")
        self._samples: list[int] = []
        self._rows = list(self._read())
        self.fields = [IMAGES, *dict.fromkeys(name for row in self._rows for name in row.values)]

    def rows(self) -> Iterator[TaskRow]:
        """Yields all rows; see TaskRows."""
        return iter(self._rows)

    def images(self, rows: Sequence[TaskRow], fields: Sequence[str]) -> Iterator[Sequence[Images]]:
        """Yields the images of each row's sample; see TaskRows."""
        for row in rows:
            yield [[content for _, content in self._store.encoded_images(self._samples[row.number])]] * len(fields)

    def _read(self) -> Iterator[TaskRow]:
        store = self._store
        questions: dict[int, list[Question]] = defaultdict(list)
        for question in list_questions(store, other_kind=_ANY):
            questions[question.index].append(question)
        for i in range(len(store)):
            record = store.record(i)
            asked = questions.get(i, [])
            self.kind_field = KIND if "kinds" in record else self.kind_field
            for turn, question in enumerate(asked):
                own = {
                    QUESTION: _text(question.prompt_messages[-1]),
                    ANSWER: question.answer,
                    KIND: question.kind,
                    MESSAGES: question.prompt_messages,
                }
                self._samples.append(i)
                where = f"{store.name(i)}, answer {turn}"
                yield TaskRow(len(self._samples) - 1, where, {"key": store.key(i), **plain_fields(record), **own})
            if not asked and MESSAGES not in record:
                self._samples.append(i)
                yield TaskRow(len(self._samples) - 1, store.name(i), {"key": store.key(i), **record})


def _text(message: Message) -> str:
    return "".join(part["text"] for part in parts_of(message) if part["type"] == "text").strip()
