"""Shards as people name them, and what is said where there are none."""

import shutil
from pathlib import Path

import pytest

from datamodules.storage.shard_paths import expand_shards, split_shards
from fvl_lightning.core.errors import DataError

NAMES = ("a-000.tar", "a-001.tar", "a-010.tar", "b-000.tar")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four tars, what is no tar, and one tar in a folder below."""
    for name in (*NAMES, "a-000.index.safetensors", "notes.txt", "deep/c-000.tar"):
        (tmp_path / "shards" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "shards" / name).touch()
    return tmp_path / "shards"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", NAMES),
        ("/", NAMES),
        ("/a-001.tar", ("a-001.tar",)),
        ("/a-*.tar", NAMES[:3]),
        ("/a-*", NAMES[:3]),
        ("/**/c-*.tar", ("deep/c-000.tar",)),
        ("/a-{000..001}.tar", NAMES[:2]),
        ("/a-{001..000}.tar", NAMES[:2]),
        ("/{a,b}-000.tar", ("a-000.tar", "b-000.tar")),
        ("/{a-{000,010},b-000}.tar", ("a-000.tar", "a-010.tar", "b-000.tar")),
        ("/[ab]-00{0..0}.tar", ("a-000.tar", "b-000.tar")),
    ],
)
def test_folders_globs_and_braces(folder: Path, spec: str, expected: tuple[str, ...]) -> None:
    wanted = [f"{folder}/{name}" for name in expected]
    assert expand_shards(f"{folder}{spec}") == wanted
    assert expand_shards(f"file://{folder}{spec}") == wanted


def test_lists_are_sorted_and_name_no_shard_twice(folder: Path) -> None:
    assert expand_shards([f"{folder}/b-*.tar", f"{folder}/a-001.tar"]) == [f"{folder}/{NAMES[i]}" for i in (1, 3)]
    with pytest.raises(DataError, match=r"shard .*/a-001.tar is named twice"):
        expand_shards([f"{folder}/a-*.tar", f"{folder}/deep/../a-001.tar"])


def test_a_path_may_begin_at_home_or_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    assert expand_shards("~/shards/b-*.tar") == [f"{folder}/b-000.tar"]
    assert expand_shards("shards/b-000.tar") == expand_shards("./shards/b-000.tar") == ["shards/b-000.tar"]


@pytest.mark.parametrize(
    "place",
    [
        "pipe:touch stolen",
        "PIPE:touch stolen",
        "pipe://x.tar",
        "simplecache::s3://bucket/a.tar",
        "s3://bucket/a.tar::file:///etc",
        "ftp://host/a.tar",
        "s3:bucket/a.tar",
        "python:os",
    ],
)
def test_other_protocols_are_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for names in (lambda: expand_shards(place), lambda: split_shards(place, "train")):
        with pytest.raises(DataError, match=r"cannot be used: allowed: s3://, gs://, .*file:// and paths of this"):
            names()
    assert not list(tmp_path.iterdir())


def test_a_misspelt_protocol() -> None:
    with pytest.raises(DataError, match=r"did you mean 'https://'\?"):
        expand_shards("htps://host/a.tar")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("/b-00.tar", r"no shard .*/b-00.tar: .* has a-000.tar to b-000.tar; did you mean 'b-000.tar'\?"),
        ("/a-{000..002}.tar", r"no shard .*/a-002.tar"),
        ("/zz*.tar", "has a-000.tar to b-000.tar"),
        ("x/a.tar", r"there is no folder .*shardsx; did you mean 'shards'\?"),
        ("/notes.txt", r"no shard .*/notes.txt: .* has a-000.tar to"),
        ("/a-{0..99999999}.tar", "more than 1000000 names"),
        ("/empty", "empty has no .tar$"),
        ("/packed", r"packed has no .tar; x.tar.gz is compressed and has to be unpacked to a .tar"),
    ],
)
def test_what_names_no_shard_is_told(folder: Path, spec: str, sentence: str) -> None:
    for name in ("empty", "packed"):
        (folder / name).mkdir()
    (folder / "packed" / "x.tar.gz").touch()
    with pytest.raises(DataError, match=sentence) as error:
        expand_shards(f"{folder}{spec}")
    assert "\n" not in str(error.value)


def test_no_entry_at_all() -> None:
    with pytest.raises(DataError, match="no shards are named"):
        expand_shards([])


def test_web_servers_are_taken_at_their_word() -> None:
    assert expand_shards("https://host/a-{0..1}.tar?key=*") == [f"https://host/a-{i}.tar?key=*" for i in range(2)]
    with pytest.raises(DataError, match="a web server has no listing"):
        expand_shards("https://host/shards")


def test_splits(folder: Path) -> None:
    shutil.rmtree(folder)
    names = [f"train-part{part}of2-{number:06d}.tar" for part in (1, 2) for number in (0, 1)]
    names += ["train-000007.tar", "test_unseen-0.tar", "train-x.tar", "train-0.index.safetensors"]
    for name in names:
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "train-1.tar").mkdir()
    assert split_shards(str(folder), "train") == [f"{folder}/{name}" for name in (names[4], *names[:4])]
    assert split_shards(f"file://{folder}/", "test_unseen") == [f"{folder}/test_unseen-0.tar"]
    with pytest.raises(DataError, match=r"no shard trian-<number>.tar in .*: .* test_unseen, train; did you mean"):
        split_shards(str(folder), "trian")
    with pytest.raises(DataError, match=r"no folder .*shard with shards; did you mean 'shards'\?"):
        split_shards(str(folder)[:-1], "train")
