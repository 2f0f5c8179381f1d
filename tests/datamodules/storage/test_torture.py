"""Shards with everything that can be wrong: each thing is refused or read, with its reason counted, the rest delivered.

The shards are read in a process of its own, so that its memory can be measured and nothing else of this one is seen.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_paths import expand_shards
from fvl_lightning.core.errors import DataError

SIDE = 20_000
"""Pixels by pixels of the forged headers: 1.2 GB once decoded."""

TURNS = 10_000

MEGABYTES = 60
"""What reading all of it may add to the memory of a process."""

READER = """
import json, sys
from pathlib import Path
from datamodules.storage.sample import SampleError
from datamodules.storage.sample_store import SampleStore
from datamodules.encoding.views import messages_of

def megabytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000

def outcome(store, i):
    try:
        turns = len(messages_of(store, i))
        return [turns, [list(image.shape) for image in store.images(i)]]
    except SampleError as error:
        assert error.key == store.key(i) and "\\n" not in str(error)
        return error.reason

before = megabytes()
store = SampleStore.open(sys.argv[1], "train")
outcomes = [[store.key(i), outcome(store, i)] for i in range(len(store))]
problems = {reason: found.count for reason, found in store.problems.items()}
print(json.dumps([outcomes, problems, dict(store.ignored), megabytes() - before]))
"""


class Sentinel:
    """Unpickled, this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "a pickle was loaded")


def picture(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def forged_png() -> bytes:
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(SIDE * 30))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def forged_jpeg() -> bytes:
    content = bytearray(picture("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", SIDE, SIDE)
    return bytes(content)


def forged_webp() -> bytes:
    """The extended form, since the plain ones have no more than 14 bits for a side."""
    canvas = bytes(4) + (SIDE - 1).to_bytes(3, "little") * 2
    chunks = b"WEBP" + b"VP8X" + struct.pack("<I", len(canvas)) + canvas + picture("WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def forged_gif() -> bytes:
    content = bytearray(picture("GIF"))
    content[6:10] = struct.pack("<HH", SIDE, SIDE)
    return bytes(content)


def forged_bmp() -> bytes:
    content = bytearray(picture("BMP"))
    content[18:26] = struct.pack("<ii", SIDE, SIDE)
    return bytes(content)


def talk(turns: int = 1, images: int = 1, text: str = "what?") -> bytes:
    """The JSON of a conversation with that many questions and answers."""
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}, {"role": "assistant", "content": "this"}]
    messages += [{"role": role, "content": text} for _ in range(turns - 1) for role in ("user", "assistant")]
    return json.dumps({"messages": messages}).encode()


