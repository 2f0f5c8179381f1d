"""A process group for the tests of one process."""

from collections.abc import Iterator

import pytest
from torch import distributed


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
