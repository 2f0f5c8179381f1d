"""What every stage shares: the exact objective, freezing, the position in the data, and what is logged."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from datamodules.base import BatchData
from datamodules.encoding.question_form import Asking
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import REPEATED, ExperimentConfig, LoraConfig
from fvl_lightning.core.types import Batch, Position, PromptedBatch, earliest
from fvl_lightning.modeling.adapters.folders import base_hash
from fvl_lightning.modeling.loss import TokenLoss
from fvl_lightning.stages.step_metrics import DatasetMetrics, StepMetrics, WeightedMean
from fvl_lightning.stages.update_guard import Step, UpdateGuard, ValidationWatch
from fvl_lightning.training.checkpointing.rng_state import random_states, restore_random_states
from fvl_lightning.training.components import (
    blocks,
    check_gradients,
    children,
    freeze,
    learning,
    resolve_trainable,
    set_modes,
)
from fvl_lightning.training.distributed.block_transforms import checkpoint_activations, compile_blocks
from fvl_lightning.training.distributed.fsdp import Sharded, gathered, local
from fvl_lightning.training.distributed.strategies import ShardedStrategy
from fvl_lightning.training.lora import adapted, add_adapters, check_lora
from fvl_lightning.training.lr_schedule import warmup_cosine
from fvl_lightning.training.optimizer import build_optimizer
from fvl_lightning.training.weights import check_checkpoint, load_trainable

T = TypeVar("T")


class Stage(LightningModule, ABC):
    """Trains some components of `model` on batches of its views.

    The loss is the SUM over supervised tokens; gradients are divided once by the tokens of all ranks and accumulated
    batches, so that the update does not depend on how the samples were split.
    """

    VIEWS: ClassVar[tuple[str, ...]]
    """The values of `data.view` that this stage can learn from."""
    TRAINABLE: ClassVar[Mapping[str, str]]
    """frozen, full or lora for every component the stage's model has; an experiment's `trainable` overrides it."""

    def __init__(self, experiment: ExperimentConfig, model: Any, tokenizer: Any) -> None:
        super().__init__()
        name = experiment.stage.name
        if experiment.data.config.view not in self.VIEWS:
            raise ConfigError(
                f"data.view: stage {name} learns from {' or '.join(self.VIEWS)}, not {experiment.data.config.view}"
            )
        self.experiment = experiment
        self.model: Any = model
        self.tokenizer = tokenizer
        self.asking = Asking()
        """How the data asks, which is saved with the model."""
        self.trainable = resolve_trainable(self.TRAINABLE, experiment.trainable, name)
        check_lora(experiment.lora, self.trainable, model)
        if experiment.trainer.sharded and experiment.lora and experiment.lora.quantization:
            raise ConfigError("lora.quantization: what is held in 4bit cannot be sharded, take trainer.strategy ddp")
        freeze(model, self.trainable)
        self.strict_loading = False  # checkpoints hold what learns; on_load_checkpoint is strict about that
        self.validation_loss, self.validation_accuracy = WeightedMean(), WeightedMean()
        self.validation_datasets = DatasetMetrics()
        self.validation_watch = ValidationWatch()
        self.position: Position = 0
        """Where in the global order the optimiser steps so far end, equal on all ranks; a resumed run goes on there."""
        self.samples: Tensor | int = 0
        """Samples that the optimiser steps so far learned from, over all ranks."""
        self.last_validation_loss: float | None = None
        self._fetched_position: Position = 0
        self._step_tokens: list[Tensor] = []
        self._step_losses: list[Tensor] = []
        self._step_keys: list[tuple[str, ...]] = []
        self._random_states: dict[str, Tensor] = {}
        self._saw_images = self._checked = self._configured = False
        self.sharded: Sharded | None = None
        self.logged = StepMetrics(tokenizer.pad_token_id)
        self.guard = UpdateGuard(experiment.trainer.max_skipped, experiment.trainer.spike_threshold)

    @classmethod
    @abstractmethod
    def build(cls, experiment: ExperimentConfig, device: str = "cpu") -> "Stage":
        """The stage with its freshly initialised model; on the meta device for shapes alone."""

    @abstractmethod
    def compute(self, batch: Any) -> tuple[TokenLoss, dict[str, Tensor]]:
        """The loss of a batch and the diagnostics of the fusion."""

    @abstractmethod
    def save_model(self, folder: Path) -> None:
        """Writes the trained model into `folder` (safetensors)."""

    def adapt(self, base: Path) -> None:
        """Puts adapters beside what is lora; call it once, with the weights of the folder `base` in place."""
        settings = self.experiment.lora or LoraConfig()
        self.base = base
        if settings.quantization is not None:
            assert self.frozen_hash  # while the weights are those that others know
        if adapted(self.trainable):
            add_adapters(self.model, self.trainable, settings, self.experiment.seed)

    @cached_property
    def frozen_hash(self) -> str:
        """Names the weights that do not learn: those of the components that are not trained in full."""
        return base_hash(self.model.state_dict(), children(self.trainable, "full"))

    def train(self, mode: bool = True) -> "Stage":
        """Train mode for what trains; frozen components stay in eval mode."""
        super().train(mode)
        if mode:
            set_modes(self.model, self.trainable)
        return self

    def training_step(self, batch: Batch | PromptedBatch, batch_index: int) -> Tensor:
        """One batch's sum of cross entropies."""
        loss, diagnostics = self.compute(batch)
        self._fetched_position = batch.position
        self._step_tokens.append(loss.tokens)
        self._step_losses.append(loss.sum.detach())
        self._step_keys.append(batch.keys)
        self._saw_images |= batch.has_images
        self.logged.add(loss, diagnostics, batch)
        return loss.sum

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turns summed gradients into those of the mean over all supervised tokens of the step."""
        tokens = torch.stack(self._step_tokens).sum()
        samples = tokens.new_tensor(sum(map(len, self._step_keys)))
        sums = torch.stack([tokens, samples, torch.stack(self._step_losses).sum()]).float()
        self._own_loss = sums[2] / sums[0].clamp(min=1)
        tokens, self._step_samples, loss = self._summed_over_ranks(sums).unbind()
        self._step_loss = loss / tokens.clamp(min=1)
        self.logged.step_keys = self._step_keys
        self._step_tokens.clear()
        self._step_losses.clear()
        # Lightning has divided by the accumulated batches, and DDP or FSDP by the ranks.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / tokens.clamp(min=1)
        if not self._checked and self._saw_images:
            check_gradients(self.model, self.trainable)
            self._checked = True
        gradients = [local(parameter.grad) for parameter in self.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, scale.to(gradients[0].device))

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clips by the global norm; takes all gradients away where the guard objects to them or to the loss.

        The optimisers pass over parameters without a gradient: weights and moments stay as they are.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        limit = self.experiment.optimizer.clip_norm
        norm = gathered(nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit))
        self._step_norm = norm
        found = torch.stack([self._step_loss.to(norm.device), norm.float()])
        if self.guard.spike_threshold is not None:  # ranks that round the norm in unlike ways must judge alike
            found = self._summed_over_ranks(found) / self.trainer.world_size
        self._found = found.tolist()
        self._objection = self.guard.objection(*self._found)
        if self._objection:
            optimizer.zero_grad()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The update; the position is committed with it, since Lightning fetches batches ahead of their step."""
        super().optimizer_step(*args, **kwargs)
        self.position = self._fetched_position
        keys, self._step_keys = self._step_keys, []
        self.logged.end_step(updated=self._objection is None)
        if self._objection is None:
            self.samples = self.samples + self._step_samples
            self.logged.gradient_norm = self._step_norm
            self.guard.updated(*self._found)
        else:
            (loss, norm), own = self._found, self._of_all_ranks(float(self._own_loss))
            step = Step(self.global_step + 1, self._objection, loss, norm, self._gathered_over_ranks(keys), own)
            self.guard.skipped(step, self.loggers)

    def read_log(self) -> dict[str, float]:
        """What is logged of the steps since the last time, over all ranks; each of them must ask."""
        return self.logged.read(self._summed_over_ranks, self._gathered_over_ranks)

    def configure_model(self) -> None:
        """Splits the model, has blocks compute their activations again, and compiles them, where asked; once.

        All but the splitting replaces a block's `forward`, around which FSDP2's hooks run.
        """
        settings, strategy = self.experiment.trainer, self.trainer.strategy
        if self._configured:
            return
        self._configured = True
        if isinstance(strategy, ShardedStrategy):
            units = [block for component in REPEATED for block in blocks(self.model, component)]
            self.sharded = Sharded(
                self.model, units, strategy.mesh, strategy.root_device, settings.reshard_after_forward,
                strategy.offload,
            )  # fmt: skip
        for component in settings.checkpoint_activations:
            checkpoint_activations(blocks(self.model, component))
        for component in settings.compile:
            # A tower's stages share code and differ in all sizes, of which inductor makes too much of a generality.
            compile_blocks(blocks(self.model, component), dynamic=False if component == "encoder" else None)

    def gather(self) -> None:
        """After training: the first rank has the whole model again where it was sharded; every rank must ask."""
        if self.sharded is not None:
            self.model = self.sharded.gather()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimiser over what trains, with warm-up and cosine per step."""
        optimizer = build_optimizer(self.model, self.experiment.optimizer)
        schedule = warmup_cosine(optimizer, self.experiment.optimizer, self.experiment.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def validation_step(self, batch: Batch | PromptedBatch, batch_index: int) -> None:
        """Adds a batch to the token-weighted validation loss and accuracy."""
        loss, _ = self.compute(batch)
        self.validation_loss.update(loss.mean, loss.tokens)
        self.validation_accuracy.update(loss.correct / loss.tokens.clamp(min=1), loss.tokens)
        self.validation_datasets.add(loss, batch)
        self.validation_watch.add(loss.sum, batch.keys)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation split's loss, per data set too where it is a mixture, and token accuracy."""
        values = {
            "validation/loss": float(self.validation_loss.compute()),
            "validation/token_accuracy": float(self.validation_accuracy.compute()),
        }
        self.last_validation_loss = values["validation/loss"]
        self.validation_watch.check(self.global_step, self.last_validation_loss, self._of_all_ranks)
        losses, _ = self.validation_datasets.read(self._summed_over_ranks)
        values |= {f"validation/loss/{name}": loss for name, loss in losses.items()}
        self.validation_loss.reset()
        self.validation_accuracy.reset()
        for run_logger in () if self.trainer.sanity_checking else self.loggers:
            run_logger.log_metrics(values, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what does not learn, but for its hash; adds the position in the data and the random numbers."""
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in sorted(self._learning())}
        checkpoint["frozen_hash"] = self.frozen_hash
        checkpoint["position"] = earliest(self._of_all_ranks(self.position))
        checkpoint["samples"] = int(self.samples)
        checkpoint["skipped_in_a_row"] = self.guard.in_a_row
        checkpoint["recent_updates"] = self.guard.recent
        checkpoint["random_states"] = self._of_all_ranks(random_states(self.trainer.strategy.root_device))
        checkpoint["validation_loss"] = self.last_validation_loss
        checkpoint["threads"] = torch.get_num_threads()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores all of it, and the position of a data module that the Trainer makes its loaders from.

        Raises:
            DataError: what does not learn is no longer what it was, or other things learnt.
        """
        check_checkpoint(checkpoint, self.frozen_hash, self._learning(), "--resume")
        self.position, self.samples = checkpoint["position"], checkpoint["samples"]
        if isinstance(data := self.trainer.datamodule, BatchData):  # else the loaders begin at the position already
            data.start_at(self.position)
        self.guard.in_a_row, self.guard.recent = checkpoint["skipped_in_a_row"], checkpoint["recent_updates"]
        states = checkpoint["random_states"]
        if len(states) == self.trainer.world_size:  # else each rank has a stream of its own seed
            self._random_states = states[self.trainer.global_rank]

    def take_weights(self, checkpoint: Mapping[str, Any], told: str) -> None:
        """The weights alone, without a training; errors as of `on_load_checkpoint`, told of the option `told`."""
        check_checkpoint(checkpoint, self.frozen_hash, self._learning(), told)
        load_trainable(self, checkpoint["state_dict"])

    def on_train_start(self) -> None:
        """Sets the modes, which Lightning leaves as they are, and restores the random numbers at the last moment."""
        self.train()
        if self._random_states:
            restore_random_states(self._random_states, self.trainer.strategy.root_device)

    def _learning(self) -> set[str]:
        return {f"model.{name}" for name in learning(self.model, self.trainable)}

    def _gathered_over_ranks(self, batches: list[tuple[str, ...]]) -> list[str]:
        """The keys of the batches of all ranks, in the order in which one rank would have had them."""
        every_rank = self._of_all_ranks(batches)
        return [key for ranks in zip(*every_rank, strict=True) for keys in ranks for key in keys]

    def _of_all_ranks(self, mine: T) -> list[T]:
        every_rank = [mine] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(every_rank, mine)
        return every_rank

    def _summed_over_ranks(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")
