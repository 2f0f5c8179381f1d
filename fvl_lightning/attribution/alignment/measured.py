"""Opens runs of the stage alignment_probe, checks that they can be compared, and measures them on one split."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import torch

from datamodules.base import BatchData
from fvl_lightning.core.device import autocast
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.types import Batch
from fvl_lightning.evaluation.scoring import open_model
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.modeling.contrastive.evaluation import Pairs, evaluate_pairs, ranks_both_ways
from fvl_lightning.modeling.contrastive.retrieval import CUTOFFS
from fvl_lightning.modeling.contrastive.vectors import caption_numbers, pair_vectors
from fvl_lightning.runs.folder import RunFolder

STAGE, SPLIT = "alignment_probe", "validation"
Progress = Callable[[str, int, int], None]
"""Called with what is computed, the number of finished items, and the number of all."""


@dataclass(frozen=True)
class ProbeRun:
    """A run of the probe and what it found."""

    run: RunFolder
    arm: str
    """The name of the run without its seed."""
    seed: int
    encoder: str
    """The hash of the encoder's weights."""
    captions: int
    """N."""
    temperature: float
    curve: list[tuple[int, float]]
    """(step, validation loss)."""
    found: dict[str, float]
    """As of evaluate_pairs."""
    hits: dict[str, torch.Tensor]
    """{<direction>_r<k>: whether each pair is found among the first k, [M] of 0 and 1}."""
    keys: tuple[str, ...]
    """The keys of the pairs' samples."""

    @property
    def reached(self) -> float:
        """The share of the way from ln N to the floor that the loss has come; NaN where they are equal."""
        way = log(self.found["captions"]) - self.found["floor"]
        return (log(self.found["captions"]) - self.found["loss"]) / way if way > 1e-9 else float("nan")


def arm_of(name: str, seed: int) -> str:
    """Returns the name of a run without its last part, if that is the seed: probe/davit/0, or probe/davit_seed0."""
    return re.sub(rf"[/_-](seed)?[_-]?{seed}$", "", name)


def check_comparable(runs: Sequence[RunFolder]) -> None:
    """Checks that losses of runs can be compared.

    Raises:
        ConfigError: there is no run, one is not finished or of another stage, or N or the temperature differ.
    """
    if not runs:
        raise ConfigError("RUN: name at least one run of the stage alignment_probe")
    for run in runs:
        run.check_finished()
        if run.info["stage"] != STAGE:
            raise ConfigError(f"{run.path} is a run of the stage {run.info['stage']}, expected {STAGE}")
    first = runs[0].experiment().stage.config
    for run in runs[1:]:
        config = run.experiment().stage.config
        for name, what in (("captions", "N"), ("temperature", "the temperature")):
            values = getattr(first, name), getattr(config, name)
            if values[0] != values[1]:
                raise ConfigError(
                    f"stage.{name}: {what} is {values[0]} in {runs[0].path} and {values[1]} in {run.path}; chance and "
                    "floor move with it, so that their losses do not compare; train both with the same value"
                )


def measure(run: RunFolder, accelerator: str | None, progress: Progress) -> tuple[ProbeRun, LoadedModel, BatchData]:
    """Measures a finished run on its validation split; returns its model and data too.

    Args:
        run: a run of the probe.
        accelerator: None for that of the run's training.
        progress: called as samples are read.
    """
    experiment = run.experiment()
    built, data = open_model(run, accelerator=accelerator)
    pairs, keys = split_pairs(built, data, experiment.trainer.precision, lambda *done: progress(f"{run.path}", *done))
    config = experiment.stage.config
    found = evaluate_pairs(pairs, config.captions, config.temperature)
    ranks = ranks_both_ways(pairs)
    hits = {f"{way}_r{k}": (rank <= k).double() for way, rank in ranks.items() for k in CUTOFFS}
    arm = arm_of(run.info["name"], experiment.seed)
    curve = run.curve("validation/loss")
    about = (run, arm, experiment.seed, run.info["encoder_hash"], config.captions, config.temperature)
    return ProbeRun(*about, curve, found, hits, keys), built, data


@torch.no_grad()
def split_pairs(
    built: LoadedModel, data: BatchData, precision: str, progress: Callable[[int, int], None]
) -> tuple[Pairs, tuple[str, ...]]:
    """Returns the vectors of all pairs of the validation split, and the keys of their samples.

    Args:
        built: a model in eval mode on its device.
        data: connected to it, with view caption.
        precision: see core/device.py.
        progress: called with the number of finished batches and the number of all.
    """
    model, images, captions = built.model, [], []
    texts: list[int] = []
    keys: list[str] = []
    loader = data.val_dataloader()
    for number, batch in enumerate(loader):
        assert isinstance(batch, Batch), "the stage reads captions"
        batch = batch.to(model.device)
        with autocast(model.device, precision):
            found = pair_vectors(model, batch.token_ids, batch.labels, batch.images, batch.features, batch.questions)
        images.append(found.images.cpu())
        captions.append(found.captions.cpu())
        texts += caption_numbers(batch.token_ids, batch.labels, found.rows)
        keys += [batch.keys[row] for row in found.rows.tolist()]
        progress(number + 1, len(loader))
    return Pairs(torch.cat(images), torch.cat(captions), torch.tensor(texts)), tuple(keys)
