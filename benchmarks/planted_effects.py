"""What a comparison claims of real tiny trainings where the truth is known: arms alike, and a source that tells more.

    python benchmarks/planted_effects.py [--alike 100] [--planted 20]

An image shows one of CLASSES patterns under noise; the model says which. Its encoder, the only part made for this, has
one source in which the pattern is found with some strength, and others of noise alone. Alignment, gated fusion, output
norm, projector, Llama, seeded initial values and statistics are the kit's. The trainings of an arm are one batched
model (torch.func), each with parameters, data order and optimiser state of its own. A comparison has three arms and
three seeds; no two comparisons share a seed.

    alike    arms that differ only in the initial values of their fusions: comparisons that claim any difference
    planted  the pattern in place of one source of noise: comparisons that call it better, or worse, by strength; and
             those that claim anything of an arm with another source of noise there

The numbers are saved in benchmarks/results/planted_effects.json. Takes 80 s
of one core.
"""

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from recording import record
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fvl_lightning.comparison.statistics.verdicts import compare_arms
from fvl_lightning.core.experiment import OptimizerConfig
from fvl_lightning.core.registry import register
from fvl_lightning.core.types import FeatureSpec
from fvl_lightning.encoders.base import Encoder
from fvl_lightning.modeling.configuration import FlorenceVLConfig
from fvl_lightning.modeling.florence_vl import FlorenceVLForConditionalGeneration
from fvl_lightning.modeling.initialization import derived_seed, initialize
from fvl_lightning.training.lr_schedule import warmup_cosine

CLASSES = 4
WIDTH = 8
PIXELS = 4
"""Per side: room for the pattern and five sources of noise, WIDTH numbers each."""
BOS, IMAGE, ASKED, FIRST_CLASS = 0, 1, 2, 3
TRAINING_IMAGES, TEST_IMAGES = 1024, 500
STEPS, BATCH = 40, 32
OPTIMIZER = OptimizerConfig(learning_rate=0.01, warmup_steps=5)
SEEDS, SMALLEST_EFFECT = 3, 0.02
CLAIMS = ("better", "worse")
ALIKE, PLANTED = 100, 20
"""Comparisons."""
AT_ONCE = 60
"""Trainings in one batched model."""
FIRST_PLANTED_SEED = 1000
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.2)
MIDDLING = 0.6
"""The strength at which arms are alike: their scores are neither those of chance nor near the top."""
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": FIRST_CLASS + CLASSES,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
    "bos_token_id": BOS,
    "eos_token_id": BOS,
    "pad_token_id": BOS,
}


@register("encoder", "planted")
class PlantedEncoder(Encoder):
    """Reads the pattern with a strength, or one of five noises; there is nothing to learn."""

    @dataclass
    class Config:
        """Fields of the encoder."""

        sources: list[str] = field(default_factory=lambda: ["pattern", "noise_1", "noise_2"])
        """`pattern`, or noise_0 to noise_4."""
        strength: float = 1.0
        """Size of the pattern; that of the noise on it, which is noise_0, is 1."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.image_size, self.mean, self.std, self.tasks = PIXELS, (0.0,) * 3, (1.0,) * 3, ()
        self.specs = {name: FeatureSpec(1, WIDTH, (1, 1)) for name in config.sources}

    def blocks(self) -> list[nn.Module]:
        """None."""
        return []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[I, 3, P, P] -> {source: [I, 1, WIDTH]}."""
        pattern, *noises = images.flatten(1).split(WIDTH, 1)
        read = {f"noise_{number}": noise for number, noise in enumerate(noises)}
        read["pattern"] = self.config.strength * pattern + noises[0]
        return {name: read[name].unsqueeze(1) for name in self.specs}


@dataclass(frozen=True)
class Arm:
    """What its first source is, how strong, and which initial values its fusion has."""

    source: str
    strength: float = 0.0
    fusion_stream: int = 0


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [I, 3, P, P] and their classes [I]."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)).sign()
    classes = torch.randint(CLASSES, (count,), generator=generator)
    noise = torch.randn(count, 3 * PIXELS**2 - WIDTH, generator=generator)
    return torch.cat([patterns[classes], noise], 1).view(count, 3, PIXELS, PIXELS), classes


def model_config(source: str, strength: float, **more: Any) -> FlorenceVLConfig:
    """The model of a first source of some strength, and two of noise."""
    return FlorenceVLConfig(
        encoder={"name": "planted", "sources": [source, "noise_1", "noise_2"], "strength": strength},
        fusion={"name": "gated"},
        projector={"name": "mlp", "depth": 2},
        language_model={"name": "causal"},
        normalize_sources=True,
        normalize_output=True,
        image_token_id=IMAGE,
        text_config=LLAMA,
        **more,
    )


def build(arm: Arm, seed: int) -> FlorenceVLForConditionalGeneration:
    """The arm's model with the initial values of a seed."""
    model = FlorenceVLForConditionalGeneration(model_config(arm.source, arm.strength))
    initialize(model, seed)
    if arm.fusion_stream:
        initialize(nn.ModuleDict({"fusion": model.fusion}), derived_seed(seed, arm.fusion_stream))
    return model


