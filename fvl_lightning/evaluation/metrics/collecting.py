"""Base class of metrics whose aggregate needs all answers: states that hold numbers and texts of every answer."""

from abc import ABC
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fvl_lightning.evaluation.metrics.base import AnswerMetric

_STATES = {"kept_numbers": torch.float64, "kept_lengths": torch.long, "kept_bytes": torch.uint8}


class Kept(NamedTuple):
    """Facts about one answer that a CollectingMetric keeps."""

    kind: str
    numbers: tuple[float, ...]
    texts: tuple[str, ...]


class CollectingMetric(AnswerMetric, ABC):
    """A metric that keeps numbers and texts of every answer until `compute`.

    The states are tensors that torchmetrics concatenates over ranks: texts as their bytes in UTF-8 with their lengths.
    """

    def __init__(self, config: Any, kinds: Iterable[str]) -> None:
        """Builds a metric over these kinds of question, with the component's Config."""
        super().__init__(config, kinds)
        for name in _STATES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def keep(self, kind: str, numbers: Sequence[float] = (), texts: Sequence[str] = ()) -> None:
        """Keeps numbers and texts of an answer to a question of this kind."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.kept_numbers.append(torch.tensor(numbers, dtype=torch.float64))
        lengths = [self.kinds.index(kind), len(numbers), len(texts), *map(len, encoded)]
        self.kept_lengths.append(torch.tensor(lengths, dtype=torch.long))
        joined = bytearray().join(encoded)
        self.kept_bytes.append(torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.zeros(0).byte())

    def kept(self) -> Iterator[Kept]:
        """Yields the kept data of each answer, in order; after a synchronisation those of all ranks, rank by rank."""
        numbers, lengths = self._state("kept_numbers").tolist(), self._state("kept_lengths").tolist()
        joined = self._state("kept_bytes").cpu().numpy().tobytes()
        number = length = byte = 0
        while length < len(lengths):
            kind, amount, texts = lengths[length : length + 3]
            found = []
            for size in lengths[length + 3 : length + 3 + texts]:
                found.append(joined[byte : byte + size].decode("utf-8", "surrogatepass"))
                byte += size
            yield Kept(self.kinds[kind], tuple(numbers[number : number + amount]), tuple(found))
            number, length = number + amount, length + 3 + texts

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the answers of all ranks; unlike torchmetrics, also where a rank has none."""
        for name, dtype in _STATES.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                # torchmetrics would send an empty tensor of float32, which the others' types do not match.
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super().sync(*args, **kwargs)

    def _state(self, name: str) -> Tensor:
        """Returns a state as one tensor; torchmetrics holds a list before a synchronisation."""
        state = getattr(self, name)
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.zeros(0, dtype=_STATES[name])
