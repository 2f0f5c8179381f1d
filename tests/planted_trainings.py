"""benchmarks/planted_effects.py for tests: it trains models of all seeds at once, on sources whose worth is known."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fvl_lightning.core import registry
from tests.conftest import ROOT


@contextmanager
def planted_effects() -> Iterator[tuple[Any, pytest.MonkeyPatch]]:
    """Yields the benchmark as a module, on one thread, and a patch that ends with it; its encoder is then gone."""
    registry.names("encoder")
    before, threads = dict(registry._components["encoder"]), torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("planted_effects"), patch
    registry._components["encoder"] = before
    torch.set_num_threads(threads)
    for name in ("planted_effects", "recording"):
        del sys.modules[name]
