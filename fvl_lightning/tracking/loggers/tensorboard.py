"""Event files for TensorBoard; needs the extra `tensorboard`."""

from dataclasses import dataclass
from typing import ClassVar

from lightning.pytorch.loggers import TensorBoardLogger as LightningTensorBoardLogger

from fvl_lightning.core.config.fields import number
from fvl_lightning.core.registry import register
from fvl_lightning.tracking.loggers.base import LoggedRun


@register("logger", "tensorboard")
class TensorboardLogger(LightningTensorBoardLogger):
    """Event files in the folder `tensorboard` of the run: `tensorboard --logdir runs` shows every run.

    Needs the package tensorboard.
    """

    PACKAGE: ClassVar = "tensorboard"

    @dataclass
    class Config:
        """Settings of the files."""

        flush_seconds: int = number(30, at_least=1)
        """Seconds until values that were logged are on disk."""

    def __init__(self, config: Config, run: LoggedRun) -> None:
        more = {"purge_step": run.step + 1} if run.step else {}  # the steps after the checkpoint come again
        super().__init__(
            run.folder, name="", version="tensorboard", default_hp_metric=False, flush_secs=config.flush_seconds, **more
        )
