"""Tars: byte for byte webdataset's own, whole or gone on with."""

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset import TarWriter

from datamodules.storage.index import scan_tar
from datamodules.storage.writer import (
    Length,
    OpenShard,
    Shard,
    ShardWriter,
    encode_record,
    image_names,
    tar_members,
    whole_size,
)
from fvl_lightning.core.errors import DataError

MEMBERS = st.dictionaries(st.sampled_from(["json", "png", "0.jpg", "1.png", "10.webp"]), st.binary(max_size=1500))


@given(samples=st.lists(MEMBERS, max_size=12))
def test_bytes_are_those_of_webdatasets_writer(samples: list[dict[str, bytes]]) -> None:
    theirs = io.BytesIO()
    writer = TarWriter(theirs, encoder=False, mtime=0)
    ours = b""
    for i, members in enumerate(samples):
        writer.write({"__key__": f"{i:04d}", **members})
        ours += tar_members(f"{i:04d}", members)
    writer.close()
    assert ours.ljust(whole_size(len(ours)), b"\0") == theirs.getvalue()


def test_bytes_are_those_of_shards_that_exist() -> None:
    """Indexes and content hashes of shards built before stay valid."""
    members = {"json": b'{"caption":"a"}', "0.jpg": bytes(700), "1.png": b"x" * 512, "10.webp": b""}
    digest = hashlib.sha256(tar_members("00000012-000034", members)).hexdigest()
    assert digest == "89e5c0efc2875d40547db8bec22745b0781c89a02008bbe346898ba689609e5d"


def test_a_key_with_a_dot_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="first dot"):
        tar_members("a.b", {"json": b"{}"})


def test_image_names() -> None:
    assert image_names([]) == []
    assert image_names(["jpg"]) == ["jpg"]
    assert image_names(["jpg", "png"]) == ["0.jpg", "1.png"]


def test_what_json_cannot_say_is_refused() -> None:
    assert encode_record({"é": [1.5, None]}) == '{"é":[1.5,null]}'.encode()
    for record in ({"a": float("nan")}, {"a": b"bytes"}, {"a": "\ud800"}):
        with pytest.raises((TypeError, ValueError)):
            encode_record(record)


def test_an_open_shard_goes_on_from_any_earlier_length(tmp_path: Path) -> None:
    samples = [tar_members(f"{i:04d}", {"json": b"x" * 100 * i}) for i in range(9)]
    straight = OpenShard(tmp_path / "straight")
    lengths = [Length()]
    for members in samples:
        straight.append(members, images=2)
        lengths.append(straight.length)
    shard = straight.finish("a.tar")
    whole = (tmp_path / "straight").read_bytes()
    assert shard == Shard("a.tar", 9, 18, len(whole), hashlib.sha256(whole).hexdigest())
    for i, length in enumerate(lengths):
        (tmp_path / "again").write_bytes(whole)
        again = OpenShard(tmp_path / "again", length)
        for members in samples[i:]:
            again.append(members, images=2)
        assert again.finish("a.tar") == shard
        assert (tmp_path / "again").read_bytes() == whole
    assert len(scan_tar(tmp_path / "again")) == 9


def test_an_open_shard_that_lost_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1000))
    with pytest.raises(DataError, match="24 bytes shorter than it was"):
        OpenShard(tmp_path / "a", Length(1, 1, 1024))


def test_the_shard_writer_names_what_it_wrote(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", samples_per_shard=2) as writer:
        for i in range(3):
            writer.write(f"s{i}", {"caption": "x"}, [b"a", b"b"][: i % 3])
    assert [(shard.name, shard.samples, shard.images) for shard in writer.shards] == [
        ("train-000000.tar", 2, 1),
        ("train-000001.tar", 1, 2),
    ]
    for shard in writer.shards:
        content = (tmp_path / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
