"""Multiple choice: the letter of an option, read from a free answer."""

from fvl_lightning.evaluation.metrics.multiple_choice.multiple_choice import MultipleChoiceMetric

__all__ = ["MultipleChoiceMetric"]
