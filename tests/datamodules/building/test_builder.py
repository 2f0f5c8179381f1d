"""A source to shards: the same bytes for any number of processes, parts that fit together, limits, refusals."""

import dataclasses
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset

from datamodules.building.builder import build_shards
from datamodules.building.config import BuildConfig
from datamodules.building.manifest import BuildProgress, Manifest
from datamodules.storage.index import index_path, scan_tar
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.errors import ConfigError, DataError

PLUGIN = str(Path(__file__).with_name("building_source.py"))
SPLITS = {"train": 0.6, "validation": 0.25, "test": 0.15}
Make = Callable[..., BuildConfig]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A checked recipe of the test source into a folder; other fields by name, the source's as a mapping."""

    def recipe(folder: str = "shards", source: dict[str, Any] | None = None, **fields: Any) -> BuildConfig:
        values = {"splits": SPLITS, "samples_per_shard": 20, "processes": 1, "plugins": [PLUGIN], **fields}
        values |= {"source": {"name": "building_test", **(source or {})}, "output": str(tmp_path / folder)}
        return check_config(BuildConfig, values)

    return recipe


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file under a folder."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def samples(folder: str | Path) -> dict[str, tuple[Any, ...]]:
    """Key -> what the sample holds, of all tars as webdataset reads them."""
    tars = [str(path) for path in sorted(Path(folder).glob("*.tar"))]
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        assert sample["__key__"] not in found
        members = {name: content for name, content in sample.items() if not name.startswith("__")}
        found[sample["__key__"]] = (Path(sample["__url__"]).name.split("-")[0], *sorted(members.items()))
    return found


def test_what_is_built(make: Make) -> None:
    config = make()
    manifest = build_shards(config)
    folder = Path(config.output)
    # Of 100 rows 80 are good; of these 60 have one image, 10 two.
    assert (manifest.samples, manifest.images) == (80, 80)
    assert manifest.refused == {"missing image": 10, "broken image": 10}
    assert not manifest.already_complete
    names = {shard.name for shard in manifest.all_shards}
    beside = {index_path(folder / name).name for name in names} | {"manifest.json", "refused.jsonl"}
    assert set(contents(folder)) == names | beside
    for split, shards in manifest.shards.items():
        assert [shard.name for shard in shards] == [f"{split}-{i:06d}.tar" for i in range(len(shards))]
        assert [shard.samples for shard in shards[:-1]] == [20] * (len(shards) - 1)
        for shard in shards:
            content = (folder / shard.name).read_bytes()
            assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
            assert len(scan_tar(folder / shard.name)) == shard.samples
    found = samples(folder)
    assert sorted(found) == [f"{i // 8:08d}-{i % 8:06d}" for i in range(100) if i % 10 not in (3, 4)]
    assert Manifest.from_json((folder / "manifest.json").read_text(), "here") == manifest
    assert manifest.settings["source"] == {"name": "building_test", **dataclasses.asdict(config.source.config)}
    assert str(folder) not in (folder / "manifest.json").read_text()


def test_formats_pass_through_and_others_become_png(make: Make) -> None:
    config = make(splits={"train": 1.0})
    noise = sys.modules[config.source.component.__module__].noise
    build_shards(config)
    found = {key: dict(members) for key, (_, *members) in samples(config.output).items()}
    assert found["00000000-000000"]["png"] == noise(0)
    assert found["00000001-000000"]["webp"] == noise(8, "WEBP")
    assert (found["00000000-000005"]["0.png"], found["00000000-000005"]["1.jpg"]) == (noise(5), noise(5, "JPEG"))
    assert found["00000000-000007"]["png"].startswith(b"\x89PNG")
    assert set(found["00000000-000006"]) == {"json"}
    assert json.loads(found["00000000-000000"]["json"]) == {"id": 0, "caption": "noise 0 é"}
    store = SampleStore.open(Path(config.output), "train")
    assert all(len(store.images(i)) == store.image_count(i) for i in range(len(store)))


