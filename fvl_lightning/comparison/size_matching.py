"""Arms of one size: the hidden widths of their projectors are solved so that all come to the baseline's."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import floor, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fvl_lightning.comparison.plan import Arms
from fvl_lightning.core.config.loading import Choice
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.profiling.flops import count_flops, training_flops
from fvl_lightning.runs.setup import build_stage, data_context, prepare_data
from fvl_lightning.stages.base import Stage
from fvl_lightning.training.components import count_parameters

TOLERANCE = 0.01


class Size(ABC):
    """How large an arm is: what its projector takes, which depends on its hidden width, and all else."""

    elsewhere: float
    """What all but the projector takes."""

    def __init__(self, experiment: ExperimentConfig, stage: Stage) -> None:
        self.choice: Choice = experiment.projector
        self.features, self.dim = stage.model.fusion.output, stage.model.language_model.dim

    def at(self, hidden: int) -> float:
        """With this hidden width."""
        return self._with(_wide(self.choice, hidden))

    def own(self) -> float:
        """As it is."""
        return self._with(self.choice)

    @abstractmethod
    def words(self, size: float) -> str:
        """`size` behind the name of an arm."""

    def beyond(self, baseline: Any) -> str:
        """What sets it apart from the baseline, of its own class, beside the projector; for the end of a sentence."""
        return ""

    @abstractmethod
    def share(self, projector: nn.Module) -> float:
        """What a projector, on the meta device, takes."""

    def _with(self, choice: Choice) -> float:
        with torch.device("meta"):
            return self.elsewhere + self.share(choice.component(choice.config, self.features, self.dim))


class Parameters(Size):
    """Those of fusion, with the norms around it, and projector."""

    def __init__(self, experiment: ExperimentConfig) -> None:
        stage = build_stage(experiment, "meta")
        super().__init__(experiment, stage)
        self.elsewhere = count_parameters(stage.model)["fusion"]["parameters"]

    def words(self, size: float) -> str:
        """See Size."""
        return f"has {size:,.0f} parameters between encoder and language model"

    def share(self, projector: nn.Module) -> float:
        """See Size."""
        return sum(parameter.numel() for parameter in projector.parameters())


class Operations(Size):
    """Floating-point operations per training sample, counted on the first batch as the report counts them."""

    def __init__(self, experiment: ExperimentConfig) -> None:
        data, stage = prepare_data(experiment), build_stage(experiment)
        super().__init__(experiment, stage)
        data.connect(data_context(stage.model, stage.tokenizer, experiment))
        batch = next(iter(data.train_dataloader()))
        seen: list[Tensor] = []
        with stage.model.projector.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
            total = training_flops(stage, batch)
        self.shape, self.sends_back = seen[0].shape, seen[0].requires_grad
        self.learns = stage.trainable["projector"] == "full"
        self.samples = len(batch.keys)
        self.image_tokens = stage.model.image_spec.tokens_per_image
        self.elsewhere = 0.0
        self.elsewhere = total / self.samples - self.own()

    def words(self, size: float) -> str:
        """See Size."""
        return f"takes {_mega(size)} MFLOPs per training sample"

    def beyond(self, baseline: "Operations") -> str:
        """See Size."""
        more = self.elsewhere - baseline.elsewhere
        found = f", with {_mega(abs(more))} {'more' if more > 0 else 'fewer'} outside the projector"
        if self.image_tokens != baseline.image_tokens:
            found += f" ({self.image_tokens} image tokens in the language model, not {baseline.image_tokens})"
        return found

    def share(self, projector: nn.Module) -> float:
        """See Size."""
        features = torch.empty(self.shape, device="meta", requires_grad=self.sends_back)
        projector.requires_grad_(self.learns)

        def work() -> None:
            images = projector(features)
            if images.requires_grad:
                images.sum().backward()

        return count_flops(work) / self.samples


SIZES: dict[str, Callable[[ExperimentConfig], Size]] = {"parameters": Parameters, "flops": Operations}
"""What `match` may ask for."""


def match_sizes(plans: Sequence[Arms], baseline: str, match: str) -> None:
    """Sets the hidden width of every arm's projector so that its last stage has the size of the baseline's, to 1 %.

    Args:
        plans: the arms of each seed, of equal sizes; they are changed in place.
        baseline: the arm that stays as it is.
        match: a key of SIZES.

    Raises:
        ConfigError: a projector without a hidden width, or an arm that no width brings to that size.
    """
    target = SIZES[match](plans[0][baseline][-1])
    for arm, stages in plans[0].items():
        if arm == baseline:
            continue
        hidden = _solved(arm, stages[-1], target, match)
        for arms in plans:
            for number, stage in enumerate(arms[arm]):
                if stage.projector is not None:
                    arms[arm][number] = _with_hidden(stage, hidden)


def _solved(arm: str, experiment: ExperimentConfig, target: Size, match: str) -> int:
    """The hidden width at which `experiment` comes closest to `target`."""
    if experiment.projector.name != "mlp" or experiment.projector.config.depth < 2:
        raise ConfigError(f"match: {match} needs a projector with a hidden width, mlp of depth 2 or more, in {arm}")
    size, wanted = SIZES[match](experiment), target.own()
    one, two, three = (size.at(hidden) for hidden in (1, 2, 3))
    # Linear layers: the size is square * h^2 + slope * h + rest.
    square = (three - 2 * two + one) / 2
    slope = two - one - 3 * square
    missing = max(0.0, wanted - (one - slope - square))
    root = 2 * missing / (slope + sqrt(slope**2 + 4 * square * missing))
    low = max(1, floor(root))
    hidden = min((low, low + 1), key=lambda width: abs(size.at(width) - wanted))
    found = size.at(hidden)
    if abs(found - wanted) > TOLERANCE * wanted:
        raise ConfigError(
            f"match: {match}: {arm} {size.words(found)} with a hidden width of {hidden}, which is as near as it comes "
            f"to the baseline's {target.words(wanted).split()[1]}{size.beyond(target)}; take match: natural"
        )
    return hidden


def _with_hidden(experiment: ExperimentConfig, hidden: int) -> ExperimentConfig:
    return dataclasses.replace(experiment, projector=_wide(experiment.projector, hidden))


def _wide(projector: Choice, hidden: int) -> Choice:
    return dataclasses.replace(projector, config=dataclasses.replace(projector.config, hidden=hidden))


def _mega(operations: float) -> str:
    return f"{operations / 1e6:,.1f}"
