"""The models that lmms-eval sees: `--model fvl_lightning`, in its interfaces chat and simple.

This module imports lmms-eval, an optional package, and is imported by lmms-eval alone.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms

from fvl_lightning.core.device import COMPUTE_PRECISIONS, compute_device
from fvl_lightning.core.errors import ConfigError, unknown_name
from fvl_lightning.evaluation.batched_answers import QUESTIONS_PER_BATCH
from fvl_lightning.inference.adapters import attach_adapters
from fvl_lightning.lmms_eval.answers import generated, likelihoods
from fvl_lightning.lmms_eval.model_reference import local_model
from fvl_lightning.lmms_eval.requests import EvalRequest, chat_generation, likelihood, simple_generation
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.runs.plugins import import_plugins_for
from fvl_lightning.runs.references import answering_model

MODEL_ARGS = ("pretrained", "adapter", "plugins", "batch_size", "precision", "device")


class SimpleWrapper(lmms):
    """A model of this kit for tasks with a text and separate images.

    Args:
        pretrained: a run (folder or MLflow id), a model folder, an export, or a hub id.
        adapter: the folder of an adapter or of a run that trained one; empty for none.
        plugins: a file or module that registers components of the model, or "own" for those that it names; empty for
            none.
        batch_size: the most requests in a batch; "auto" for the kit's default.
        precision: 32-true or bf16-mixed.
        device: cpu, cuda, cuda:<number>, mps or auto; None for auto.
        max_batch_size: is ignored.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        adapter: str = "",
        plugins: str = "",
        batch_size: int | str = 1,
        precision: str = "32-true",
        device: str | None = None,
        max_batch_size: Any = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise unknown_name("argument", next(iter(unknown)), MODEL_ARGS, "--model_args")
        if precision not in COMPUTE_PRECISIONS:
            raise unknown_name("precision", precision, COMPUTE_PRECISIONS, "--model_args")
        self.batch_size = _batch_size(batch_size)
        self.precision = precision
        self.device = _device(device)
        self._reference, self._adapter = local_model(pretrained), adapter
        # lmms-eval divides the documents by these variables, which torchrun and accelerate set.
        self._rank, self._world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        import_plugins_for(self._reference, [plugins] if plugins else None)
        self._loaded: LoadedModel | None = None
        self._model()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns a text for each request."""
        return generated(*self._batched(requests, simple_generation))

    def loglikelihood(self, requests: list[Instance]) -> list[Any]:
        """Returns the loss per token of each continuation, its end included, and whether it is the greedy one.

        lmms-eval compares losses, and takes the lowest. It passes a pair on unchanged only in a GenerationResult.
        """
        found = likelihoods(*self._batched(requests, likelihood))
        return [GenerationResult(text=(-one.per_token, one.is_greedy)) for one in found]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raises ConfigError: the kit's models answer one message."""
        raise ConfigError("--tasks: fvl_lightning answers one message; tasks of several rounds are not supported")

    def clean(self) -> None:
        """Frees the memory of the model; a further request loads it again."""
        self._loaded = None
        super().clean()

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            self._loaded = answering_model(self._reference, self.device)
            attach_adapters(self._loaded, [self._adapter] if self._adapter else None)
        return self._loaded

    def _batched(self, requests: list[Instance], read: Callable[..., EvalRequest]) -> tuple[Any, ...]:
        """Returns the arguments of `generated` and `likelihoods`."""
        asked = [read(request.args, self.task_dict) for request in requests]
        return self._model(), asked, self.batch_size, self.precision, self._rank == 0


class ChatWrapper(SimpleWrapper):
    """A model of this kit for tasks that give conversations."""

    is_simple = False

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Returns a text for each request."""
        return generated(*self._batched(requests, chat_generation))


def _batch_size(given: int | str) -> int:
    if str(given) == "auto":
        return QUESTIONS_PER_BATCH
    if not str(given).isdecimal() or int(given) < 1:
        raise ConfigError(f"--batch_size: expected a number from 1 on or auto, found {given}")
    return int(given)


def _device(given: str | None) -> torch.device:
    if given is not None and ":" in given:
        try:
            return torch.device(given)
        except RuntimeError:
            raise ConfigError(f"--device: {given} is no device; take cpu, cuda, cuda:<number>, mps or auto") from None
    return compute_device(given or "auto")
