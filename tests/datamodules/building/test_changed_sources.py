"""A build notices that its source has changed since, and `fresh` replaces it at once or not at all."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.building.builder import build_shards
from datamodules.building.config import BuildConfig
from datamodules.building.manifest import Manifest
from datamodules.building.source_state import changes, state_of
from datamodules.sources.base import Inputs
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import ConfigError, DataError

Make = Callable[..., BuildConfig]


def write_rows(path: Path, answers: list[str], first: int = 0) -> None:
    talks = [[{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": answer}] for answer in answers]
    rows = [{"image": f"{first + i}.png", "conversations": talk} for i, talk in enumerate(talks)]
    path.write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files of rows and a folder with their pictures, the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    write_rows(tmp_path / "a.json", ["red", "blue", "grey"])
    write_rows(tmp_path / "b.json", ["pink"], first=3)
    return tmp_path


@pytest.fixture
def make(raw: Path) -> Make:
    def recipe(**fields: Any) -> BuildConfig:
        source = {"name": "llava_json", "file": "?.json", "images": "photos"}
        values = {"source": source, "output": "out", "processes": 1, "samples_per_shard": 2, **fields}
        return check_config(BuildConfig, values)

    return recipe


def answers(folder: str) -> list[str]:
    store = SampleStore.open(folder, "train")
    return [store.record(i)["messages"][-1]["content"] for i in range(len(store))]


def paint(path: str) -> None:
    """Replaces a picture by another one of exactly its size in bytes."""
    content = bytearray(Path(path).read_bytes())
    content[-20] ^= 1
    Path(path).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: write_rows(Path("a.json"), ["crimson", "blue", "grey"]), r"a\.json has changed \(\d+ bytes then, \d+"),
        (lambda: write_rows(Path("a.json"), ["tan", "blue", "grey"]), r"a\.json has changed \(other content of the"),
        (lambda: paint("photos/0.png"), r"photos/ has changed \(other content of the same size\)"),
        (lambda: os.remove("photos/4.png"), r"photos/ has changed \(5 images then, 4 now\)"),
        (lambda: shutil.copy("photos/4.png", "photos/more/5.PNG"), r"photos/ has changed \(5 images then, 6 now\)"),
        (lambda: os.rename("photos/4.png", "photos/more/4.png"), r"photos/ has changed"),
        (lambda: os.remove("b.json"), r"b\.json is gone; `--fresh`"),
        (lambda: shutil.copy("b.json", "c.json"), r"c\.json is new; `--fresh`"),
        (lambda: (paint("photos/0.png"), os.rename("b.json", "c.json")), r"b\.json is gone, and 2 more differ"),
    ],
)
def test_a_changed_source_is_refused_by_name(make: Make, change: Callable[[], Any], sentence: str) -> None:
    build_shards(make())
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert build_shards(make()).already_complete
    change()
    with pytest.raises(DataError, match=sentence):
        build_shards(make())
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    build_shards(make(), fresh=True)
    assert build_shards(make()).already_complete
    build_shards(make(output="beside"))
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == {
        path.name: path.read_bytes() for path in Path("beside").iterdir()
    }
    assert not list(Path().glob(".out*"))


def test_what_is_no_change(make: Make) -> None:
    """Times, other files of the folder, and copies."""
    build_shards(make())
    for path in ("a.json", "photos/0.png"):
        os.utime(path, (1, 1))
    Path("photos/notes.txt").write_text("seen", encoding="utf-8")
    Path("photos/.1.png").write_bytes(b"")
    os.symlink("/", "photos/root")
    os.symlink("../a.json", "photos/more/secret.png")
    shutil.copytree("photos", "copied", symlinks=True)
    shutil.rmtree("photos")
    os.rename("copied", "photos")
    assert build_shards(make(processes=2)).already_complete


def test_linked_images_count_where_they_are_followed(raw: Path) -> None:
    (raw / "coco" / "sub").mkdir(parents=True)
    shutil.copy("photos/0.png", "coco/sub/0.png")
    os.symlink("../coco", "photos/coco")
    os.symlink("..", "coco/sub/up")
    inside, linked = (state_of(Inputs((), raw / "photos", links)) for links in ((), (str(raw / "coco"),)))
    assert [state[f"{raw}/photos/"]["images"] for state in (inside, linked)] == [5, 6]


def test_a_file_that_cannot_be_read_is_a_state_too(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are refused, and the rest is built."""

    def unreadable(path: str, size: int, places: int | None) -> str:
        raise DataError(f"{path} cannot be read")

    inputs = Inputs((raw / "a.json",), raw / "photos")
    before = state_of(inputs)
    monkeypatch.setattr("datamodules.building.source_state.hash_file", unreadable)
    assert changes(before, state_of(inputs)).startswith(f"{raw}/a.json has changed")


