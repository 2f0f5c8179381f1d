"""Which checks a GPU's minutes go to, in order of worth, and what is passed over when the time runs out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SHARE_OF_LIMIT = 0.6
"""A check is started if this share of its limit is left; limits are generous."""
RECOMPUTE_NOTHING = "trainer.checkpoint_activations=[]"


@dataclass(frozen=True)
class Check:
    """One process, which yields findings: `findings(settings, **arguments)` of a module of this folder."""

    name: str
    limit: int
    """Seconds after which it is killed."""
    module: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def training(name: str, limit: int, preset: str, *overrides: str, **arguments: Any) -> Check:
    """Returns a training of a 3B preset at its real size."""
    return Check(name, limit, "training", {"preset": preset, "overrides": overrides, **arguments})


CHECKS = (
    Check("attention", 80, "attention"),
    Check("smoke", 150, "smoke"),
    training("finetune", 75, "finetune", profiled=True),
    Check("devices", 60, "devices"),
    Check("optimizer", 50, "optimizer"),
    training("finetune-fsdp", 70, "finetune", "trainer.strategy=fsdp"),
    training("finetune-keeps-activations", 60, "finetune", RECOMPUTE_NOTHING),
    Check("wall-clock", 75, "speed", {"preset": "finetune"}),
    training("pretrain", 60, "pretrain"),
    Check("comparison", 150, "comparison"),
    training("finetune-compiled", 110, "finetune", RECOMPUTE_NOTHING, "trainer.compile=[language_model]"),
    Check("scoring", 75, "scoring"),
    training("finetune-lora", 50, "finetune_lora"),
    Check("transfer", 25, "transfer"),
    training("finetune-qlora", 70, "finetune_qlora"),
    Check("ranks", 240, "ranks"),
)
"""All checks; what a GPU shows first comes first. The limits are about twice what arithmetic expects."""


@dataclass(frozen=True)
class Plan:
    """Some of the checks, and how long they may take together."""

    seconds: int
    checks: tuple[str, ...]


PLANS = {
    "one": Plan(480, tuple(check.name for check in CHECKS if check.name != "ranks")),
    "several": Plan(480, ("ranks", "finetune-fsdp", "smoke")),
}
"""For a machine with one GPU, and what several GPUs add to it."""


def time_for(check: Check, left: float) -> float | None:
    """Returns the seconds that a check may take of those that are left; None passes over it."""
    return min(check.limit, left) if left >= SHARE_OF_LIMIT * check.limit else None


def chosen(names: Sequence[str], plan: str = "one") -> list[Check]:
    """Returns the checks of these names in the order of CHECKS, or without names those of a plan in its order.

    Raises:
        ValueError: an unknown name.
    """
    known = {check.name: check for check in CHECKS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown check '{unknown[0]}', expected some of {', '.join(known)}")
    if not names:
        return [known[name] for name in PLANS[plan].checks]
    return [check for check in CHECKS if check.name in names]
