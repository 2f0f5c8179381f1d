"""Everything an experiment file can say, on one screen; the slots' own fields are beside their classes."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fvl_lightning.core.config import slot
from fvl_lightning.core.errors import unknown_name

COMPONENTS = ("encoder", "fusion", "projector", "language_model")
"""The parts of the model that are frozen, trained and given learning rates as one."""
REPEATED = ("encoder", "language_model")
"""The components that are made of blocks: the units of sharding and of activation checkpointing."""


@dataclass
class NormalizeConfig:
    """LayerNorms around the fusion; the original has none. A comparison of fusions wants both, equal in every arm."""

    sources: bool = False
    """Normalise each source before it is fused."""
    output: bool = False
    """Normalise what the fusion returns."""


@dataclass
class OptimizerConfig:
    """Which update, and how its learning rate moves: linear warm-up, then a cosine."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the update of hidden matrices and leaves the rest to AdamW."""
    learning_rate: float = 1e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Per component (encoder, fusion, projector, language_model), over `learning_rate`."""
    weight_decay: float = 0.0
    """Decoupled, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 0
    final_fraction: float = 0.0
    """The cosine ends at this fraction of the peak."""
    clip_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; null for never."""

    def __post_init__(self) -> None:
        rates = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        rates |= {f"learning_rates.{component}": rate for component, rate in self.learning_rates.items()}
        for name, value in rates.items():
            if value < 0:
                raise ValueError(f"optimizer.{name} must not be negative, it is {value}")


@dataclass
class TrainerConfig:
    """How long, how much at once, and on what."""

    max_steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Samples per step and device, before accumulation."""
    accumulate: int = 1
    """Batches per optimiser step."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Lightning's name of the device kind: auto, cpu, cuda, mps."""
    strategy: Literal["single", "ddp", "fsdp", "hsdp"] = "single"
    """One device; a whole model on each of several (ddp); a part of it on each (fsdp, FSDP2), or a part on each of a
    machine's (hsdp)."""
    devices: int = 1
    """Processes per machine, each with a device of its own."""
    nodes: int = 1
    """Machines."""
    reshard_after_forward: bool = True
    """Where sharded, a block is gathered again for the backward pass (ZeRO-3) rather than kept since the forward one
    (ZeRO-2)."""
    checkpoint_activations: list[str] = field(default_factory=list)
    """Components (encoder, language_model) whose blocks are computed again in the backward pass, to save memory."""
    cpu_offload: bool = False
    """Where sharded, parameters, gradients and optimiser state are in main memory, a block's on the GPU while it
    computes."""
    compile: list[str] = field(default_factory=list)
    """Components (encoder, language_model) whose blocks go through torch.compile, which needs a C++ compiler."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int | None = None
    """torch threads on a CPU; null keeps torch's choice. Another number gives other bits, so a resume checks it."""
    validate_every: int = 100
    """Steps between two passes over the validation split."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    checkpoint: Literal["auto", "whole", "sharded"] = "auto"
    """One file (whole), or a folder to which every rank writes its part (sharded); auto follows the model."""
    checkpoint_in_background: bool = False
    """Goes on training while a checkpoint is written, from a copy in main memory."""
    keep_best: bool = False
    """Keeps the weights of the lowest validation loss in checkpoints/best.ckpt, for `fvl export --checkpoint best`."""
    log_every: int = 10
    """Steps between two logged points."""
    max_skipped: int = 3
    """Steps in a row that may make no update, since their loss or gradient is not finite; one more ends the run."""
    spike_threshold: float | None = None
    """Steps whose loss or gradient norm lies so many robust standard deviations above those of the last 100 updates
    make no update either; null for none."""
    stall_seconds: float | None = 1800.0
    """With several ranks, how long one of them may get nothing done, or be silent, before all end; null for ever."""

    def __post_init__(self) -> None:
        counts = ("max_steps", "batch_size", "accumulate", "threads", "validate_every", "checkpoint_every", "log_every")
        for name in (*counts, "devices", "nodes"):
            if vars(self)[name] is not None and vars(self)[name] < 1:
                raise ValueError(f"trainer.{name} must be at least 1, not {vars(self)[name]}")
        if self.max_skipped < 0:
            raise ValueError(f"trainer.max_skipped must not be negative, it is {self.max_skipped}")
        for name in ("spike_threshold", "stall_seconds"):
            if vars(self)[name] is not None and vars(self)[name] <= 0:
                raise ValueError(f"trainer.{name} must be above 0, or null, not {vars(self)[name]:g}")
        if self.strategy == "single" and self.world_size > 1:
            raise ValueError(f"trainer.strategy: single is one device, take ddp or fsdp for {self.world_size}")
        if not self.sharded:
            for name, asked in {"checkpoint": self.checkpoint == "sharded", "cpu_offload": self.cpu_offload}.items():
                if asked:
                    raise ValueError(f"trainer.{name}: {self.strategy} splits nothing over ranks, take fsdp or hsdp")
        for option in ("checkpoint_activations", "compile"):
            for name in vars(self)[option]:
                if name not in REPEATED:
                    raise unknown_name("component with blocks", name, REPEATED, f"trainer.{option}")

    @property
    def sharded(self) -> bool:
        """Whether no device holds a whole model."""
        return self.strategy in ("fsdp", "hsdp")

    @property
    def world_size(self) -> int:
        """Processes of the training on all machines."""
        return self.devices * self.nodes


@dataclass
class TrackingConfig:
    """Where runs are followed."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking store or server."""
    experiment: str = "fvl"
    enabled: bool = True


