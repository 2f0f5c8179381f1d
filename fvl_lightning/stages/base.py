"""The base class of all stages: the exact objective, freezing, the position in the data, and logging."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from datamodules.base import BatchData
from datamodules.encoding.question_form import QuestionForm
from fvl_lightning.core.errors import ConfigError
from fvl_lightning.core.experiment import COMPONENTS, ExperimentConfig, LoraConfig
from fvl_lightning.core.types import Batch, Position, PromptedBatch, earliest
from fvl_lightning.modeling.adapters.folders import base_hash
from fvl_lightning.stages.step_metrics import DatasetMetrics, StepMetrics, WeightedMean
from fvl_lightning.stages.update_guard import SkippedStep, UpdateGuard, ValidationWatch
from fvl_lightning.training.checkpointing.last_and_previous import RUN_HASH
from fvl_lightning.training.checkpointing.rng_state import random_states, restore_random_states
from fvl_lightning.training.components import (
    blocks,
    check_gradients,
    children_with_mode,
    freeze,
    resolve_trainable,
    set_modes,
    sharding_units,
    trainable_names,
)
from fvl_lightning.training.distributed.block_transforms import transform_blocks
from fvl_lightning.training.distributed.fsdp import ShardedModel, make_room
from fvl_lightning.training.distributed.local_updates import clip_gradients, scale_gradients
from fvl_lightning.training.distributed.strategies import ShardedStrategy
from fvl_lightning.training.load_weights import check_checkpoint, load_trainable
from fvl_lightning.training.lora import add_adapters, check_lora, lora_components
from fvl_lightning.training.lr_schedule import warmup_cosine
from fvl_lightning.training.optimizer import build_optimizer
from fvl_lightning.training.stage_interface import StageInterface

T = TypeVar("T")


class Stage(StageInterface, ABC):
    """Trains components of `model` on batches of one of its views.

    The loss is the SUM over supervised tokens. The gradients are divided once, by the tokens of all ranks and all
    accumulated batches, so that the update does not depend on how the samples are split.
    """

    VIEWS: ClassVar[tuple[str, ...]]
    """The values of `data.view` that this stage accepts."""
    TRAINABLE: ClassVar[Mapping[str, str]]
    """{component of the model: frozen, full or lora}; an experiment's `trainable` overrides it."""

    def __init__(self, experiment: ExperimentConfig, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        name = experiment.stage.name
        if experiment.data.config.view not in self.VIEWS:
            raise ConfigError(
                f"data.view: stage {name} learns from {' or '.join(self.VIEWS)}, not {experiment.data.config.view}"
            )
        self.experiment = experiment
        self.model: Any = model
        self.tokenizer = tokenizer
        self.inherits: Sequence[str] = COMPONENTS
        """The components whose weights the runs of `init_from` give, if they have them."""
        self.asking = QuestionForm()
        """The form of the data's questions, which is saved with the model."""
        self.trainable = resolve_trainable(self.TRAINABLE, experiment.trainable, name)
        check_lora(experiment.lora, self.trainable, model)
        if experiment.trainer.sharded and experiment.lora and experiment.lora.quantization:
            raise ConfigError("lora.quantization: a quantised model cannot be sharded, take trainer.strategy ddp")
        freeze(model, self.trainable)
        self.strict_loading = False  # checkpoints hold trained tensors only; on_load_checkpoint checks them
        self.validation_loss, self.validation_accuracy = WeightedMean(), WeightedMean()
        self.validation_datasets = DatasetMetrics()
        self.validation_watch = ValidationWatch()
        self.position: Position = 0
        """The end of the last optimiser step in the global order of samples, equal on all ranks, for a resume."""
        self._fetched_position: Position = 0
        self._step_tokens: list[Tensor] = []
        self._step_losses: list[Tensor] = []
        self._step_keys: list[tuple[str, ...]] = []
        self._random_states: dict[str, Tensor] = {}
        self._saw_images = self._checked = self._configured = False
        self.sharded: ShardedModel | None = None
        self.step_metrics = StepMetrics(tokenizer.pad_token_id)
        self.guard = UpdateGuard(experiment.trainer.max_skipped, experiment.trainer.spike_threshold)

    @classmethod
    @abstractmethod
    def build(cls, experiment: ExperimentConfig, device: str = "cpu") -> "Stage":
        """Returns the stage with a freshly initialised model; on the meta device it has shapes, but no values."""

    @abstractmethod
    def save_model(self, folder: Path) -> None:
        """Writes the trained model into `folder` (safetensors)."""

    def adapt(self, base: Path) -> None:
        """Adds adapters to the components in mode lora; call it once, after the weights in `base` are loaded."""
        settings = self.experiment.lora or LoraConfig()
        self.base = base
        if settings.quantization is not None:
            _ = self.frozen_hash  # cached here, before quantisation changes the weights
        if lora_components(self.trainable):
            add_adapters(self.model, self.trainable, settings, self.experiment.seed)

    @cached_property
    def frozen_hash(self) -> str:
        """The hash of the frozen weights: those of the components that are not in mode full."""
        return base_hash(self.model.state_dict(), children_with_mode(self.trainable, "full"))

    def train(self, mode: bool = True) -> "Stage":
        """Sets the mode of the stage; frozen components stay in eval mode."""
        super().train(mode)
        if mode:
            set_modes(self.model, self.trainable)
        return self

    def training_step(self, batch: Batch | PromptedBatch, batch_index: int) -> Tensor:
        """Returns the sum of the cross entropies of a batch."""
        loss, diagnostics = self.compute(batch)
        self._fetched_position = batch.position
        self._step_tokens.append(loss.tokens)
        self._step_losses.append(loss.sum.detach())
        self._step_keys.append(batch.keys)
        self._saw_images |= batch.has_images
        self.step_metrics.add(loss, diagnostics, batch)
        return loss.sum

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scales the summed gradients to those of the mean over all supervised tokens of the step."""
        tokens = torch.stack(self._step_tokens).sum()
        samples = tokens.new_tensor(sum(map(len, self._step_keys)))
        sums = torch.stack([tokens, samples, torch.stack(self._step_losses).sum()]).float()
        self._own_loss = sums[2] / sums[0].clamp(min=1)
        tokens, self._step_samples, loss = self._sum_over_ranks(sums).unbind()
        self._step_loss = loss / tokens.clamp(min=1)
        self.step_metrics.step_keys = self._step_keys
        self._step_tokens.clear()
        self._step_losses.clear()
        # Lightning has divided by the number of accumulated batches, and DDP or FSDP by the number of ranks.
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / tokens.clamp(min=1)
        if not self._checked and self._saw_images:
            check_gradients(self.model, self.trainable)
            self._checked = True
        scale_gradients(self.parameters(), scale)

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        """Clips gradients by their global norm; removes them if the guard skips the step.

        Optimisers ignore parameters without a gradient, so that weights and moments do not change.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._step_norm = norm = clip_gradients(parameters, self.experiment.optimizer.clip_norm)
        measured = torch.stack([self._step_loss.to(norm.device), norm.float()])
        if self.guard.spike_threshold is not None:  # ranks may round the norm differently, but must decide alike
            measured = self._sum_over_ranks(measured) / self.trainer.world_size
        self._measured = measured.tolist()
        self._skip_reason = self.guard.reason_to_skip(*self._measured)
        if self._skip_reason:
            optimizer.zero_grad()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes the update, and then sets the position, since Lightning fetches batches ahead of their step."""
        super().optimizer_step(*args, **kwargs)
        self.position = self._fetched_position
        keys, self._step_keys = self._step_keys, []
        self.step_metrics.end_step(updated=self._skip_reason is None)
        if self._skip_reason is None:
            self.samples = self.samples + self._step_samples
            self.step_metrics.gradient_norm = self._step_norm
            self.guard.record_update(*self._measured)
        else:
            (loss, norm), own = self._measured, self._gather_from_ranks(float(self._own_loss))
            step = SkippedStep(self.global_step + 1, self._skip_reason, loss, norm, self._gather_keys(keys), own)
            self.guard.record_skip(step, self.loggers)

    @property
    def window_tokens(self) -> int:
        """The number of tokens, padding included, that this rank processed since the last `read_log`."""
        return self.step_metrics.row_tokens

    def read_log(self) -> dict[str, float]:
        """Returns the metrics of the steps since the last call, over all ranks; all ranks must call it."""
        return self.step_metrics.read(self._sum_over_ranks, self._gather_keys)

    def configure_model(self) -> None:
        """Shards the model, and then checkpoints and compiles its blocks, so that FSDP2's hooks run around both."""
        settings, strategy = self.experiment.trainer, self.trainer.strategy
        if self._configured:
            return
        self._configured = True
        if isinstance(strategy, ShardedStrategy):
            units = sharding_units(self.model)
            self.sharded = ShardedModel(self.model, *units, strategy.mesh, strategy.root_device, settings)
        elif self.trainer.world_size > 1:
            make_room(self.model, strategy.root_device)
        transform_blocks(partial(blocks, self.model), settings)

    def gather(self) -> None:
        """Gathers a sharded model on rank 0 after training; all ranks must call it."""
        if self.sharded is not None:
            self.model = self.sharded.gather()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns one optimiser for all trainable parameters, and its learning-rate schedule by step."""
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
        """Logs the loss and the token accuracy of the validation split, and the loss of each dataset of a mixture."""
        if self.sharded is not None:
            self.sharded.reshard()
        values = {
            "validation/loss": float(self.validation_loss.compute()),
            "validation/token_accuracy": float(self.validation_accuracy.compute()),
        }
        self.last_validation_loss = values["validation/loss"]
        self.validation_watch.check(self.global_step, self.last_validation_loss, self._gather_from_ranks)
        losses, _ = self.validation_datasets.read(self._sum_over_ranks)
        values |= {f"validation/loss/{name}": loss for name, loss in losses.items()}
        self.validation_loss.reset()
        self.validation_accuracy.reset()
        # For callbacks that monitor a metric, such as EarlyStopping; all ranks have the same values.
        self.log_dict(values, logger=False, sync_dist=self.trainer.world_size > 1)
        for run_logger in () if self.trainer.sanity_checking else self.loggers:
            run_logger.log_metrics(values, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replaces frozen weights by their hash; adds the position in the data and the random states."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {name: checkpoint["state_dict"][name] for name in sorted(self._trained_names())}
        checkpoint["frozen_hash"] = self.frozen_hash
        checkpoint["position"] = earliest(self._gather_from_ranks(self.position))
        checkpoint["samples"] = int(self.samples)
        checkpoint["windows"] = self._gather_from_ranks(self.step_metrics.state())
        checkpoint["skipped_in_a_row"] = self.guard.in_a_row
        checkpoint["recent_updates"] = self.guard.recent
        checkpoint["random_states"] = self._gather_from_ranks(random_states(self.trainer.strategy.root_device))
        checkpoint["threads"] = torch.get_num_threads()
        checkpoint[RUN_HASH] = self.run_hash

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the state, and the position of a data module from which the Trainer makes its loaders.

        Raises:
            DataError: the frozen weights or the trainable parameters differ.
        """
        check_checkpoint(checkpoint, self.frozen_hash, self._trained_names(), "--resume")
        self.position, self.samples = checkpoint["position"], checkpoint["samples"]
        if isinstance(data := self.trainer.datamodule, BatchData):  # else the loaders begin there already
            data.start_at(self.position)
        self.guard.in_a_row, self.guard.recent = checkpoint["skipped_in_a_row"], checkpoint["recent_updates"]
        self.step_metrics.restore(checkpoint.get("windows", ()), self.trainer.global_rank, self.trainer.world_size)
        states = checkpoint["random_states"]
        if len(states) == self.trainer.world_size:  # otherwise each rank keeps the random stream of its own seed
            self._random_states = states[self.trainer.global_rank]

    def load_weights(self, checkpoint: Mapping[str, Any], option: str) -> None:
        """Loads only the weights of a checkpoint; its errors are those of `on_load_checkpoint`, and name `option`."""
        check_checkpoint(checkpoint, self.frozen_hash, self._trained_names(), option)
        load_trainable(self, checkpoint["state_dict"])

    def on_train_start(self) -> None:
        """Sets the modes, which Lightning does not change, and restores the random states at the last moment."""
        self.train()
        if self._random_states:
            restore_random_states(self._random_states, self.trainer.strategy.root_device)

    def _trained_names(self) -> set[str]:
        return {f"model.{name}" for name in trainable_names(self.model, self.trainable)}

    def _gather_keys(self, batches: list[tuple[str, ...]]) -> list[str]:
        """Returns the keys of the batches of all ranks, in the order of a single process."""
        every_rank = self._gather_from_ranks(batches)
        return [key for ranks in zip(*every_rank, strict=True) for keys in ranks for key in keys]

    def _gather_from_ranks(self, value: T) -> list[T]:
        every_rank = [value] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(every_rank, value)
        return every_rank

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")
