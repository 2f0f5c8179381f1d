"""Schema of an experiment file; the fields of each component are in its own Config."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from fvl_lightning.core.atomic import check_folder_name
from fvl_lightning.core.config.addresses import refuse_login
from fvl_lightning.core.config.base_files import OVERRIDES
from fvl_lightning.core.config.component_lists import component_list
from fvl_lightning.core.config.evaluation import VALIDATION_LOSS, EvaluationConfig, check_evaluation
from fvl_lightning.core.config.field_types import PathText
from fvl_lightning.core.config.fields import MAX_SEED, changes, number
from fvl_lightning.core.config.loading import as_overrides, as_plain, merge_layers, slot
from fvl_lightning.core.config.lora import LoraConfig
from fvl_lightning.core.errors import unknown_name

COMPONENTS = ("encoder", "fusion", "projector", "language_model")
"""Components of the model; each is frozen or trained as a whole and may have its own learning rate."""
REPEATED = ("encoder", "language_model")
"""Components made of blocks, the units of sharding and activation checkpointing."""
OF_COMPARISONS = ("arms", "axes", "baseline", "encoder_stage", "lineage", "match", "seeds", "stages", "swept")
"""Keys of comparison files, which are easily given to the wrong command."""
MARKS_OF_COMPARISONS = ("stages", "arms", "axes")
"""Keys by which a file is recognised as a comparison: it names stages, and arms or axes."""


@dataclass
class NormalizeConfig:
    """LayerNorms around the fusion; the original has none. A comparison of fusions needs both, equal in every arm."""

    sources: bool = False
    """Normalise each source before the fusion."""
    output: bool = False
    """Normalise the output of the fusion."""


@dataclass
class OptimizerConfig:
    """The optimiser and its learning rate schedule: linear warm-up, then cosine decay."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of hidden matrices and uses AdamW for the rest."""
    learning_rate: float = number(1e-4, above=0, hint="`trainable` freezes a component")
    learning_rates: dict[str, float] = number(
        default_factory=dict, above=0, hint="`trainable` freezes a component"
    )
    """Per component (encoder, fusion, projector, language_model), instead of `learning_rate`."""
    weight_decay: float = number(0.0, at_least=0)
    """Decoupled, on matrices only."""
    betas: tuple[float, float] = number((0.9, 0.95), at_least=0, below=1)
    warmup_steps: int = number(0, at_least=0)
    final_fraction: float = number(0.0, at_least=0, at_most=1)
    """The cosine decays to this fraction of the peak learning rate."""
    clip_norm: float | None = number(1.0, above=0, hint="null turns clipping off")
    """Global gradient norm above which gradients are scaled down; null for never."""


Kept = Literal["inputs", "products"]
"""What a block keeps for the backward pass, which computes the rest again."""


