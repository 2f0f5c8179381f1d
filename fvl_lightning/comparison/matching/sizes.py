"""Matches the sizes of arms to the baseline's by solving for the hidden widths of their projectors."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import floor, sqrt

import torch
from torch import Tensor, nn

from fvl_lightning.comparison.plan import Arms
from fvl_lightning.core.config.loading import Choice
from fvl_lightning.core.device import compute_device, release_memory
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.flops import count_flops, training_flops
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import count_parameters

WITH_HIDDEN_WIDTH = ("mlp", "pixel_shuffle", "pool")
"""Projectors of linear layers, whose size is a quadratic polynomial of their `hidden` width."""
TOLERANCE = 0.01
"""Largest relative difference to the size of the baseline."""


class Size(ABC):
    """Size of an arm: that of its projector, which depends on the hidden width, and of all other parts."""

    elsewhere: float
    """Size of all other parts."""

    def __init__(self, experiment: ExperimentConfig, stage: Stage) -> None:
        self.choice: Choice = experiment.projector
        self.features, self.dim = stage.model.fusion.output, stage.model.language_model.dim

    def at(self, hidden: int) -> float:
        """Returns the size with this hidden width."""
        return self._with(_wide(self.choice, hidden))

    def own(self) -> float:
        """Returns the size as configured."""
        return self._with(self.choice)

    @abstractmethod
    def number(self, size: float) -> str:
        """Returns the size as text."""

    @abstractmethod
    def describe(self, size: float) -> str:
        """Returns a predicate with this size, for a sentence that begins with the name of an arm."""

    def difference_elsewhere(self, baseline: "Size") -> str:
        """Returns how the other parts differ in size from the baseline's, for the end of a sentence."""
        return ""

    @abstractmethod
    def of_projector(self, projector: nn.Module) -> float:
        """Returns the size of a projector on the meta device."""

    def _with(self, choice: Choice) -> float:
        with torch.device("meta"):
            return self.elsewhere + self.of_projector(choice.component(choice.config, self.features, self.dim))


class Parameters(Size):
    """Parameters of the fusion, with the norms around it, and the projector."""

    def __init__(self, experiment: ExperimentConfig) -> None:
        stage = build_stage(experiment, "meta")
        super().__init__(experiment, stage)
        self.elsewhere = count_parameters(stage.model)["fusion"]["parameters"]

    def number(self, size: float) -> str:
        """See Size."""
        return f"{size:,.0f}"

    def describe(self, size: float) -> str:
        """See Size."""
        return f"has {self.number(size)} parameters between encoder and language model"

    def of_projector(self, projector: nn.Module) -> float:
        """See Size."""
        return sum(parameter.numel() for parameter in projector.parameters())


class Operations(Size):
    """Floating-point operations per training sample, counted on the first batch as the report counts them."""

    def __init__(self, experiment: ExperimentConfig) -> None:
        data, stage = prepare_data(experiment), build_stage(experiment)
        super().__init__(experiment, stage)
        data.connect(data_context(stage.model, stage.tokenizer, experiment))
        device = compute_device(experiment.trainer.accelerator)
        stage.model.to(device)
        batch = next(iter(data.train_dataloader())).to(device)
        seen: list[Tensor] = []
        with stage.model.projector.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
            total = training_flops(stage, batch)
        self.shape, self.needs_gradient = seen[0].shape, seen[0].requires_grad
        self.trained = stage.trainable["projector"] == "full"
        self.samples = len(batch.keys)
        self.image_tokens = stage.model.image_spec.tokens_per_image
        self.elsewhere = 0.0
        self.elsewhere = total / self.samples - self.own()
        seen.clear()
        del stage, batch
        release_memory()

    def number(self, size: float) -> str:
        """See Size."""
        return f"{size / 1e6:,.1f}"

    def describe(self, size: float) -> str:
        """See Size."""
        return f"takes {self.number(size)} MFLOPs per training sample"

    def difference_elsewhere(self, baseline: Size) -> str:
        """See Size."""
        more = self.elsewhere - baseline.elsewhere
        text = f", with {self.number(abs(more))} {'more' if more > 0 else 'fewer'} outside the projector"
        if isinstance(baseline, Operations) and self.image_tokens != baseline.image_tokens:
            text += f" ({self.image_tokens} image tokens in the language model, not {baseline.image_tokens})"
        return text

    def of_projector(self, projector: nn.Module) -> float:
        """See Size."""
        features = torch.empty(self.shape, device="meta", requires_grad=self.needs_gradient)
        projector.requires_grad_(self.trained)

        def work() -> None:
            images = projector(features)
            if images.requires_grad:
                images.sum().backward()

        return count_flops(work) / self.samples


SIZES: dict[str, Callable[[ExperimentConfig], Size]] = {"parameters": Parameters, "flops": Operations}
"""{value of `match`: class}."""


def match_sizes(plans: Sequence[Arms], baseline: str, match: str) -> None:
    """Sets the hidden width of every arm's projector so that its last stage has the size of the baseline's, to 1 %.

    Args:
        plans: the arms of each seed, of equal sizes; they are changed in place.
        baseline: the arm that stays as it is.
        match: a key of SIZES.

    Raises:
        ConfigError: a projector has no hidden width, or no width brings an arm to that size.
    """
    target = SIZES[match](plans[0][baseline][-1])
    for arm, stages in plans[0].items():
        if arm == baseline:
            continue
        hidden = _solve(arm, stages[-1], target, match)
        for arms in plans:
            for number, stage in enumerate(arms[arm]):
                if stage.projector is not None:
                    arms[arm][number] = _with_hidden(stage, hidden)


def _solve(arm: str, experiment: ExperimentConfig, target: Size, match: str) -> int:
    """Returns the hidden width at which `experiment` comes closest to `target`; ConfigError where none is close."""
    if experiment.projector.name not in WITH_HIDDEN_WIDTH or experiment.projector.config.depth < 2:
        names = f"{', '.join(WITH_HIDDEN_WIDTH[:-1])} or {WITH_HIDDEN_WIDTH[-1]}"
        raise ConfigError(
            f"match: {match} needs a projector with a hidden width, {names} of depth 2 or more, in {arm}"
        )
    size, wanted = SIZES[match](experiment), target.own()
    one, two, three = (size.at(hidden) for hidden in (1, 2, 3))
    # Linear layers: the size is square * h^2 + slope * h + rest.
    square = (three - 2 * two + one) / 2
    slope = two - one - 3 * square
    missing = max(0.0, wanted - (one - slope - square))
    root = 2 * missing / (slope + sqrt(slope**2 + 4 * square * missing))
    low = max(1, floor(root))
    hidden = min((low, low + 1), key=lambda width: abs(size.at(width) - wanted))
    closest = size.at(hidden)
    if abs(closest - wanted) > TOLERANCE * wanted:
        raise ConfigError(
            f"match: {match}: {arm} {size.describe(closest)} with a hidden width of {hidden}, which is as near as it "
            f"comes to the baseline's {target.number(wanted)}{size.difference_elsewhere(target)}; take match: natural"
        )
    return hidden


def _with_hidden(experiment: ExperimentConfig, hidden: int) -> ExperimentConfig:
    return dataclasses.replace(experiment, projector=_wide(experiment.projector, hidden))


def _wide(projector: Choice, hidden: int) -> Choice:
    return dataclasses.replace(projector, config=dataclasses.replace(projector.config, hidden=hidden))
