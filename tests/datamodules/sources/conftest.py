"""A folder of images with something beside it that no source may ever read."""

from pathlib import Path

import pytest

from tests.datamodules.sources.reading import PNG

SECRET = b"what lies outside"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """images/a.png, images/sub/b.png and images/c.png, each with its name in it; outside.png is a neighbour."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "c.png"):
        (folder / name).write_bytes(PNG + name.encode())
    (tmp_path / "outside.png").write_bytes(SECRET)
    (tmp_path / "images_beside").mkdir()
    (tmp_path / "images_beside" / "d.png").write_bytes(SECRET)
    return folder