def order(seed: int, steps: int) -> Tensor:
    """The images of every step of a seed, [steps, BATCH]."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "order"))
    return torch.randint(TRAINING_IMAGES, (steps, BATCH), generator=generator)


class Answering(nn.Module):
    """The model, asked about images: {source: [I, 1, WIDTH]} -> logits [I, V] of what it says next."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sources: dict[str, Tensor]) -> Tensor:
        """See the class."""
        rows = torch.tensor([[BOS, IMAGE, ASKED]]).expand(len(next(iter(sources.values()))), -1)
        return self.model(rows, image_sources=sources, logits_to_keep=1).logits[:, -1]


def train(arm: Arm, seeds: Sequence[int], steps: int = STEPS) -> tuple[dict[str, Tensor], list[float]]:
    """A training for every seed, all of them at once: parameters, stacked, and accuracies on the test images."""
    models = [Answering(build(arm, seed)) for seed in seeds]
    parameters, buffers = stack_module_state(models)
    encoder = models[0].model.encoder
    shown, classes = images(TRAINING_IMAGES, 1)
    features, words = encoder(shown), FIRST_CLASS + classes
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=OPTIMIZER.learning_rate, betas=OPTIMIZER.betas, weight_decay=0.0
    )
    schedule = warmup_cosine(optimizer, OPTIMIZER, steps)

    def answers(own: dict[str, Tensor], held: dict[str, Tensor], sources: dict[str, Tensor]) -> Tensor:
        return functional_call(models[0], (own, held), (sources,))

    def loss(own: dict[str, Tensor], held: dict[str, Tensor], sources: dict[str, Tensor], truth: Tensor) -> Tensor:
        return nn.functional.cross_entropy(answers(own, held, sources), truth)

    step = vmap(grad_and_value(loss))
    orders = torch.stack([order(seed, steps) for seed in seeds])
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        for drawn in orders.unbind(1):
            gradients, _ = step(parameters, buffers, {name: x[drawn] for name, x in features.items()}, words[drawn])
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            optimizer.step()
            schedule.step()
        shown, classes = images(TEST_IMAGES, 2)
        with torch.no_grad():
            found = vmap(answers, in_dims=(0, 0, None))(parameters, buffers, encoder(shown)).argmax(-1)
    return parameters, (found == FIRST_CLASS + classes).float().mean(1).tolist()


def compared(arms: dict[str, list[float]]) -> list[dict[str, str]]:
    """{arm: verdict} against the first arm, of each comparison; the next SEEDS scores are those of the next one."""
    tables = []
    for start in range(0, len(next(iter(arms.values()))), SEEDS):
        scores = {arm: dict(enumerate(accuracies[start : start + SEEDS])) for arm, accuracies in arms.items()}
        comparison = compare_arms(scores, next(iter(arms)), SMALLEST_EFFECT)
        tables.append({contrast.arm: contrast.verdict for contrast in comparison.contrasts})
    return tables


def alike(comparisons: int) -> dict[str, float]:
    """Arms with the pattern whose fusions start from other values: in how many comparisons something is claimed."""
    scores: dict[str, list[float]] = {f"fusion {stream}": [] for stream in range(3)}
    for start in range(0, SEEDS * comparisons, AT_ONCE):
        seeds = range(start, min(start + AT_ONCE, SEEDS * comparisons))
        for stream, accuracies in enumerate(scores.values()):
            accuracies += train(Arm("pattern", MIDDLING, stream), seeds)[1]
    every = torch.tensor(list(scores.values())).view(3, comparisons, SEEDS)
    return {
        "comparisons": comparisons,
        "claims": sum(any(verdict in CLAIMS for verdict in table.values()) for table in compared(scores)),
        "accuracy": float(every.mean()),
        "difference_sd": float((every[1:] - every[0]).std()),
    }


def planted(comparisons: int) -> dict[str, dict[str, float]]:
    """{strength: mean accuracy, and comparisons that call the pattern better, worse, or claim something of noise}."""
    seeds = range(FIRST_PLANTED_SEED, FIRST_PLANTED_SEED + SEEDS * comparisons)
    noises = {source: train(Arm(source), seeds)[1] for source in ("noise_3", "noise_4")}
    found = {}
    for strength in STRENGTHS:
        accuracies = train(Arm("pattern", strength), seeds)[1]
        tables = compared(noises | {"pattern": accuracies})
        found[f"{strength:g}"] = {
            "accuracy": sum(accuracies) / len(accuracies),
            "better": sum(table["pattern"] == "better" for table in tables),
            "worse": sum(table["pattern"] == "worse" for table in tables),
            "noise": sum(table["noise_4"] in CLAIMS for table in tables),
        }
    return found


def main() -> None:
    """Trains, prints the numbers and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alike", type=int, default=ALIKE, help="comparisons of arms that are alike")
    parser.add_argument("--planted", type=int, default=PLANTED, help="comparisons for each strength")
    words = parser.parse_args()
    torch.set_num_threads(1)
    strengths = planted(words.planted)
    result = {"alike": alike(words.alike), "planted": {"comparisons": words.planted, "strengths": strengths}}
    record("planted_effects", result)
    console = Console()
    console.print(f"arms alike: {result['alike']}")
    table = Table("strength", "accuracy", "better", "worse", "claims of noise", title=f"of {words.planted} comparisons")
    for strength, row in result["planted"]["strengths"].items():
        table.add_row(strength, f"{row['accuracy']:.3f}", *(str(row[name]) for name in ("better", "worse", "noise")))
    console.print(table)


if __name__ == "__main__":
    main()
