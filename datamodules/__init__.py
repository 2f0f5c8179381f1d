"""WebDataset shards -> batches. Imports only fvl_lightning.core, first of all for WDS_SECURE, which webdataset reads."""

import fvl_lightning  # noqa: F401
