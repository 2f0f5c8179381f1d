"""A conversation with a model, including its history."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from datamodules.encoding.messages import Message
from fvl_lightning.inference.generation import Prompt, Sampling, encode, stream, user_message
from fvl_lightning.inference.without_sources import with_sources
from fvl_lightning.modeling.build import LoadedModel


@dataclass
class Conversation:
    """The messages so far, and the decoded images for the next message."""

    loaded: LoadedModel
    sampling: Sampling
    messages: list[Message] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    keeps_sources: bool = False
    """Whether the features of all pictures are computed before an answer, and stay in `asked`."""
    asked: Prompt | None = None
    """The last question with all that came before it."""

    def say(self, text: str) -> Generator[str]:
        """Sends a message and yields the answer piece by piece; a partial answer is kept when iteration stops.

        Raises:
            DataError: the conversation exceeds the model's positions; the message is then not added to it. Raised by
                the call, not by the first iteration.
        """
        messages = [*self.messages, user_message(self.pictures, text)]
        prompt = encode(self.loaded, messages)
        self.asked = prompt = with_sources(self.loaded, prompt) if self.keeps_sources else prompt
        self.pictures, self.messages = [], [*messages, {"role": "assistant", "content": ""}]
        return self._write(prompt)

    def _write(self, prompt: Prompt) -> Generator[str]:
        written = ""
        for piece in stream(self.loaded, prompt, self.sampling):
            written += piece
            self.messages[-1] = {"role": "assistant", "content": self.loaded.processor.encoder.words_of(written)}
            yield piece
