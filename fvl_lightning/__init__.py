"""fvl_lightning: how should a vision encoder's features enter a language model?

A PyTorch Lightning kit around Florence-VL (arXiv 2412.04424) in which the encoder, the fusion, the projector and the
language model are slots that a YAML file fills. Importing it makes its saved models known to transformers:
AutoConfig, AutoModelForImageTextToText, AutoProcessor and pipeline("image-text-to-text").
"""

import importlib
import os
import sys
from itertools import pairwise

# webdataset's default decoder unpickles members and its `pipe:` URLs run a shell; this must be set before its import.
os.environ.setdefault("WDS_SECURE", "1")

__version__ = "0.1.0"

# The imports below take seconds, in which a cluster may already want the machine back from the command line.
_stop = importlib.import_module("fvl_lightning.training.fault_tolerance.signals")
if any(os.path.basename(one) in ("fvl", __name__) and verb in _stop.VERBS for one, verb in pairwise(sys.orig_argv)):
    _stop.end_at_once()

# The processes that write shards go without: models would cost each of them seconds and 350 MB.
if os.environ.get("FVL_LIGHTNING_MODELS") != "off":
    importlib.import_module("fvl_lightning.modeling.build")
