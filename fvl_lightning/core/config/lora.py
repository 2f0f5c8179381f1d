"""Settings of the adapters of an experiment."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fvl_lightning.core.config.fields import number


@dataclass
class LoraComponentConfig:
    """Settings of one adapted component, instead of those in `lora`."""

    rank: int | None = number(None, at_least=1)
    alpha: int | None = number(None, at_least=1)
    targets: Any = None


@dataclass
class LoraConfig:
    """Adapters of the components that `trainable` sets to lora (arXiv 2106.09685): W + alpha / rank * B A."""

    rank: int = number(16, at_least=1)
    """Number of columns of B and rows of A."""
    alpha: int | None = number(None, at_least=1)
    """Scale of the update; null for twice the rank."""
    dropout: float = number(0.0, at_least=0, below=1)
    """Dropout on the input of A, in training."""
    targets: Any = "all-linear"
    """Linear layers to adapt: all-linear (without the head), a list of the last components of their names, or a regular
    expression for whole names in the model."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv 2312.03732)."""
    dora: bool = False
    """Learn the magnitude of each row of W separately from its direction (arXiv 2402.09353)."""
    quantization: Literal["4bit", "bfloat16"] | None = None
    """4bit stores the adapted matrices of the language model in NF4 (QLoRA, arXiv 2305.14314); needs CUDA. bfloat16
    stores all its frozen matrices but the token table in bfloat16, in which bf16-mixed computes with them anyway."""
    components: dict[str, LoraComponentConfig] = field(default_factory=dict)
    """Rank, alpha and targets per component: {encoder: {rank: 8}}."""

    def __post_init__(self) -> None:
        if self.dora and self.quantization == "bfloat16":
            raise ValueError(
                "lora.quantization: bfloat16 would round the magnitudes of lora.dora; write lora.quantization=null"
            )
