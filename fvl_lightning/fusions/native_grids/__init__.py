"""Fusions that read each source on its own grid."""

from fvl_lightning.fusions.native_grids.mmfuser import MmfuserFusion
from fvl_lightning.fusions.native_grids.sva import SvaFusion

__all__ = ["MmfuserFusion", "SvaFusion"]
