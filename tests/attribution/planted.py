"""A model of planted sources with weights that are set by hand, so that what each source is worth is known.

An image shows one of four classes. The source `signal` is the class as a one-hot vector at each of four places, `copy`
is the same, and `noise` and `hiss` are noise that depends on the image. The fusion is `gated` with gates that do not
depend on the features. A question of kind "class" is answered with the class that is largest in the fused features, or
with nothing where these are zero, and one of kind "blind" with the same word whatever the image is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.attribution.opened import OpenedRun
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.fusions.gated import GatedFusion
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.modeling.connector.alignment import SourceAlignment
from tests.tiny_models import BOS, EOS, IMAGE, LLAMA, TOKENS, VOCABULARY, tiny_model, tiny_tokenizer

SOURCES = ("signal", "copy", "noise", "hiss")
CLASSES = 4
CLASS_OF = (0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3)
"""The class of each image; half of them are of class 0, which is the largest in their mean."""
FIRST_CLASS, BLIND_ANSWER, CLASS_QUESTION, BLIND_QUESTION = 4, 8, 9, 10
"""Ids of words: those of the classes follow each other."""
SAID, BLIND = 4, 5
"""Places in the hidden state: an answer is written, and the question is a blind one."""


class PlantedEncoder(nn.Module):
    """Returns the planted sources of images that are filled with their number, and counts the images it gets."""

    image_size, mean, std = 2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self, sources: Sequence[str]) -> None:
        super().__init__()
        self.specs = {name: FeatureSpec(TOKENS, CLASSES, (2, 2)) for name in sources}
        self.images: list[int] = []
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(2, len(CLASS_OF), TOKENS, CLASSES, generator=generator)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        numbers = pixels.mean((1, 2, 3)).round().long()
        self.images += numbers.tolist()
        one_hot = torch.eye(CLASSES)[torch.tensor(CLASS_OF)[numbers]].unsqueeze(1).expand(-1, TOKENS, -1)
        planted = {"signal": one_hot, "copy": one_hot, "noise": self.noise[0, numbers], "hiss": self.noise[1, numbers]}
        return {name: planted[name].clone() for name in self.specs}


@dataclass(frozen=True)
class PlantedQuestion:
    """What answers are generated to, and scored by."""

    kind: str
    answer: str
    index: int

    @property
    def prompt_messages(self) -> tuple[int, ...]:
        """The token ids of the prompt."""
        asked = CLASS_QUESTION if self.kind == "class" else BLIND_QUESTION
        return (BOS, *[IMAGE] * TOKENS, asked)


class PlantedData:
    """Images that are filled with their number, and two questions about each."""

    encoder = SimpleNamespace(prompt=list, question=lambda messages: [messages[-1]])
    reader = SimpleNamespace(identity=lambda: {"fit": "stretch"}, tiling=None)

    def questions(self, split: str) -> list[PlantedQuestion]:
        return [
            PlantedQuestion(kind, f"w{FIRST_CLASS + one if kind == 'class' else BLIND_ANSWER}", index)
            for index, one in enumerate(CLASS_OF)
            for kind in ("class", "blind")
        ]

    def tile_counts(self, split: str, index: int) -> list[int]:
        return [1]

    def sized(self, split: str, index: int, messages: Any) -> Any:
        return messages

    def pixels(self, split: str, indices: Sequence[int]) -> Tensor:
        return torch.tensor(list(indices)).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


@dataclass(frozen=True)
class PlantedRun(OpenedRun):
    """An opened run whose encoder counts its images."""

    @cached_property
    def encoder(self) -> PlantedEncoder:
        return self.built.model.encoder


@torch.no_grad()
def planted_run(gates: dict[str, float]) -> PlantedRun:
    """An opened run of a model that weighs its sources by these gates, which add up to 1."""
    llama = LLAMA | {"tie_word_embeddings": False, "num_hidden_layers": 1}
    model = tiny_model(fusion="gated", projector="linear", llama=llama)
    model.encoder = PlantedEncoder(list(gates))
    model.alignment = SourceAlignment(model.encoder.specs, normalize=False)
    model.fusion = GatedFusion(GatedFusion.Config(), model.alignment.specs)
    width = model.language_model.dim
    model.projector.layer = nn.Linear(CLASSES, width)
    model._shapes_are_checked = True
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    for value in model.fusion.values.values():
        value.weight.copy_(torch.eye(CLASSES))
    model.fusion.gates.bias.copy_(torch.tensor(list(gates.values())).log().clamp(min=-1e4))
    model.projector.layer.weight[:CLASSES] = torch.eye(CLASSES)
    # Attention is uniform over the row, and adds what it finds in the first places of the image's tokens.
    attention = model.language_model.blocks()[0].self_attn
    attention.v_proj.weight[:CLASSES, :CLASSES] = torch.eye(CLASSES)
    attention.o_proj.weight[:CLASSES, :CLASSES] = torch.eye(CLASSES)
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    words[FIRST_CLASS : BLIND_ANSWER + 1, SAID] = 10.0
    words[BLIND_QUESTION, BLIND] = 10.0
    head[EOS, SAID] = head[BLIND_ANSWER, BLIND] = 10.0
    head[FIRST_CLASS : FIRST_CLASS + CLASSES, :CLASSES] = torch.eye(CLASSES)
    assert head.shape[0] == VOCABULARY
    built: Any = LoadedModel(model.eval(), tiny_tokenizer(), None)
    data: Any = PlantedData()
    return PlantedRun(None, built, data, "test", tuple(data.questions("test")))
