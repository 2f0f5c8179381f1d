"""WebDataset shards -> batches. Imports only fvl_lightning.core, and libraries.

fvl_lightning comes first: it sets WDS_SECURE, which webdataset reads when it is imported.
"""

import fvl_lightning  # noqa: F401