@pytest.mark.slow
def test_any_number_of_processes_gives_the_same_bytes(make: Make) -> None:
    for processes in (1, 4):
        build_shards(make(f"by{processes}", processes=processes))
    one, four = (contents(make(f"by{processes}").output) for processes in (1, 4))
    assert len(one) > 10
    assert one == four


def test_parts_hold_together_what_one_build_holds(make: Make) -> None:
    build_shards(make("whole"))
    manifests = [build_shards(make("parts", part=f"{i}/3")) for i in (2, 1, 3)]
    assert samples(make("parts").output) == samples(make("whole").output)
    assert sum(manifest.samples for manifest in manifests) == 80
    names = set(contents(make("parts").output))
    assert {
        f"{name}-part{i}of3.json{end}" for i in (1, 2, 3) for name, end in (("manifest", ""), ("refused", "l"))
    } < names
    assert "train-part2of3-000000.tar" in names


def test_the_same_image_is_never_in_two_splits(make: Make) -> None:
    config = make(source={"rows": 400})
    manifest = build_shards(config)
    splits: dict[bytes, set[str]] = {}
    for split, *members in samples(config.output).values():
        for name, content in members:
            if name == "webp":
                splits.setdefault(content, set()).add(split)
    # Row 8 and every fortieth after it have the same picture, and so on: four pictures for forty rows.
    assert len(splits) == 4
    assert all(len(of_image) == 1 for of_image in splits.values())
    shares = {split: sum(shard.samples for shard in shards) / 320 for split, shards in manifest.shards.items()}
    assert all(abs(shares[split] - share) < 0.1 for split, share in SPLITS.items())


def test_shards_end_by_bytes(make: Make) -> None:
    config = make(splits={"train": 1.0}, bytes_per_shard=30720, samples_per_shard=1000, source={"side": 40})
    manifest = build_shards(config)
    assert len(manifest.all_shards) > 5
    assert all(shard.bytes <= 30720 for shard in manifest.all_shards)
    # A sample that is larger than the limit has a shard of its own.
    manifest = build_shards(make("small", bytes_per_shard=1, source={"rows": 10}))
    assert [shard.samples for shard in manifest.all_shards] == [1] * 8


def test_refusals_are_logged(make: Make) -> None:
    config = make(source={"rows": 10})
    build_shards(config)
    missing, broken = map(json.loads, (Path(config.output) / "refused.jsonl").read_text().splitlines())
    assert missing == {"where": "row 3", "id": 3, "reason": "missing image", "detail": "photos/3.jpg"}
    assert (broken["where"], broken["id"], broken["reason"]) == ("chunk 0, row 4", 4, "broken image")
    assert broken["detail"].startswith("image 0: ")


def test_a_file_that_cannot_be_read_is_refused_and_the_rest_is_built(make: Make) -> None:
    for processes in (1, 2):
        config = make(f"by{processes}", source={"rows": 16, "unreadable": True}, processes=processes)
        assert build_shards(config).refused == {"missing image": 2, "broken image": 2, "unreadable file": 1}
        lines = (Path(config.output) / "refused.jsonl").read_text().splitlines()
        assert json.loads(lines[0]) == {"where": "a.tar", "id": None, "reason": "unreadable file", "detail": "no tar"}


