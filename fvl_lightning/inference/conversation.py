"""A dialogue with a model, with its history."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from datamodules.encoding.messages import Message
from fvl_lightning.inference.generation import Prompt, Sampling, encode, stream, user_message
from fvl_lightning.modeling.build import LoadedModel


@dataclass
class Conversation:
    """The messages so far, and the decoded pictures that wait for the next one."""

    loaded: LoadedModel
    sampling: Sampling
    messages: list[Message] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)

    def say(self, text: str) -> Generator[str]:
        """The answer to a message, piece by piece; what has been written of it stays where it is stopped.

        Raises:
            DataError: more than the model holds, at once; the message is then not part of the conversation.
        """
        asked = [*self.messages, user_message(self.pictures, text)]
        prompt = encode(self.loaded, asked)
        self.pictures, self.messages = [], [*asked, {"role": "assistant", "content": ""}]
        return self._write(prompt)

    def _write(self, prompt: Prompt) -> Generator[str]:
        written = ""
        for piece in stream(self.loaded, prompt, self.sampling):
            written += piece
            self.messages[-1] = {"role": "assistant", "content": self.loaded.processor.encoder.words_of(written)}
            yield piece