@dataclass
class LoraComponentConfig:
    """What a component has of its own where two are adapted, over what `lora` says for both."""

    rank: int | None = None
    alpha: int | None = None
    targets: Any = None


@dataclass
class LoraConfig:
    """The adapters of what `trainable` calls lora (arXiv 2106.09685): beside a matrix W, alpha / rank * B A."""

    rank: int = 16
    """Columns of B and rows of A."""
    alpha: int | None = None
    """Size of the update, null for twice the rank."""
    dropout: float = 0.0
    """Of what goes into A, in training."""
    targets: Any = "all-linear"
    """Linear layers to adapt: all-linear (without the head), a list of the last parts of their names, or a regular
    expression of whole names in the model."""
    rslora: bool = False
    """Scales by alpha / sqrt(rank) (arXiv 2312.03732)."""
    dora: bool = False
    """Learns the length of each row of W apart from its direction (arXiv 2402.09353)."""
    quantization: Literal["4bit"] | None = None
    """4bit holds the matrices under a language model's adapters in NF4 (QLoRA, arXiv 2305.14314); CUDA alone."""
    components: dict[str, LoraComponentConfig] = field(default_factory=dict)
    """Rank, alpha and targets of a component of its own: {encoder: {rank: 8}}."""

    def __post_init__(self) -> None:
        own = {f"components.{name}.": component for name, component in self.components.items()}
        for where, settings in {"": self, **own}.items():
            for name in ("rank", "alpha"):
                value = getattr(settings, name)
                if value is not None and value < 1:
                    raise ValueError(f"lora.{where}{name} must be at least 1, not {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be at least 0 and below 1, not {self.dropout:g}")


@dataclass
class ExperimentConfig:
    """One training run: one stage over one model and one data set."""

    name: str = "experiment"
    """Names the run and its folder."""
    stage: Any = slot("stage")
    encoder: Any = slot("encoder")
    fusion: Any = slot("fusion")
    projector: Any = slot("projector")
    language_model: Any = slot("language_model")
    data: Any = slot("data")
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    trainable: dict[str, str] = field(default_factory=dict)
    """frozen, full or lora per component, over what the stage says."""
    lora: LoraConfig | None = None
    """Settings of the components that are lora; null for the defaults."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    init_from: list[str] = field(default_factory=list)
    """Runs (folder or MLflow run id) or model folders whose weights this one starts from; of two that have a component
    the later one wins."""
    feature_cache: str | None = None
    """Folder in which a frozen encoder's features are kept, computed once per image; null runs it at every step."""
    seed: int = 0
    output: str = "runs"
    """The folder under which this run gets its own."""
    plugins: list[str] = field(default_factory=list)
    """Modules or .py files that register components of your own."""
    chosen: dict[str, str] = field(default_factory=dict)
    """What was taken of the `variants` that the file and its bases offer, such as {recipe: released}: a record."""
