"""Weights & Biases; needs the extra `wandb`."""

from dataclasses import dataclass
from typing import ClassVar

from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger

from fvl_lightning.core.registry import register
from fvl_lightning.tracking.loggers.base import LoggedRun


@register("logger", "wandb")
class WandbLogger(LightningWandbLogger):
    """A run of Weights & Biases with the curves and the configuration; a resumed run goes on in it.

    Needs the package wandb, and a login or `offline: true`. Weights are not uploaded.
    """

    PACKAGE: ClassVar = "wandb"

    @dataclass
    class Config:
        """Place of the run."""

        project: str = "fvl"
        """Project of the run."""
        entity: str | None = None
        """User or team; null for that of the login."""
        group: str | None = None
        """Group of runs in the project."""
        offline: bool = False
        """Write to the run folder alone; `wandb sync` sends it later."""

    def __init__(self, config: Config, run: LoggedRun) -> None:
        super().__init__(
            name=run.name, save_dir=run.folder, id=run.key, project=config.project, offline=config.offline,
            entity=config.entity, group=config.group,
        )  # fmt: skip

    def finalize(self, status: str) -> None:
        """Ends the run, since the next training of the same process is another one."""
        super().finalize(status)
        self.experiment.finish()
