"""A small schema and small components for the tests of the configuration."""

from dataclasses import dataclass, field
from typing import Any, Literal

from fvl_lightning.core.config.loading import slot


@dataclass
class Trainer:
    """A nested dataclass with every kind of field the kit uses."""

    max_steps: int = 1000
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    learning_rate: float = 1e-4
    clip_norm: float | None = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    rates: dict[str, float] = field(default_factory=dict)
    resume: bool = False

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps must not be negative, found {self.max_steps}")


@dataclass
class Arm:
    """A value of a dictionary of dataclasses."""

    set: list[str] = field(default_factory=list)


@dataclass
class Tiny:
    """Schema of an experiment file in these tests."""

    name: str = "tiny"
    fusion: Any = slot("fusion")
    projector: Any = slot("projector")
    trainer: Trainer = field(default_factory=Trainer)
    trainable: dict[str, Literal["frozen", "full"]] = field(default_factory=dict)
    arms: dict[str, Arm] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    seed: int = 0
    plugins: list[str] = field(default_factory=list)


class Gated:
    """Fills the slot `fusion` under the name "gated"."""

    @dataclass
    class Config:
        """Fields of the component."""

        gate: Literal["softmax", "sigmoid"] = "softmax"
        hidden: int = 8
        window: tuple[int, int] = (2, 2)
        model: dict[str, Any] = field(default_factory=dict)
        label: str | None = None

        def __post_init__(self) -> None:
            if self.hidden % 2:
                raise ValueError(f"hidden must be even, found {self.hidden}")


class Mean:
    """Fills the slot `fusion` under the name "mean"; its field `hidden` has nothing to do with Gated's."""

    @dataclass
    class Config:
        """Fields of the component."""

        hidden: int = 4


class Linear:
    """Fills the slot `projector` under the name "linear"."""

    @dataclass
    class Config:
        """It has no fields."""


COMPONENTS: dict[str, dict[str, type]] = {"fusion": {"gated": Gated, "mean": Mean}, "projector": {"linear": Linear}}
