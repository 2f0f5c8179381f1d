"""Explains what each feature source is worth to a trained model, or to the arms of a comparison."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fvl_lightning.attribution.explain import explain_all
from fvl_lightning.attribution.knock_out.subsets import Subsets
from fvl_lightning.attribution.report import Explanation
from fvl_lightning.attribution.request import QUESTIONS, ExplainRequest, known_replacements, known_sections
from fvl_lightning.core.device import COMPUTE_PRECISIONS
from fvl_lightning.core.errors import ConfigError, unknown_name


def explain(
    reference: str | os.PathLike[str],
    only: Sequence[str] = (),
    split: str = "test",
    limit: int | None = QUESTIONS,
    subsets: Subsets = "single",
    replacements: Sequence[str] = ("mean",),
    output: str | os.PathLike[str] | None = None,
    precision: str = "32-true",
    accelerator: str | None = None,
) -> Explanation:
    """Makes the report of `fvl explain`, and returns what is in it.

    Args:
        reference: the folder of a run or of a comparison, or the MLflow id of a run.
        only: names of sections, such as gates; none for all that there are.
        split: the split whose questions are asked.
        limit: how many questions, spread evenly over the split; None for all.
        subsets: single knocks out each source and all but one, all every subset.
        replacements: features in place of those of a source: mean, shuffled, noise, zero.
        output: the folder of the report; None for `explain` in the folder of the run or comparison.
        precision: 32-true computes in the type of the weights, bf16-mixed in bfloat16.
        accelerator: auto, cpu, cuda or mps; None for that of the run's training.

    Returns:
        `sections` {name: Section} with text, tables, figures and numbers, `values` {name: its numbers}, and `folder`.

    Raises:
        ConfigError: an unknown section, replacement, precision or device, or a run without a model or answers.
        DataError: there is no such run, split or file, or the report cannot be written.
    """
    if precision not in COMPUTE_PRECISIONS:
        raise unknown_name("precision", precision, COMPUTE_PRECISIONS, "precision")
    if subsets not in get_args(Subsets):
        raise unknown_name("value", subsets, get_args(Subsets), "subsets")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit: must be at least 1, not {limit}")
    names, stand_ins = known_sections(only), known_replacements(replacements)
    request = ExplainRequest(names, split, limit, subsets, stand_ins, accelerator, precision)
    (found,) = explain_all([os.fspath(reference)], request, None if output is None else Path(output))
    return found
