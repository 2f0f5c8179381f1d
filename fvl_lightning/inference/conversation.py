"""A conversation with a model, including its history."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from datamodules.encoding.messages import Message
from fvl_lightning.inference.generation import Prompt, Sampling, encode, stream, user_message
from fvl_lightning.modeling.build import LoadedModel


@dataclass
class Conversation:
    """The messages so far, and the decoded images for the next message."""

    loaded: LoadedModel
    sampling: Sampling
    messages: list[Message] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)

    def say(self, text: str) -> Generator[str]:
        """Sends a message and yields the answer piece by piece; a partial answer is kept when iteration stops.

        Raises:
            DataError: the conversation exceeds the model's positions; the message is then not added to it. Raised by
                the call, not by the first iteration.
        """
        messages = [*self.messages, user_message(self.pictures, text)]
        prompt = encode(self.loaded, messages)
        self.pictures, self.messages = [], [*messages, {"role": "assistant", "content": ""}]
        return self._write(prompt)

    def _write(self, prompt: Prompt) -> Generator[str]:
        written = ""
        for piece in stream(self.loaded, prompt, self.sampling):
            written += piece
            self.messages[-1] = {"role": "assistant", "content": self.loaded.processor.encoder.words_of(written)}
            yield piece
