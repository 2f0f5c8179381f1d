"""Every way in which a set of shards can be wrong is found, counted by reason, and named with shard and key."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.building.manifest import Manifest
from datamodules.inspection.check import (
    MAX_EXAMPLES,
    Findings,
    ShardProblem,
    check_samples,
    check_tar,
)
from datamodules.inspection.manifests import missing_shards, read_manifests, wrong_counts
from datamodules.storage.index import index_path, save_index, scan_tar
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_cache import ShardCache
from datamodules.storage.shard_paths import expand_shards
from datamodules.storage.writer import Shard

Write = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**9)


@pytest.fixture
def good(tmp_path: Path, write_split: Write) -> Path:
    """A folder with two shards of four samples each, and their manifest."""
    folder = write_split(tmp_path / "set", "train", 8, samples_per_shard=4)
    shards = [
        Shard(
            samples=4,
            images=4,
            bytes=tar.stat().st_size,
            name=tar.name,
            sha256=hashlib.sha256(tar.read_bytes()).hexdigest(),
        )
        for tar in sorted(folder.glob("*.tar"))
    ]
    (folder / "manifest.json").write_text(Manifest({}, {"train": shards}, {}).to_json(), encoding="utf-8")
    return folder


def tar_of(folder: Path, members: dict[str, bytes], name: str = "train-000000.tar") -> str:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(folder / name)


def test_a_good_set_has_no_findings(good: Path, cache: ShardCache) -> None:
    shards = expand_shards(str(good))
    manifests = read_manifests(shards)
    assert sorted(manifests.shards) == shards
    assert not missing_shards(manifests, shards).counts
    for shard in shards:
        checked = check_tar(manifests.shards, cache, shard)
        assert checked.usable
        assert not checked.findings.counts
    found = check_samples(SampleStore(shards, "all"), processes=1)
    assert (found.samples, found.images, found.counts) == (8, 8, {})


def test_bytes_other_than_those_built(good: Path, cache: ShardCache) -> None:
    first, second = expand_shards(str(good))
    known = read_manifests([first]).shards
    content = bytearray(Path(first).read_bytes())
    content[600] ^= 1
    Path(first).write_bytes(content)
    Path(second).write_bytes(Path(second).read_bytes() + bytes(512))
    index_path(Path(second)).unlink()
    assert check_tar(known, cache, first).findings.counts == {"checksum": 1}
    assert check_tar(known, cache, second).findings.counts == {"size": 1}


def test_a_shard_that_is_gone(good: Path) -> None:
    first, second = expand_shards(str(good))
    Path(second).unlink()
    found = missing_shards(read_manifests([first]), [first])
    expected = ShardProblem("missing shard", second, "", "the manifest lists it, 4 samples")
    assert found.examples == {"missing shard": [expected]}


@pytest.mark.parametrize(
    "damage",
    [
        "{}",
        "",
        "3",
        "[" * 100_000,
        '{"settings": {}, "splits": {"train": {"shards": [{}]}}}',
        '{"splits": {"a": {"shards": [{"name": 3, "samples": 1, "images": 1, "bytes": 1, "sha256": "0"}]}}}',
        '{"settings": {}, "splits": {}, "refused": {"a": []}}',
        '{"splits": 3, "counts": {"train": "8"}}',
    ],
)
def test_a_damaged_manifest_is_a_finding(good: Path, damage: str) -> None:
    """Everything else is checked all the same."""
    (good / "manifest.json").write_text(damage, encoding="utf-8")
    found = read_manifests(expand_shards(str(good)))
    assert found.findings.counts == {"manifest": 1}
    assert not found.shards
    whole = Manifest({}, {"train": []}, {}).to_json()
    for end in range(len(whole) - 1):
        (good / "manifest.json").write_text(whole[:end], encoding="utf-8")
        assert read_manifests(expand_shards(str(good))).findings.counts == {"manifest": 1}


def test_manifests_that_are_none_of_a_build(good: Path) -> None:
    """The demo's manifest has numbers of samples, which are compared; another program's file is passed over."""
    shards = expand_shards(str(good))
    (good / "manifest.json").write_text('{"format": 1, "counts": {"train": 8, "test": 2}}', encoding="utf-8")
    (good / "manifest-part1of2.json").write_text('{"files": []}', encoding="utf-8")
    manifests = read_manifests(shards)
    assert not manifests.findings.counts
    assert manifests.others == [f"{good}/manifest-part1of2.json"]
    (lost,) = wrong_counts(manifests, dict.fromkeys(shards, 4)).examples["samples"]
    assert (lost.shard, lost.detail) == (f"{good}/test-*.tar", "0 samples, 2 in the manifest")
    assert wrong_counts(manifests, dict.fromkeys(shards, 3)).counts == {"samples": 2}
    assert wrong_counts(manifests, {shards[0]: 3}).counts == {"samples": 1}, "a part of a split is not judged"


def test_an_index_of_another_tar(good: Path, cache: ShardCache) -> None:
    first, second = map(Path, expand_shards(str(good)))
    assert first.stat().st_size == second.stat().st_size, "or the sizes alone would tell"
    save_index(scan_tar(second), index_path(first))
    checked = check_tar({}, cache, str(first))
    assert checked.findings.counts == {"index": 1}
    assert not checked.usable
    index_path(first).write_bytes(b"no index")
    assert check_tar({}, cache, str(first)).findings.counts == {"index": 1}
    index_path(first).unlink()
    assert not check_tar({}, cache, str(first)).findings.counts, "it is made on first use"


def test_tars_that_are_none_or_damaged(good: Path, cache: ShardCache) -> None:
    first, second = map(Path, expand_shards(str(good)))
    whole = first.read_bytes()
    for tar in (first, second):
        index_path(tar).unlink()
    first.write_bytes(whole[: len(whole) // 2])
    second.write_bytes(b"")
    cut, empty = (check_tar({}, cache, str(tar)) for tar in (first, second))
    assert cut.findings.counts == {"cut short": 1}
    assert cut.usable, "what comes before the cut can be looked at"
    assert empty.findings.counts == {"empty file": 1}
    assert not empty.usable
    gone = check_tar({}, cache, str(good / "train-000007.tar"))
    assert gone.findings.counts == {"unreadable shard": 1}


def test_members_that_are_refused_and_passed_over(tmp_path: Path, cache: ShardCache, image_bytes: Any) -> None:
    members = {"a.json": b"{}", "../b.json": b"{}", "c.pkl": b"", "d.png": image_bytes()}
    checked = check_tar({}, cache, tar_of(tmp_path / "set", members))
    assert checked.findings.counts == {"unsafe name": 1}
    assert checked.findings.examples["unsafe name"][0].key == "../b.json"
    assert checked.findings.ignored == {"pkl": 1}


@pytest.mark.parametrize(
    ("member", "content", "reason"),
    [
        ("json", b"{", "bad JSON"),
        ("json", b"[]", "bad JSON"),
        ("json", b"{}", "no text"),
        ("json", b'{"caption": 3}', "no text"),
        ("json", b'{"caption": "a dog <image>"}', "placeholder"),
        ("json", b'{"messages": []}', "no messages"),
        ("json", b'{"messages": [{"role": "robot", "content": ""}]}', "bad messages"),
        ("json", b'{"messages": [{"role": "user", "content": "an image, but no part"}]}', "image count"),
        ("png", b"no image", "broken image"),
    ],
)
def test_a_sample_that_can_not_be_used(
    member: str, content: bytes, reason: str, tmp_path: Path, image_bytes: Any
) -> None:
    good = {"json": b'{"caption": "x"}', "png": image_bytes()}
    bad = good | {member: content}
    samples = {"good": good, "bad": bad}
    members = {f"{key}.{suffix}": body for key, sample in samples.items() for suffix, body in sample.items()}
    shard = tar_of(tmp_path / "set", members)
    found = check_samples(SampleStore([shard], "all"), processes=1)
    assert found.counts == {reason: 1}
    (example,) = found.examples[reason]
    assert (example.shard, example.key) == (shard, "bad")
    assert found.samples == 2


def test_an_image_cut_short_is_broken(tmp_path: Path, write_split: Write, image_bytes: Any) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = image_bytes(3, (64, 64), kind)
        folder = write_split(tmp_path / kind, "train", 1, {0: ({"caption": "x"}, [whole[: len(whole) // 2]])})
        assert check_samples(SampleStore.open(str(folder), "train"), processes=1).counts == {"broken image": 1}, kind


def test_a_sample_with_two_faults_has_two_findings(tmp_path: Path, write_split: Write) -> None:
    folder = write_split(tmp_path, "train", 1, {0: ({}, [b"no image"])})
    found = check_samples(SampleStore.open(str(folder), "train"), processes=1)
    assert found.counts == {"no text": 1, "broken image": 1}


def test_processes_change_nothing(tmp_path: Path, write_split: Write, image_bytes: Any) -> None:
    bad = {i: ({"caption": i}, [image_bytes()]) for i in range(0, 600, 7)}
    store = SampleStore.open(str(write_split(tmp_path, "train", 600, bad)), "train")
    done: list[int] = []
    one, two = check_samples(store, 1), check_samples(store, 2, done.append)
    assert one == two
    assert one.counts == {"no text": 86}
    assert [finding.key for finding in one.examples["no text"]] == ["s0", "s7", "s14"][:MAX_EXAMPLES]
    assert sum(done) == 600


def test_only_the_first_findings_are_kept() -> None:
    findings, other = Findings(), Findings()
    for number in range(5):
        findings.add(ShardProblem("a", "shard", str(number), ""))
    other.add(ShardProblem("a", "shard", "other", ""), count=7)
    findings.merge(other)
    assert findings.counts == {"a": 12}
    assert [finding.key for finding in findings.examples["a"]] == ["0", "1", "2"]
