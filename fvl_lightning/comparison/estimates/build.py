"""Builds the stages of a plan on the meta device, also where the hub and the tokenizers cannot be reached."""

from dataclasses import dataclass, field

from fvl_lightning.comparison.checks.models import build_checked
from fvl_lightning.core.errors import ConfigError, UserError
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.doctor.model import shaped_stage, stage_with_stand_in_tokenizer
from fvl_lightning.stages.base import Stage

ADVICE = (
    "a plan without the hub needs the sizes: write them as `model` beside `pretrained`, or name a folder with a "
    "config.json (docs/comparison.md)"
)


@dataclass
class OfflineBuilder:
    """Builds stages, with a small tokenizer in place of one that cannot be read."""

    stand_ins: set[str] = field(default_factory=set)
    """Names of the language models and encoders whose tokenizers could not be read."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the plan about what could not be found."""
    _with_stand_in: set[int] = field(default_factory=set)

    def build(self, experiment: ExperimentConfig) -> Stage:
        """Returns a checked stage on the meta device; ConfigError where its sizes are not known."""
        return build_checked(experiment, self._shaped)

    def reads_tokenizer(self, stage: Stage) -> bool:
        """Returns whether a stage has the tokenizer of its training, so that rows can be inspected."""
        return id(stage) not in self._with_stand_in

    def _shaped(self, experiment: ExperimentConfig) -> Stage:
        try:
            return shaped_stage(experiment)
        except UserError as error:
            stages = list(stage_with_stand_in_tokenizer(experiment))
            if not stages:
                hint = f"; {ADVICE}" if _names_weights(experiment) else ""
                raise ConfigError(f"{error}{hint}") from None
        (stage,) = stages
        self._with_stand_in.add(id(stage))
        self.stand_ins |= set(_names_weights(experiment))
        return stage


def _names_weights(experiment: ExperimentConfig) -> list[str]:
    """Returns the hub ids and folders of the components that an experiment loads."""
    choices = [choice for choice in (experiment.encoder, experiment.language_model) if choice is not None]
    return [str(name) for choice in choices if (name := getattr(choice.config, "pretrained", None))]