def test_no_good_row_is_an_error_that_names_the_commonest_reason(make: Make) -> None:
    config = make(source={"only_broken": True, "rows": 20})
    with pytest.raises(DataError, match=r"none of the 20 rows of building_test is usable, 16 for 'broken image'"):
        build_shards(config)
    assert list(contents(config.output)) == ["refused.jsonl"]
    with pytest.raises(DataError, match="building_test has no rows, so"):
        build_shards(make("empty", source={"rows": 0}))
    with pytest.raises(DataError, match="has no rows in part 4/5"):
        build_shards(make("few", source={"rows": 20}, part="4/5"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_source_ends_the_build_and_leaves_nothing(make: Make, processes: int) -> None:
    config = make(source={"breaks_at": 15}, processes=processes)
    with pytest.raises(DataError, match=r"^rows.json is gone$"):
        build_shards(config)
    assert contents(config.output) == {}
    assert not Path(config.output).exists()


def test_a_failed_build_removes_the_folders_it_made_and_no_other(make: Make, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("deep/deeper", "there", "there/deep"):
        with pytest.raises(DataError, match="has no rows"):
            build_shards(make(folder, source={"rows": 0}))
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_finished_build_is_left_alone(make: Make) -> None:
    config = make()
    first = build_shards(config)
    stamps = {path: path.stat().st_mtime_ns for path in Path(config.output).iterdir()}
    again = build_shards(make(processes=3, source={}))
    assert again.already_complete
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).iterdir()} == stamps


def test_another_build_is_refused(make: Make, write_split: Callable[..., Path]) -> None:
    config = make()
    build_shards(config)
    before = contents(config.output)
    for fields, which in (
        ({"samples_per_shard": 30}, "samples_per_shard"),
        ({"source": {"rows": 50}}, "source.rows"),
        ({"part": "1/2"}, "part"),
    ):
        with pytest.raises(DataError, match=rf"holds another build \(differing in {which}\); choose another output"):
            build_shards(make(**fields))
    assert contents(config.output) == before
    write_split(Path(make("demo").output), "train", 1)
    for part in ("1/1", "1/2"):
        with pytest.raises(DataError, match=r"demo holds train-000000.tar of another origin"):
            build_shards(make("demo", part=part))
    build_shards(make("parts", part="1/2"))
    with pytest.raises(DataError, match="differing in part"):
        build_shards(make("parts", part="1/3"))


def test_a_lost_shard_is_told(make: Make) -> None:
    config = make()
    build_shards(config)
    (Path(config.output) / "train-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-000000.tar is gone or changed"):
        build_shards(config)


def test_progress(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.building.manifest.REPORT_SECONDS", 0)
    told: list[BuildProgress] = []
    build_shards(make(), told.append)
    last = told[-1]
    assert (last.samples, last.images, last.refused, last.chunks, last.chunks_in_all) == (80, 80, 20, 13, 13)
    assert last.seconds_left == 0
    assert told[0].seconds_left is None
    assert [each.samples for each in told] == sorted(each.samples for each in told)
    half = BuildProgress(50, 60, 0, chunks=30, chunks_in_all=50, seconds=2.0, earlier_images=20, earlier_chunks=10)
    assert (half.images_per_second, half.seconds_left) == (20.0, 2.0)


def test_to_a_url_by_way_of_a_folder_of_this_machine(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bucket").mkdir()
    build_shards(make("local"))
    config = dataclasses.replace(make(), output=f"file://{tmp_path}/bucket/deep")
    build_shards(config)
    assert contents(tmp_path / "bucket" / "deep") == contents(make("local").output)
    assert contents(tmp_path / "cache") == {}
    assert not list((tmp_path / "cache").rglob(".building*"))
    assert build_shards(config).already_complete
    with pytest.raises(DataError, match=r"differing in samples_per_shard"):
        build_shards(dataclasses.replace(config, samples_per_shard=7))


def test_recipes(make: Make) -> None:
    for fields, sentence in (
        ({"splits": {"../train": 1.0}}, "'../train' must be of letters, digits and _"),
        ({"splits": {"train": 0.5}}, "must add up to 1"),
        ({"part": "3/2"}, "'3/2' is not i/n"),
        ({"part": "a/2"}, "'a/2' is not i/n"),
        ({"samples_per_shard": 0}, "samples_per_shard must be at least 1, not 0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            make(**fields)
    with pytest.raises(ConfigError, match="a build needs one"):
        build_shards(BuildConfig())


def test_all_is_train_unless_splits_are_named_and_then_it_need_not_be() -> None:
    assert check_config(BuildConfig, {}).splits == {"train": 1.0}
    assert check_config(BuildConfig, {"splits": {"test": 1}}).splits == {"test": 1.0}


def test_the_order_of_splits_in_a_recipe_does_not_matter(make: Make) -> None:
    for folder, names in (("one", SPLITS), ("other", reversed(SPLITS))):
        build_shards(make(folder, splits={name: SPLITS[name] for name in names}))
    one, other = (samples(make(folder).output) for folder in ("one", "other"))
    assert one == other
    assert set(Counter(split for split, *_ in one.values())) == set(SPLITS)
