"""A folder of images, next to a file that no source may read."""

from pathlib import Path

import pytest

from tests.datamodules.sources.reading import PNG

SECRET = b"what lies outside"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Writes images/a.png, images/sub/b.png, images/c.png and outside.png, each with its name as its content."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "c.png"):
        (folder / name).write_bytes(PNG + name.encode())
    (tmp_path / "outside.png").write_bytes(SECRET)
    (tmp_path / "images_beside").mkdir()
    (tmp_path / "images_beside" / "d.png").write_bytes(SECRET)
    return folder
