"""Everything an experiment file can say, on one screen; the slots' own fields are beside their classes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fvl_lightning.core.addresses import refuse_login
from fvl_lightning.core.atomic import check_folder_name
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import MAX_SEED, changes, number
from fvl_lightning.core.config.files import OVERRIDES
from fvl_lightning.core.config.loading import as_overrides, as_plain, merge_layers, slot
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
    learning_rate: float = number(1e-4, above=0, hint="`trainable` freezes a component")
    learning_rates: dict[str, float] = number(
        default_factory=dict, above=0, hint="`trainable` freezes a component"
    )
    """Per component (encoder, fusion, projector, language_model), over `learning_rate`."""
    weight_decay: float = number(0.0, at_least=0)
    """Decoupled, on matrices only."""
    betas: tuple[float, float] = number((0.9, 0.95), at_least=0, below=1)
    warmup_steps: int = number(0, at_least=0)
    final_fraction: float = number(0.0, at_least=0, at_most=1)
    """The cosine ends at this fraction of the peak."""
    clip_norm: float | None = number(1.0, above=0, hint="null turns clipping off")
    """Global gradient norm above which gradients are scaled down; null for never."""


@dataclass
class TrainerConfig:
    """How long, how much at once, and on what."""

    max_steps: int = number(1000, at_least=1)
    """Optimiser steps."""
    batch_size: int = number(32, at_least=1, changes="placement")
    """Samples per step and device, before accumulation."""
    accumulate: int = number(1, at_least=1)
    """Batches per optimiser step."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Lightning's name of the device kind: auto, cpu, cuda, mps."""
    strategy: Literal["single", "ddp", "fsdp", "hsdp"] = changes("placement", "single")
    """One device; a whole model on each of several (ddp); a part of it on each (fsdp, FSDP2), or a part on each of a
    machine's (hsdp)."""
    devices: int = number(1, at_least=1, changes="placement")
    """Processes per machine, each with a device of its own."""
    nodes: int = number(1, at_least=1, changes="placement")
    """Machines."""
    reshard_after_forward: bool = changes("placement", True)
    """Where sharded, a block is gathered again for the backward pass (ZeRO-3) rather than kept since the forward one
    (ZeRO-2)."""
    checkpoint_activations: list[str] = changes("placement", default_factory=list)
    """Components (encoder, language_model) whose blocks are computed again in the backward pass, to save memory."""
    cpu_offload: bool = changes("placement", False)
    """Where sharded, parameters, gradients and optimiser state are in main memory, a block's on the GPU while it
    computes."""
    compile: list[str] = changes("placement", default_factory=list)
    """Components (encoder, language_model) whose blocks go through torch.compile, which needs a C++ compiler."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int | None = number(None, at_least=1, changes="nothing")
    """torch threads on a CPU; null keeps torch's choice. Another number gives other bits, so a resume checks it."""
    validate_every: int = number(100, at_least=1)
    """Steps between two passes over the validation split."""
    checkpoint_every: int = number(100, at_least=1, changes="nothing")
    """Steps between two checkpoints."""
    checkpoint: Literal["auto", "whole", "sharded"] = changes("placement", "auto")
    """One file (whole), or a folder to which every rank writes its part (sharded); auto follows the model."""
    checkpoint_in_background: bool = changes("nothing", False)
    """Goes on training while a checkpoint is written, from a copy in main memory."""
    keep_best: bool = False
    """Keeps the weights of the lowest validation loss in checkpoints/best.ckpt, for `fvl export --checkpoint best`."""
    log_every: int = number(10, at_least=1, changes="nothing")
    """Steps between two logged points."""
    max_skipped: int = number(3, at_least=0, changes="nothing")
    """Steps in a row that may make no update, since their loss or gradient is not finite; one more ends the run."""
    spike_threshold: float | None = number(None, above=0, hint="null looks for none")
    """Steps whose loss or gradient norm lies so many robust standard deviations above those of the last 100 updates
    make no update either; null for none."""
    stall_seconds: float | None = number(1800.0, above=0, hint="null waits for ever", changes="nothing")
    """With several ranks, how long one of them may get nothing done, or be silent, before all end; null for ever."""

    def __post_init__(self) -> None:
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
    """MLflow tracking store, sqlite:///<path>, or the address of a server, without a login."""
    experiment: str = "fvl"
    enabled: bool = changes("nothing", True)

    def __post_init__(self) -> None:
        refuse_login(self.uri, "tracking.uri")


@dataclass
class LoraComponentConfig:
    """What a component has of its own where two are adapted, over what `lora` says for both."""

    rank: int | None = number(None, at_least=1)
    alpha: int | None = number(None, at_least=1)
    targets: Any = None


@dataclass
class LoraConfig:
    """The adapters of what `trainable` calls lora (arXiv 2106.09685): beside a matrix W, alpha / rank * B A."""

    rank: int = number(16, at_least=1)
    """Columns of B and rows of A."""
    alpha: int | None = number(None, at_least=1)
    """Size of the update, null for twice the rank."""
    dropout: float = number(0.0, at_least=0, below=1)
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


@dataclass
class ExperimentConfig:
    """One training run: one stage over one model and one data set."""

    name: str = "experiment"
    """Names the run and its folder; sweep/b is the folder b in the folder sweep."""
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
    init_from: list[PathText] = field(default_factory=list)
    """Runs (folder or MLflow run id) or model folders whose weights this one starts from; of two that have a component
    the later one wins."""
    feature_cache: PathText | None = None
    """Folder in which a frozen encoder's features are kept, computed once per image; null runs it at every step."""
    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    output: PathText = changes("nothing", "runs")
    """The folder under which this run gets its own."""
    plugins: list[PathText] = field(default_factory=list)
    """Modules or .py files that register components of your own."""
    chosen: dict[str, str] = changes("nothing", default_factory=dict)
    """What was taken of the `variants` that the file and its bases offer, such as {recipe: released}: a record."""

    def __post_init__(self) -> None:
        check_folder_name(self.name, "name")

    def with_overrides(self, *overrides: str | Mapping[str, Any]) -> "ExperimentConfig":
        """Returns a checked copy with overrides applied: "key=value" words, or mappings {dotted key: value}.

        A variant (`variants:` of a file) can be chosen only where the file is loaded.

        Raises:
            ConfigError: an unknown key or name, or a wrong type; one sentence with the key.
        """
        layer = ("the experiment", as_plain(self))
        return merge_layers(ExperimentConfig, [layer], as_overrides(overrides), OVERRIDES)
