"""Finds in the training data what surrounds a question, so that the trained model is prompted in the same form."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from datamodules.encoding.messages import Message, leading_blanks, parts_of
from datamodules.encoding.views import messages_of
from datamodules.storage.remote import is_remote
from datamodules.storage.sample import SampleError, spread
from datamodules.storage.sample_store import SampleStore

log = logging.getLogger(__name__)

SAMPLES, SHARDS = 256, 4
"""Samples and shards that are read of each data set; of a remote set a single shard is read."""
USUAL = 0.95
"""Above this share of the conversations, the others are not reported."""


@dataclass(frozen=True)
class Asking:
    """What stands around the words of a question in training.

    Attributes:
        behind_image: between an image and the words behind it, such as LLaVA's line break.
        between_images: between two images.
        system: what the system says, where all conversations have that same message; "" for none.
        captions: whether training has captions alone, so that nothing was ever asked.
    """

    behind_image: str = ""
    between_images: str = ""
    system: str = ""
    captions: bool = False

    def asked(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as training would have them: images joined to what follows, the system's message in front.

        A text that begins with the join already stays as it is, and so does a system message that is there.
        """
        joined = [self._joined(message) for message in messages]
        if self.system and not any(message["role"] == "system" for message in messages):
            return [{"role": "system", "content": self.system}, *joined]
        return joined

    def _joined(self, message: Message) -> Message:
        if message["role"] != "user" or isinstance(message["content"], str):
            return message
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            after_image = bool(parts) and parts[-1]["type"] == "image"
            if part["type"] == "image":
                join = self.between_images if after_image else ""
            else:
                join = self.behind_image if after_image and part["text"].strip() else ""
                join = "" if part["text"].startswith(join) else join
            parts += [*([{"type": "text", "text": join}] if join else []), part]
        return {**message, "content": parts}


@dataclass
class Habits:
    """Counts of the forms in which conversations ask.

    Attributes:
        behind, between: how often each text stands between an image and words, and between two images.
        systems: how often each system message begins a conversation, "" for none.
        last: conversations in which an image stands behind the words of its message.
    """

    behind: Counter[str] = field(default_factory=Counter)
    between: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    last: int = 0

    @classmethod
    def of(cls, conversations: Iterable[Sequence[Message]]) -> "Habits":
        """Returns the counts over some conversations."""
        habits = cls()
        for messages in conversations:
            system = [message for message in messages if message["role"] == "system"]
            habits.systems["".join(part.get("text", "") for message in system for part in parts_of(message))] += 1
            for message in messages:
                habits._read(message)
        return habits

    def asking(self) -> Asking:
        """Returns the most frequent form; a system message counts only where all conversations have it."""
        behind = most(self.behind)
        system = most(self.systems) if len(self.systems) == 1 else ""
        return Asking(behind, most(self.between) if self.between else behind, system)

    def uneven(self) -> list[str]:
        """Returns a sentence for each way in which the conversations differ."""
        said = []
        for what, counter in (("an image and the words behind it", self.behind), ("two images", self.between)):
            usual = most(counter)
            if counter and counter[usual] < USUAL * counter.total():
                others = ", ".join(f"{text!r} ({count})" for text, count in counter.most_common())
                said.append(f"{others} between {what}: the model is asked with {usual!r}")
        if len(self.systems) > 1:
            count = self.systems.total() - self.systems[""]
            said.append(
                f"{count} of {self.systems.total()} conversations begin with a message of the system, "
                f"{len([text for text in self.systems if text])} different ones: give one where the model is asked"
            )
        if self.last > self.behind.total():
            said.append(
                f"images stand behind the words in {self.last} messages, before them in {self.behind.total()}: give "
                "them in that place (the messages of `fvl generate --input`); a prompt puts them in front"
            )
        return said

    def _read(self, message: Message) -> None:
        if message["role"] != "user":
            return
        image_before, blanks, words = False, "", False
        for part in parts_of(message):
            if part["type"] == "image":
                if image_before:
                    self.between[blanks] += 1
                image_before, blanks = True, ""
                continue
            text = part["text"]
            if not text.strip():
                blanks += text
                continue
            if image_before:
                self.behind[blanks + leading_blanks(text)] += 1
            image_before, blanks, words = False, "", True
        self.last += image_before and words


def most(counter: Counter[str]) -> str:
    """The most frequent text; of several the first in order, so that it is no matter of chance."""
    return min(counter, key=lambda text: (-counter[text], text), default="")


def look_at_asking(data: Any) -> tuple[Asking, list[str]]:
    """Returns the form in which the data asks, found in some samples of each set, and sentences on what differs.

    Args:
        data: a BatchData, prepared. Nothing is drawn at random, and samples that cannot be used are passed over.
    """
    parts = data.parts("train")
    talks = [part for part in parts if part.view == "conversation"]
    if not talks:
        return Asking(captions=all(part.view == "caption" for part in parts)), []
    found = [(part.name, *_habits(data, part)) for part in talks]
    said = [f"data{f' {name}' if name else ''}: {sentence}" for name, _, one in found for sentence in one.uneven()]
    _, _, largest = max(found, key=lambda entry: entry[1])
    asking = largest.asking()
    systems = {text for _, _, one in found for text in one.systems}
    for name, _, one in found:
        if one.behind and most(one.behind) != asking.behind_image:
            other = most(one.behind)
            said.append(
                f"data {name}: {other!r} stands between an image and the words behind it where most of the mixture "
                f"has {asking.behind_image!r}: the model is asked with that"
            )
    if len(systems) > 1 and all(len(one.systems) == 1 for _, _, one in found):
        said.append("the data sets differ in the message of the system: give one where the model is asked")
    return replace(asking, system=asking.system if len(systems) == 1 else ""), said


def asking_of(data: Any) -> Asking:
    """Returns the form in which the data asks and logs the differences as warnings."""
    asking, differences = look_at_asking(data)
    for sentence in differences:
        log.warning("%s", sentence)
    return asking


def _habits(data: Any, part: Any) -> tuple[float, Habits]:
    """Returns the weight of a data set in the training, and the counts over its conversations."""
    shards = 1 if any(map(is_remote, part.shards)) else SHARDS
    store = SampleStore([part.shards[k] for k in spread(len(part.shards), shards)], "train", data.cache)
    conversations = []
    for i in spread(len(store), SAMPLES):
        with suppress(SampleError):
            conversations.append(messages_of(store, i))
    return part.share or len(store) * len(part.shards), Habits.of(conversations)
