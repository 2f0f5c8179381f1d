"""A data module over shards, ready to give batches."""

from pathlib import Path
from typing import Any

from datamodules.shards import ShardsData
from fvl_lightning.core.types import DataContext


def connected(folder: Path, context: DataContext, **fields: Any) -> ShardsData:
    """Returns the data module over a folder's shards, prepared and connected to `context`."""
    data = ShardsData(ShardsData.Config(root=str(folder), **fields))
    data.prepare_data()
    data.connect(context)
    return data