def test_a_build_of_an_earlier_version_is_accepted(make: Make) -> None:
    build_shards(make())
    manifest = Path("out/manifest.json")
    content = json.loads(manifest.read_text())
    content.pop("sources")
    manifest.write_text(json.dumps(content), encoding="utf-8")
    write_rows(Path("a.json"), ["crimson", "blue", "grey"])
    found = build_shards(make())
    assert found.already_complete
    assert not found.sources


def test_a_stopped_build_does_not_mix_two_sources(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.building.manifest.REPORT_SECONDS", 0)

    def stop(now: Any) -> None:
        if now.samples == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(make(), stop)
    assert len(list(Path("out").glob("*.tar"))) == 1
    write_rows(Path("a.json"), ["crimson", "blue", "grey"])
    with pytest.raises(DataError, match=r"a\.json has changed .*--fresh"):
        build_shards(make())
    with pytest.raises(KeyboardInterrupt):
        build_shards(make(), stop, fresh=True)
    assert Path(".out.fresh/train-000000.tar").is_file()
    write_rows(Path("a.json"), ["green", "blue", "grey"])
    build_shards(make(), fresh=True)
    assert answers("out") == ["green", "blue", "grey", "pink"]
    assert sorted(path.name for path in Path().iterdir()) == ["a.json", "b.json", "out", "photos"]


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_replacement_that_is_killed_leaves_the_old_build_or_the_new_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The last steps are two renames and a removal."""
    build_shards(make())
    write_rows(Path("a.json"), ["crimson", "blue", "grey"])
    steps = iter(range(1, 4))

    def until_killed(done: Callable[..., Any]) -> Callable[..., Any]:
        def do(path: Any, *given: Any, **fields: Any) -> Any:
            if ".building" not in str(path) and next(steps) == step:
                raise KeyboardInterrupt
            return done(path, *given, **fields)

        return do

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", until_killed(Path.rename))
        patch.setattr(shutil, "rmtree", until_killed(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            build_shards(make(), fresh=True)
    if step == 1:
        assert answers("out")[0] == "red"
        build_shards(make(), fresh=True)
    assert build_shards(make()).already_complete
    assert answers("out") == ["crimson", "blue", "grey", "pink"]
    assert sorted(path.name for path in Path().iterdir()) == ["a.json", "b.json", "out", "photos"]


def test_fresh_removes_nothing_that_no_build_made(make: Make, write_split: Callable[..., Path]) -> None:
    build_shards(make(), fresh=True)
    (Path("out") / "train.lengths-0123456789abcdef.npz").write_bytes(b"")
    for name in ("notes.txt", "train-000007.tar", ".hidden"):
        (Path("out") / name).write_text("mine", encoding="utf-8")
        with pytest.raises(DataError, match=rf"{name} in it is not of a build; move it"):
            build_shards(make(), fresh=True)
        (Path("out") / name).unlink()
    assert build_shards(make(samples_per_shard=1), fresh=True).samples == 4
    assert len(list(Path("out").glob("*.tar"))) == 4
    write_split(Path("demo"), "train", 1)
    Path("demo/manifest.json").write_text('{"format": 1, "counts": {}}', encoding="utf-8")
    with pytest.raises(DataError, match=r"demo/manifest\.json is not the manifest of a build"):
        build_shards(make(output="demo"), fresh=True)
    with pytest.raises(ConfigError, match="--fresh: a part cannot"):
        build_shards(make(part="1/2"), fresh=True)
    with pytest.raises(ConfigError, match="--fresh: a folder under a URL cannot"):
        build_shards(make(output=f"file://{Path.cwd()}/far"), fresh=True)


@pytest.mark.parametrize("damage", ['{"a.json": 3}', '{"a.json": {"bytes": "x"}}', "[1]", '"a"'])
def test_a_damaged_state_is_a_damaged_manifest(make: Make, damage: str) -> None:
    build_shards(make())
    text = Path("out/manifest.json").read_text(encoding="utf-8")
    content = {**json.loads(text), "sources": json.loads(damage)}
    with pytest.raises(DataError, match="not the manifest of a build of shards, or it is damaged"):
        Manifest.from_json(json.dumps(content), "here")
