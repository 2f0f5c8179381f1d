"""The rows of a task are read from the hub by ranges, and the files of its images are downloaded once."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fvl_lightning.core.errors import DataError
from fvl_lightning.evaluation.task_rows import images as row_images
from fvl_lightning.evaluation.task_rows.questions import read_questions
from fvl_lightning.evaluation.tasks.config import TaskConfig, TaskData
from tests.datamodules.hub.server import FakeHub, serving
from tests.evaluation.tasks.layouts import BLUE, RED


def file_of(*rows: dict[str, object]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


def test_files_with_images_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_images, "CACHE_BYTES", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {
        f"data/test-0000{number}-of-00002.parquet": file_of({"image": image, "question": "what?", "answer": "a"})
        for number, image in enumerate((RED, BLUE))
    }
    task = TaskConfig("Own", TaskData("hub:some/set"))
    with serving(FakeHub("some/set", files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        found = read_questions(task, limit=1)
        assert len(list((tmp_path / "fvl_lightning" / "hub").glob("*.parquet"))) == 1, "of the row that is asked"
        found = read_questions(task)
        asked = len(hub.asked)
        assert [found.image(number) for number in (0, 1, 0)] == [RED["bytes"], BLUE["bytes"], RED["bytes"]]
        assert len(hub.asked) == asked, "images are read from the copies"
        assert read_questions(task).identity == found.identity
        hub.gated = True
        with pytest.raises(DataError, match="some/set is gated"):
            read_questions(task)
