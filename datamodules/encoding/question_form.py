"""The form of a question in training, so that a trained model is prompted in the same form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from datamodules.encoding.messages import Message
from fvl_lightning.core.errors import DataError


@dataclass(frozen=True)
class QuestionForm:
    """The text around questions in training.

    Attributes:
        behind_image: whitespace between an image and the text after it, such as LLaVA's line break.
        between_images: whitespace between two images.
        system: the system message that all conversations have; "" for none.
        captions: whether training has only captions, so that it contains no questions.
    """

    behind_image: str = ""
    between_images: str = ""
    system: str = ""
    captions: bool = False

    @classmethod
    def read(cls, values: Any) -> "QuestionForm":
        """Returns the form in a saved mapping of its fields; raises DataError for anything else."""
        known = {part.name: type(part.default) for part in fields(cls)}
        if not isinstance(values, Mapping):
            raise DataError(f"the form of questions (asking) is {values!r}, expected the fields {', '.join(known)}")
        wrong = [name for name, value in values.items() if not isinstance(value, known.get(name, ()))]
        if wrong:
            raise DataError(f"the form of questions (asking): '{wrong[0]}' is {values[wrong[0]]!r}, which it cannot be")
        return cls(**values)

    def apply(self, messages: Sequence[Message]) -> list[Message]:
        """Returns the messages in training's form: with whitespace after images, and the system message in front.

        It changes neither a text that already begins with the whitespace nor an existing system message.
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