def broken_samples() -> Iterator[tuple[str, dict[str, bytes], Any]]:
    """(key, members, what is expected of it: [messages, shapes of images], or the reason to refuse it)."""
    jpeg = picture("JPEG")
    yield "good", {"json": talk(), "jpg": jpeg}, [2, [[30, 40, 3]]]
    yield "cut-jpeg", {"json": talk(), "jpg": jpeg[: len(jpeg) // 2]}, "broken image"
    yield "wrong-magic", {"json": talk(), "jpg": b"MZ" + jpeg[2:]}, "broken image"
    yield "no-bytes", {"json": talk(), "png": b""}, "broken image"
    forged = {"png": forged_png, "jpg": forged_jpeg, "webp": forged_webp, "gif": forged_gif, "bmp": forged_bmp}
    for suffix, make in forged.items():
        yield f"forged-{suffix}", {"json": talk(), suffix: make()}, "broken image"
    yield "bad-json", {"json": talk()[:-1], "jpg": jpeg}, "bad JSON"
    yield "deep-json", {"json": b"[" * 10**6, "jpg": jpeg}, "bad JSON"
    yield "long-number", {"json": b"9" * 10**5, "jpg": jpeg}, "bad JSON"
    yield "no-json", {"jpg": jpeg}, "no JSON"
    yield "nul", {"json": talk(text="a\0b"), "jpg": jpeg}, "bad text"
    yield "lone-surrogate", {"json": talk(text="a\ud800b"), "jpg": jpeg}, "bad text"
    yield "raw-surrogate", {"json": talk().replace(b"what", b"\xed\xa0\x80"), "jpg": jpeg}, "bad text"
    yield "latin-1", {"json": talk().replace(b"what", b"\xe9"), "jpg": jpeg}, "bad text"
    yield "image-missing", {"json": talk()}, "image count"
    yield "image-too-many", {"json": talk(), "0.jpg": jpeg, "1.jpg": jpeg}, "image count"
    yield "no-messages", {"json": b'{"messages": 7}', "jpg": jpeg}, "no messages"
    yield "text-only", {"json": talk(images=0)}, [2, []]
    yield "long", {"json": talk(TURNS), "jpg": jpeg}, [2 * TURNS, [[30, 40, 3]]]
    yield "narrow", {"json": talk(), "png": picture("PNG", (1, 4000))}, [2, [[4000, 1, 3]]]
    yield "wide", {"json": talk(), "png": picture("PNG", (4000, 1))}, [2, [[1, 4000, 3]]]


def append(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    info.linkname = "/etc/hostname" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def torture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folder `shards`, and in it everything that can be wrong."""
    root = tmp_path_factory.mktemp("torture")
    shards, sentinel = root / "shards", Sentinel(root / "sentinel")
    shards.mkdir()
    with tarfile.open(shards / "train-000000.tar", "w") as tar:
        for key, members, _ in broken_samples():
            for suffix, content in members.items():
                append(tar, f"{key}.{suffix}", content)
    with tarfile.open(shards / "train-000001.tar", "w") as tar:
        append(tar, "twice.json", talk(images=0))
        append(tar, "../above.json", talk(images=0))
        append(tar, str(root / "absolute.json"), talk(images=0))
        append(tar, "link.json", kind=tarfile.SYMTYPE)
        append(tar, "hard.json", kind=tarfile.LNKTYPE)
        append(tar, "device", kind=tarfile.CHRTYPE)
        append(tar, "twice.json", talk(images=0))
        for suffix in ("pkl", "pickle", "pyd", "pth"):
            append(tar, f"code.{suffix}", pickle.dumps(sentinel))
        append(tar, "last.json", talk(images=0))
    with tarfile.open(shards / "train-000002.tar", "w") as tar:
        for number in range(3):
            append(tar, f"cut-{number}.json", talk(images=0))
    os.truncate(shards / "train-000002.tar", 2500)
    (shards / "train-000003.tar").touch()
    (shards / "train-000004.tar").write_bytes(bytes(range(256)) * 40)
    with tarfile.open(shards / "train-000005.tar.gz", "w:gz") as tar:
        append(tar, "packed.json", talk(images=0))
    (shards / "train-000005.tar.gz").rename(shards / "train-000005.tar")
    return root


def tree(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_size for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_each_thing_is_refused_or_read_and_the_rest_delivered(torture: Path) -> None:
    before = tree(torture)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READER, "shards"], cwd=torture, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    outcomes, problems, ignored, megabytes = json.loads(done.stdout)
    expected = {key: outcome for key, _, outcome in broken_samples()}
    expected |= {key: [2, []] for key in ("twice", "last", "cut-0")}
    assert dict(outcomes) == expected
    assert len(outcomes) == len(expected)
    assert problems == {
        "duplicate key": 1,
        "unsafe name": 2,
        "not a regular file": 3,
        "cut short": 1,
        "empty file": 1,
        "not a tar": 2,
    }
    assert ignored == {"pkl": 1, "pickle": 1, "pyd": 1, "pth": 1}
    for number in range(1, 6):
        assert f"shard shards/train-{number:06d}.tar: " in done.stderr
    assert megabytes < MEGABYTES, megabytes
    indexes = {f"shards/train-{number:06d}.index.safetensors" for number in (0, 1)}
    after = tree(torture)
    assert after.keys() - before.keys() == indexes, "no other file is written, the sentinel least of all"
    assert {name: after[name] for name in before} == before


def test_the_sentinel_would_be_written(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Sentinel(tmp_path / "sentinel")))
    assert (tmp_path / "sentinel").read_text() == "a pickle was loaded"


def test_a_pipe_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("pipe:touch stolen; cat x.tar", "pipe:touch stolen #.tar"):
        with pytest.raises(DataError, match="cannot be used: allowed:"):
            expand_shards(place)
        with pytest.raises(DataError, match="cannot be used: allowed:"):
            SampleStore([place], "train")
        with pytest.raises(DataError, match="cannot be used: allowed:"):
            SampleStore.open(place, "train")
    assert not list(tmp_path.iterdir())
