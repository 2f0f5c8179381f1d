"""Detects the form of the questions in training data, which the trained model is prompted in."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from datamodules.base import BatchData, SplitDataset
from datamodules.encoding.messages import Message, leading_blanks, parts_of
from datamodules.encoding.question_form import QuestionForm
from datamodules.encoding.views import messages_of
from datamodules.storage.remote import is_remote
from datamodules.storage.sample import SampleError, spread
from datamodules.storage.sample_store import SampleStore

log = logging.getLogger(__name__)

SAMPLES_PER_DATASET, SHARDS_PER_DATASET = 256, 4
"""Samples and shards to read of each dataset; of a remote one only one shard is read."""
USUAL_FRACTION = 0.95
"""If more conversations than this fraction agree, the others are not reported."""


@dataclass
class QuestionCounts:
    """Counts of the forms of questions in conversations.

    Attributes:
        behind: how often each whitespace stands between an image and the text after it.
        between: how often each whitespace stands between two images.
        systems: how often each system message begins a conversation, "" for none.
        last: number of messages with an image after their text.
    """

    behind: Counter[str] = field(default_factory=Counter)
    between: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    last: int = 0

    @classmethod
    def of(cls, conversations: Iterable[Sequence[Message]]) -> "QuestionCounts":
        """Returns the counts over some conversations."""
        counts = cls()
        for messages in conversations:
            system = [message for message in messages if message["role"] == "system"]
            counts.systems["".join(part.get("text", "") for message in system for part in parts_of(message))] += 1
            for message in messages:
                counts._read(message)
        return counts

    def form(self) -> QuestionForm:
        """Returns the most frequent form; it has a system message only if all conversations have the same one."""
        behind = most_frequent(self.behind)
        system = most_frequent(self.systems) if len(self.systems) == 1 else ""
        return QuestionForm(behind, most_frequent(self.between) if self.between else behind, system)

    def differences(self) -> list[str]:
        """Returns a sentence for each way in which the conversations differ."""
        sentences = []
        for place, counter in (("an image and the text after it", self.behind), ("two images", self.between)):
            usual = most_frequent(counter)
            if counter and counter[usual] < USUAL_FRACTION * counter.total():
                others = ", ".join(f"{text!r} ({count})" for text, count in counter.most_common())
                sentences.append(f"{others} between {place}: prompts use {usual!r}")
        if len(self.systems) > 1:
            count = self.systems.total() - self.systems[""]
            sentences.append(
                f"{count} of {self.systems.total()} conversations begin with a system message, "
                f"{len([text for text in self.systems if text])} different ones: add one to your prompts"
            )
        if self.last > self.behind.total():
            sentences.append(
                f"images come after the text in {self.last} messages, before it in {self.behind.total()}: write "
                "prompts in the same order (the messages of `fvl generate --input`); `--prompt` puts images first"
            )
        return sentences

    def _read(self, message: Message) -> None:
        if message["role"] != "user":
            return
        after_image, blanks, has_text = False, "", False
        for part in parts_of(message):
            if part["type"] == "image":
                if after_image:
                    self.between[blanks] += 1
                after_image, blanks = True, ""
                continue
            text = part["text"]
            if not text.strip():
                blanks += text
                continue
            if after_image:
                self.behind[blanks + leading_blanks(text)] += 1
            after_image, blanks, has_text = False, "", True
        self.last += after_image and has_text


def most_frequent(counter: Counter[str]) -> str:
    """Returns the most frequent text, the first in alphabetical order among several."""
    return min(counter, key=lambda text: (-counter[text], text), default="")


def detect_question_form(data: BatchData) -> tuple[QuestionForm, list[str]]:
    """Returns the form of the questions in some samples of each dataset, and sentences about differences.

    The samples are fixed, not drawn at random; those that cannot be used are skipped.

    Args:
        data: a prepared data module.
    """
    datasets = data.datasets("train")
    conversations = [dataset for dataset in datasets if dataset.view == "conversation"]
    if not conversations:
        return QuestionForm(captions=all(dataset.view == "caption" for dataset in datasets)), []
    counted = [(dataset.name, *_count(data, dataset)) for dataset in conversations]
    differences = [
        f"data{f' {name}' if name else ''}: {sentence}"
        for name, _, counts in counted
        for sentence in counts.differences()
    ]
    _, _, largest = max(counted, key=lambda entry: entry[1])
    form = largest.form()
    systems = {text for _, _, counts in counted for text in counts.systems}
    for name, _, counts in counted:
        if counts.behind and most_frequent(counts.behind) != form.behind_image:
            other = most_frequent(counts.behind)
            differences.append(
                f"data {name}: {other!r} stands between an image and the text after it where most of the mixture "
                f"has {form.behind_image!r}: prompts use that"
            )
    if len(systems) > 1 and all(len(counts.systems) == 1 for _, _, counts in counted):
        differences.append("the datasets differ in their system message: add one to your prompts")
    return replace(form, system=form.system if len(systems) == 1 else ""), differences


def question_form_of(data: BatchData) -> QuestionForm:
    """Returns the form of the questions in the data and logs differences as warnings."""
    form, differences = detect_question_form(data)
    for sentence in differences:
        log.warning("%s", sentence)
    return form


def _count(data: BatchData, dataset: SplitDataset) -> tuple[float, QuestionCounts]:
    """Returns the weight of a dataset in training, and the counts over its conversations."""
    number = 1 if any(map(is_remote, dataset.shards)) else SHARDS_PER_DATASET
    shards = [dataset.shards[k] for k in spread(len(dataset.shards), number)]
    store = SampleStore(shards, "train", data.cache)
    conversations = []
    for i in spread(len(store), SAMPLES_PER_DATASET):
        with suppress(SampleError):
            conversations.append(messages_of(store, i))
    return dataset.share or len(store) * len(dataset.shards), QuestionCounts.of(conversations)
