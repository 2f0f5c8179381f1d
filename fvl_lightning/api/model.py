"""A saved model: answers to questions about images, and what its encoder and fusion make of an image."""

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.inference.adapters import attach_adapters
from fvl_lightning.inference.conversation import Conversation
from fvl_lightning.inference.generation import Prompt, Sampling, answer, encode, stream, user_message
from fvl_lightning.inference.source_weight_maps import SourceWeights, source_weights
from fvl_lightning.modeling.adapters.folders import use_adapter
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.modeling.processing.image_processor import Picture, flatten
from fvl_lightning.runs.plugins import import_plugins_for
from fvl_lightning.runs.references import answering_model

Pictures = Picture | Sequence[Picture]
"""One image or several: a path, an http(s) address, encoded bytes, a Pillow image, or a uint8 array [height, width, 3].
"""
GREEDY = Sampling()


@dataclass(frozen=True)
class Model:
    """A model in eval mode, with its tokenizer and processor."""

    reference: str
    """The run or folder that it was loaded from."""
    loaded: LoadedModel = field(repr=False)
    """`loaded.model`, `loaded.tokenizer` and `loaded.processor` are a transformers model, tokenizer and processor."""
    adapters: tuple[str, ...] = ()
    """The names of its adapters; the first one is in use."""

    @property
    def sources(self) -> list[str]:
        """The encoder's feature sources, in order."""
        return list(self.loaded.model.encoder.specs)

    def answer(self, images: Pictures, question: str, sampling: Sampling = GREEDY) -> str:
        """Answers a question about one image, several, or none ([]).

        Raises:
            DataError: an image that cannot be read, or more tokens than the model has positions for.
        """
        return self.answer_batch([(images, question)], sampling)[0]

    def answer_batch(self, questions: Sequence[tuple[Pictures, str]], sampling: Sampling = GREEDY) -> list[str]:
        """Answers (images, question) pairs in one batch; greedy float32 answers equal those of `answer`."""
        prompts = [self._prompt(*question) for question in questions]
        return answer(self.loaded, prompts, sampling) if prompts else []

    def stream(self, images: Pictures, question: str, sampling: Sampling = GREEDY) -> Generator[str]:
        """Yields an answer piece by piece; closing the generator stops the model at its next token.

        Raises:
            ConfigError: `sampling` has several beams, whose answer is known only at the end.
            DataError: as for `answer`.
        """
        if sampling.beams != 1:
            raise ConfigError(f"beams: a stream has 1 beam, found {sampling.beams}; use answer() for several")
        return stream(self.loaded, self._prompt(images, question), sampling)

    def conversation(self, images: Pictures = (), sampling: Sampling = GREEDY) -> Conversation:
        """Begins a dialogue with history about `images`; `say(text)` yields the answer piece by piece."""
        return Conversation(self.loaded, sampling, pictures=flatten(images))

    def pixels(self, images: Pictures) -> Tensor:
        """Returns images as in training, or their tiles, [I, 3, P, P] normalised, on the model's device."""
        values: Tensor = self.loaded.processor.image_processor(flatten(images))["pixel_values"]
        return values.to(self.loaded.model.device, self.loaded.model.dtype)

    @torch.no_grad()
    def features(self, images: Pictures) -> dict[str, Tensor]:
        """Returns what the encoder makes of I images or tiles: {source: [I, N, D]}."""
        return dict(self.loaded.model.encoder(self.pixels(images)))

    def source_weights(self, image: Picture) -> SourceWeights:
        """Returns the weight of each source in the fusion for one image; empty if the fusion does not weight them.

        An image that becomes tiles has the weights of its thumbnail, or of its last tile if it has none.
        """
        return source_weights(self.loaded, self.pixels(image)[-1:])[0]

    def use_adapter(self, name: str | None) -> None:
        """Computes with this adapter from now on; None computes with the base model alone.

        Raises:
            ConfigError: the model has no adapter of this name.
        """
        if name is not None and name not in self.adapters:
            raise unknown_name("adapter", name, self.adapters, "use_adapter")
        use_adapter(self.loaded.model, name)

    def _prompt(self, images: Pictures, question: str) -> Prompt:
        return encode(self.loaded, [user_message(flatten(images), question)])


def load_model(
    reference: str | os.PathLike[str],
    adapters: Sequence[str] = (),
    device: str | None = None,
    plugins: Sequence[str] = (),
) -> Model:
    """Loads a model that answers questions.

    Args:
        reference: a run, its folder or MLflow id, or a model folder, as a run, `fvl import` or `fvl export` writes it.
        adapters: further adapters as folders or "name=folder"; the first one is in use.
        device: such as "cpu" or "cuda:1"; None for the GPU if there is one.
        plugins: files or modules that register components of the model; "own" for the copies in its folder.

    Raises:
        DataError: neither a run nor a model folder, or files that are missing or broken.
        ConfigError: a run that is not finished or trained an encoder alone, or an adapter that does not fit.
    """
    reference = os.fspath(reference)
    import_plugins_for(reference, plugins)
    loaded = answering_model(reference, None if device is None else torch.device(device))
    return Model(reference, loaded, tuple(attach_adapters(loaded, adapters)))