@dataclass
class TrainerConfig:
    """Number of steps, batch sizes, devices, checkpoints and logging."""

    max_steps: int = number(1000, at_least=1)
    """Optimiser steps."""
    batch_size: int = number(32, at_least=1, changes="placement")
    """Samples per step and device, before accumulation."""
    accumulate: int = number(1, at_least=1)
    """Batches per optimiser step and device."""
    global_batch: int | None = number(None, at_least=1, changes="nothing", instead_of="accumulate")
    """Samples per optimiser step on all devices, instead of `accumulate`, which follows from it: global_batch /
    (batch_size x devices x nodes)."""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Lightning's name of the device type: auto, cpu, cuda, mps."""
    strategy: Literal["single", "ddp", "fsdp", "hsdp"] = changes("placement", "single")
    """One device; a whole model on each device (ddp); a shard of it on each device (fsdp, FSDP2); or a shard on each
    device of a machine, and a whole model per machine (hsdp)."""
    devices: int = number(1, at_least=1, changes="placement")
    """Processes per machine, each with its own device."""
    nodes: int = number(1, at_least=1, changes="placement")
    """Machines."""
    reshard_after_forward: bool = changes("placement", True)
    """With sharding, gather a block again for the backward pass (ZeRO-3) instead of keeping it after the forward pass
    (ZeRO-2)."""
    checkpoint_activations: list[str] = changes("placement", default_factory=list)
    """Components (encoder, language_model) whose blocks are recomputed in the backward pass, to save memory."""
    checkpoint_keep: Kept = changes("placement", "inputs")
    """What those blocks keep: their inputs, or the results of matrix products and attention too (products), which are
    then not computed twice."""
    cpu_offload: bool = changes("placement", False)
    """With sharding, keep parameters, gradients and optimiser state in main memory, and a block on the GPU only while
    it computes."""
    compile: list[str] = changes("placement", default_factory=list)
    """Components (encoder, language_model) whose blocks are compiled with torch.compile, which needs a C++ compiler."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    tf32: bool = changes("placement", True)
    """On a GPU, multiply float32 matrices in TF32 (10 bits of mantissa, float32 sums), as convolutions are anyway; not
    with `deterministic`. bf16-mixed and other devices ignore it."""
    attention: Literal["auto", "sdpa", "documents", "varlen", "flex", "cudnn"] = changes("placement", "auto")
    """Attention of the language model. For packed rows: sdpa with a dense mask, or document by document with sdpa
    (documents), torch's flash attention (varlen) or flex_attention (flex); auto is documents on a CPU, varlen on a GPU
    in bf16-mixed, and sdpa otherwise. cudnn is sdpa that prefers cuDNN's kernels, for rows that are not packed."""
    deterministic: bool = False
    """Use only algorithms of torch that give the same bits in every run, which is slower on a GPU; an operation without
    one ends the training."""
    threads: int | None = number(None, at_least=1, changes="nothing")
    """torch threads on a CPU; null keeps torch's default. The number changes results in the last bits, so that a resume
    checks it."""
    validate_every: int = number(100, at_least=1)
    """Steps between two passes over the validation split."""
    evaluate: EvaluationConfig | None = None
    """Evaluation on tasks while the model trains; null for none."""
    checkpoint_every: int = number(100, at_least=1, changes="nothing")
    """Steps between two checkpoints."""
    checkpoint: Literal["auto", "whole", "sharded"] = changes("placement", "auto")
    """One file (whole), or a folder to which every rank writes its shard (sharded); auto is sharded for a sharded
    model."""
    checkpoint_in_background: bool = changes("nothing", False)
    """Write a checkpoint from a copy in main memory while training continues."""
    keep_best: bool = False
    """Keep the weights of the lowest validation loss in checkpoints/best.ckpt, for `fvl export --checkpoint best`."""
    keep_best_by: str = VALIDATION_LOSS
    """Metric that `keep_best` chooses by: validation/loss, or a score of `evaluate` such as evaluation/textvqa/overall,
    in the direction that is better for it."""
    log_every: int = number(10, at_least=1, changes="nothing")
    """Steps between two logged points."""
    loggers: list[Any] = component_list("logger", "mlflow", changes="nothing")
    """Loggers of the metrics, by registered name or as <dotted name of a class>: {<argument>: <value>}."""
    callbacks: list[Any] = component_list("callback")
    """Lightning callbacks, named in the same way."""
    max_skipped: int = number(3, at_least=0, changes="nothing")
    """Consecutive steps that may be skipped because their loss or gradient is not finite; one more ends the run."""
    spike_threshold: float | None = number(None, above=0, hint="null looks for none")
    """Skip a step whose loss or gradient norm is more than this many robust standard deviations above those of the last
    100 updates; null skips none."""
    stall_seconds: float | None = number(1800.0, above=0, hint="null waits for ever", changes="nothing")
    """With several ranks, end all of them once one makes no progress or does not report for this long; null waits for
    ever."""

    def __post_init__(self) -> None:
        self._divide_global_batch()
        check_evaluation(self.evaluate, self.max_steps, self.keep_best, self.keep_best_by)
        if self.strategy == "single" and self.world_size > 1:
            raise ValueError(f"trainer.strategy: single uses one device, take ddp or fsdp for {self.world_size}")
        if not self.sharded:
            for name, asked in {"checkpoint": self.checkpoint == "sharded", "cpu_offload": self.cpu_offload}.items():
                if asked:
                    raise ValueError(f"trainer.{name}: {self.strategy} splits nothing over ranks, take fsdp or hsdp")
        for option in ("checkpoint_activations", "compile"):
            for name in vars(self)[option]:
                if name not in REPEATED:
                    raise unknown_name("component with blocks", name, REPEATED, f"trainer.{option}")

    def _divide_global_batch(self) -> None:
        """Sets `accumulate` from `global_batch`; ValueError where the division leaves a rest."""
        rows = self.batch_size * self.world_size
        if self.global_batch is None or min(self.global_batch, self.batch_size, self.devices, self.nodes) < 1:
            return  # numbers out of range have a message of their own
        if self.global_batch % rows:
            share, rest = divmod(self.global_batch, self.world_size)
            sizes = [size for size in range(1, min(self.batch_size, share) + 1) if share % size == 0 and not rest]
            advice = f"; trainer.batch_size={sizes[-1]} fits" if sizes else "; choose another number of devices"
            raise ValueError(
                f"trainer.global_batch: {self.global_batch} samples are no whole number of batches of {rows} "
                f"(batch_size {self.batch_size} x devices {self.devices} x nodes {self.nodes}){advice}"
            )
        self.accumulate = self.global_batch // rows

    def batch_in_words(self, what: str = "sample") -> str:
        """Returns how many samples an optimiser step has, as a product, such as "8 x 2 devices x ... a step"."""
        counts = {"device": self.devices, "node": self.nodes}
        several = " x ".join(f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items())
        total = f"{self.samples_per_step:,} {what}{'' if self.samples_per_step == 1 else 's'}"
        return f"{self.batch_size} x {several} x {self.accumulate} accumulated = {total} a step"

    @property
    def samples_per_step(self) -> int:
        """Number of samples (rows, where they are packed) of an optimiser step, on all devices."""
        return self.batch_size * self.world_size * self.accumulate

    @property
    def sharded(self) -> bool:
        """Returns whether the model is split over devices."""
        return self.strategy in ("fsdp", "hsdp")

    @property
    def world_size(self) -> int:
        """Number of training processes on all machines."""
        return self.devices * self.nodes


