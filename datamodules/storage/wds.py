"""The library webdataset, imported with its security switch on; every import of it in this kit goes through here.

Without WDS_SECURE its default decoder unpickles members of a tar and a `pipe:` URL runs a shell command. The library
reads the variable once, when it is first imported. Importing it takes seconds (it imports torch), so the functions that
need it import this module themselves.
"""

import os

os.environ.setdefault("WDS_SECURE", "1")

import webdataset.utils
from webdataset.shardlists import split_by_worker
from webdataset.tariterators import group_by_keys
from webdataset.writer import TarWriter

# A program may have imported the library before this kit; its choice counts only where it set the variable.
webdataset.utils.enforce_security = os.environ["WDS_SECURE"] != "0"

DataPipeline = webdataset.DataPipeline

__all__ = ["DataPipeline", "TarWriter", "group_by_keys", "split_by_worker"]