@dataclass
class TrackingConfig:
    """MLflow tracking."""

    uri: str = "sqlite:///mlflow.db"
    """Tracking store: sqlite:///<path>, or the address of a server, without a login."""
    experiment: str = "fvl"
    enabled: bool = changes("nothing", True)

    def __post_init__(self) -> None:
        refuse_login(self.uri, "tracking.uri")


@dataclass
class ExperimentConfig:
    """One training run: one stage with one model on one dataset."""

    name: str = "experiment"
    """Name of the run and its folder; sweep/b is the folder b in the folder sweep."""
    stage: Any = slot("stage")
    encoder: Any = slot("encoder")
    fusion: Any = slot("fusion")
    projector: Any = slot("projector")
    language_model: Any = slot("language_model")
    data: Any = slot("data")
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    source_dropout: float = number(0.0, at_least=0, below=1)
    """Probability with which a source is set to zero for an image in training; one source at least remains."""
    fused_sources: list[str] | None = None
    """The encoder's sources that the fusion gets, in its order; a source named again is a copy, and with none named it
    gets zeros in place of the first. null for all of encoder.sources, which decides what the encoder computes."""
    trainable: dict[str, str] = field(default_factory=dict)
    """frozen, full or lora per component, instead of the stage's default."""
    lora: LoraConfig | None = None
    """Settings of the components that are trained with lora; null for the defaults."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    init_from: list[PathText] = field(default_factory=list)
    """Runs (folder or MLflow run id) or model folders to load initial weights from; the last one with a component
    wins."""
    feature_cache: PathText | None = None
    """Folder for the features of a frozen encoder, computed once per image; null runs the encoder at every step."""
    feature_cache_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the numbers in the files of `feature_cache`; bfloat16 takes half the disk and rounds the features."""
    seed: int = number(0, at_least=0, at_most=MAX_SEED)
    output: PathText = changes("nothing", "runs")
    """Folder that contains the run folders."""
    plugins: list[PathText] = field(default_factory=list)
    """Modules or .py files that register your own components."""
    chosen: dict[str, str] = changes("nothing", default_factory=dict)
    """Record of the choices selected among the `variants` of the file and its bases, such as {recipe: released}."""

    @staticmethod
    def file_of_another_kind(keys: Iterable[str]) -> tuple[str, str] | None:
        """Returns a key that marks a file as a comparison, and what to do with such a file; None for an experiment."""
        there = set(keys)
        marks = [key for key in MARKS_OF_COMPARISONS if key in there]
        advice = "this is a comparison file, which `fvl compare` and `fvl doctor` take; an experiment file is needed"
        return (marks[0], advice) if marks else None

    @staticmethod
    def advice_for_unknown(key: str) -> str:
        """Returns which command takes a file with a key that experiments do not have, for the message about it."""
        return f"{key} is a key of comparisons, which `fvl compare` takes" if key in OF_COMPARISONS else ""

    def __post_init__(self) -> None:
        check_folder_name(self.name, "name")
        narrow = self.lora is not None and self.lora.quantization == "bfloat16"
        if narrow and self.trainer.precision != "bf16-mixed":
            raise ValueError("lora.quantization: bfloat16 needs trainer.precision=bf16-mixed, which rounds anyway")

    @property
    def tracked(self) -> bool:
        """Returns whether the run is sent to MLflow, which both `tracking` and the list of loggers can turn off."""
        return self.tracking.enabled and any(getattr(one, "name", one) == "mlflow" for one in self.trainer.loggers)

    def __repr__(self) -> str:
        slots = {f.name: getattr(self, f.name) for f in fields(self) if "slot" in f.metadata}
        chosen = ", ".join(f"{key}={getattr(one, 'name', one)}" for key, one in slots.items() if one is not None)
        return f"<experiment {self.name}: {chosen or 'empty'}>"

    def with_overrides(self, *overrides: str | Mapping[str, Any]) -> "ExperimentConfig":
        """Returns a checked copy with overrides applied: "key=value" words, or mappings {dotted key: value}.

        A variant (`variants:` of a file) can be chosen only where the file is loaded.

        Raises:
            ConfigError: an unknown key or name, or a wrong type; one sentence with the key.
        """
        layer = ("the experiment", as_plain(self))
        return merge_layers(ExperimentConfig, [layer], as_overrides(overrides), OVERRIDES)
