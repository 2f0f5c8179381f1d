"""`hub:owner/name` is built from a hub of the test's own: streamed, pinned to a commit, patient, resumed, refused."""

import dataclasses
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.building.builder import _Build, build_shards
from datamodules.building.config import BuildConfig
from datamodules.hub import files as hub_files
from datamodules.hub import requests as hub_requests
from datamodules.hub.address import HubAddress
from datamodules.hub.files import parquet_files
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.cli.shards.build import read_recipe
from fvl_lightning.core.errors import ConfigError, DataError
from tests.datamodules.building.test_builder import contents
from tests.datamodules.hub.server import COMMIT, NEXT_COMMIT, FakeHub, serving

TOKEN = "hf_" + "a" * 30
CHARTS = "hub:some/set:charts%28filtered%29"
Make = Callable[..., BuildConfig]


def table(first: int, rows: int) -> bytes:
    """A Parquet file as in the Cauldron, of row groups of four; the row after the first has no image."""
    written = []
    for number in range(first, first + rows):
        image = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(image, "PNG")
        turns = [{"user": "How many?", "assistant": f"{number}.", "source": "Charts"}]
        images = [] if number == first + 1 else [{"bytes": image.getvalue(), "path": None}]
        written.append({"images": images, "texts": turns, "noise": os.urandom(40_000)})
    kind = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    content = pa.Table.from_pylist(written)
    content = content.set_column(0, "images", pa.array([row["images"] for row in written], kind))
    file = io.BytesIO()
    pq.write_table(content, file, row_group_size=4, compression="none")
    return file.getvalue()


FILES = {
    "README.md": b"# a set",
    "charts(filtered)/train-00000-of-00002.parquet": table(0, 10),
    "charts(filtered)/train-00001-of-00002.parquet": table(20, 6),
    "charts(filtered)/test-00000-of-00001.parquet": table(40, 2),
    "maps/train-00000-of-00001.parquet": table(60, 3),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub("some/set", dict(FILES))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub_requests, "TAIL_BYTES", 2**16)  # as much as pyarrow reads first
        forget()
        yield hub


def forget() -> None:
    """What another process would not know."""
    hub_files._KNOWN.clear()
    hub_requests._tail.cache_clear()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two requests, which are not waited for."""
    slept: list[float] = []
    monkeypatch.setattr(hub_requests.time, "sleep", slept.append)
    return slept


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def recipe(address: str | list[str] = CHARTS, folder: str = "out", **source: Any) -> BuildConfig:
        named = address if isinstance(address, str) else f"[{', '.join(address)}]"
        words = [f"{key}={value}" for key, value in {"source.file": named, **source}.items()]
        return read_recipe(
            "hub:some/set", [*words, f"output={tmp_path / folder}", "processes=1", "samples_per_shard=3"]
        )

    return recipe


def test_a_set_is_streamed_and_its_commit_recorded(hub: FakeHub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    config = make(**{"source.kinds": "source"})
    manifest = build_shards(config)
    assert manifest.sources == {"hub:some/set": {"commit": COMMIT}}
    assert (manifest.samples, manifest.refused) == (16, {})
    out = Path(config.output)
    assert json.loads((out / "manifest.json").read_text())["sources"] == {"hub:some/set": {"commit": COMMIT}}
    store = SampleStore.open(str(out), "train")
    kept = [store.record(index) for index in range(len(store))]
    assert [record["messages"][-1]["content"] for record in kept] == [f"{n}." for n in (*range(10), *range(20, 26))]
    assert [record.get("kinds") for record in kept[:3]] == [["Charts"], None, ["Charts"]]
    assert not [name for name, content in contents(out).items() if TOKEN.encode() in content]
    assert {authorization for origin, _, authorization in hub.asked if origin == "store"} == {None}
    assert {authorization for origin, _, authorization in hub.asked if origin == "hub"} == {f"Bearer {TOKEN}"}
    assert sum("/api/datasets/" in path for path in hub.requests("hub")) == 1


def test_no_more_is_asked_for_than_is_read(hub: FakeHub, make: Make) -> None:
    """Neither a column that is not used, nor another split or config."""
    build_shards(make())
    assert all(path.startswith("/charts(filtered)/train-") for path in hub.requests("store"))
    assert hub.sent < sum(len(content) for name, content in FILES.items() if "charts(filtered)/train" in name) / 3


@pytest.mark.parametrize(
    ("faults", "lists_sizes"),
    [(["503", "429", "", "cut"], True), (["cut", "cut", "503", "cut"], True), (["", "", "cut", "", "503"], False)],
)
def test_a_bad_line_changes_nothing(
    hub: FakeHub, make: Make, pauses: list[float], faults: list[str], lists_sizes: bool
) -> None:
    build_shards(make(folder="good"))
    forget()
    hub.faults, hub.lists_sizes, hub.down = list(faults), lists_sizes, 2
    again = make(folder="bad")
    build_shards(again)
    assert hub.faults == []
    assert contents(again.output) == contents(Path(again.output).with_name("good"))
    assert len(pauses) > 2


def test_a_cut_connection_is_continued_where_it_broke(hub: FakeHub) -> None:
    (file, *_) = parquet_files(HubAddress.parse(CHARTS))
    content = FILES[file.path]
    hub.faults = ["cut"] * 5
    assert hub_requests.read_range(file, 100, 5000) == content[100:5000]
    assert hub.sent == 4900


def test_a_killed_build_goes_on_at_its_commit(hub: FakeHub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    build_shards(make(folder="whole"))
    config = make()
    stopped_after(9, config, monkeypatch)
    hub.commits = {"main": NEXT_COMMIT, "earlier": COMMIT}
    hub.asked.clear()
    forget()
    manifest = build_shards(config)
    assert manifest.sources == {"hub:some/set": {"commit": COMMIT}}
    assert contents(config.output) == contents(Path(config.output).with_name("whole"))
    resolved = [path for path in hub.requests("hub") if "/resolve/" in path]
    assert resolved
    assert all(f"/resolve/{COMMIT}/" in path for path in resolved)


def stopped_after(rows: int, config: BuildConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds, and is interrupted after so many rows."""
    add, numbers = _Build._add, itertools.count()

    def adding(self: Any, *arguments: Any) -> None:
        if next(numbers) == rows:
            raise KeyboardInterrupt
        add(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_Build, "_add", adding)
        with pytest.raises(KeyboardInterrupt):
            build_shards(config)


def test_a_commit_that_is_gone_is_named(hub: FakeHub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    stopped_after(9, config, monkeypatch)
    hub.commits = {"main": NEXT_COMMIT}
    forget()
    with pytest.raises(DataError, match=f"some/set has no revision {COMMIT}, or has it no longer"):
        build_shards(config)


def test_a_finished_build_notices_a_newer_commit(hub: FakeHub, make: Make) -> None:
    config = make()
    build_shards(config)
    assert build_shards(config).already_complete
    hub.commits = {"main": NEXT_COMMIT}
    with pytest.raises(DataError, match=r"commit 0123456789ab then, ffffffffffff now.*--fresh"):
        build_shards(config)
    assert build_shards(config, fresh=True).sources == {"hub:some/set": {"commit": NEXT_COMMIT}}


def test_a_build_of_an_earlier_version_is_the_same_build(hub: FakeHub, make: Make) -> None:
    """Its manifest lacks the fields of the source that did not exist."""
    config = make()
    build_shards(config)
    manifest = Path(config.output) / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    for field in ("answer_as_caption", "kinds", "max_rows"):
        del content["settings"]["source"][field]
    manifest.write_text(json.dumps(content), encoding="utf-8")
    assert build_shards(config).already_complete
    with pytest.raises(DataError, match=r"holds another build \(differing in source.answer_as_caption\)"):
        build_shards(make(**{"source.answer_as_caption": True}))


def test_a_commit_in_the_address_is_not_asked_about(hub: FakeHub, make: Make) -> None:
    config = make(f"hub:some/set@{COMMIT}:maps")
    build_shards(config)
    hub.asked.clear()
    assert build_shards(config).already_complete
    assert hub.asked == []


def test_a_line_that_stays_bad_stops_the_build_and_refuses_no_row(hub: FakeHub, make: Make) -> None:
    config = make()
    hub.faults = [""] * 5 + ["503"] * 100
    with pytest.raises(DataError, match=rf"train-0000.* cannot be read: {hub.address} answered with status 503"):
        build_shards(config)
    hub.faults.clear()
    manifest = build_shards(config)
    assert (manifest.samples, manifest.refused) == (16, {})


@pytest.mark.parametrize(
    ("change", "address", "message"),
    [
        (
            {},
            "hub:some/other:x",
            "no dataset some/other on http://127.0.0.1:[0-9]+, or it is private or gated .export HF",
        ),
        ({"token": TOKEN}, CHARTS, r"no dataset some/set on .*, or it is private or gated \(export HF_TOKEN"),
        ({"gated": True}, CHARTS, "some/set is gated; accept its conditions on http://127.*/datasets/some/set"),
        ({}, "hub:some/set@v2:maps", "some/set has no revision v2"),
        ({"files": {"a.json": b""}}, CHARTS, "has no Parquet files; hub:some/set@refs/convert/parquet may"),
        ({}, "hub:some/set", r"has 2 configs, charts.*, maps; name one, as in hub:some/set:charts%28filtered%29$"),
        ({}, "hub:some/set:map", "no config 'map', there are .*did you mean 'maps'"),
        ({}, "hub:some/set:maps/validation", "no split 'validation', there are train"),
        ({"down": 100}, CHARTS, "answered with status 503"),
        ({"faults": ["whole"]}, CHARTS, "does not send ranges of a file"),
    ],
)
def test_a_refusal_is_one_sentence(
    hub: FakeHub, make: Make, change: dict[str, Any], address: str, message: str
) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(DataError, match=message) as raised:
        build_shards(make(address))
    assert "\n" not in str(raised.value)
    assert TOKEN not in str(raised.value)


def test_without_a_network_it_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(DataError, match=r"hub:some/set cannot be read: http://127.0.0.1:9 cannot be reached \(Connect"):
        build_shards(make())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        build_shards(make())


def test_the_first_rows_of_each_entry(hub: FakeHub, make: Make) -> None:
    """Rows in = used + refused + passed over; the files behind are not opened."""
    config = make([CHARTS, "hub:some/set:maps"], **{"source.max_rows": 5})
    manifest = build_shards(config)
    assert manifest.samples == 5 + 3
    assert manifest.passed_over["rows beyond source.max_rows"] == 5
    assert manifest.passed_over["files beyond source.max_rows"] == 1
    assert manifest.sources == {"hub:some/set": {"commit": COMMIT}}


CARD = {
    "configs": [
        {"config_name": "default", "data_files": [{"split": "train", "path": "charts*/train-*"}]},
        {"config_name": "all", "data_files": [{"split": "train", "path": ["charts*/*", "maps/*"]}]},
        {"config_name": "maps", "data_dir": "maps"},
        {"config_name": "one", "data_files": "maps/train-00000-of-00001.parquet"},
        {"config_name": "none", "data_files": "nothing/*"},
        "odd",
    ]
}


@pytest.mark.parametrize(
    ("address", "count"),
    [("hub:some/set", 2), ("hub:some/set:all/train", 4), ("hub:some/set:maps", 1), ("hub:some/set:one", 1)],
)
def test_a_card_names_configs_and_splits(hub: FakeHub, address: str, count: int) -> None:
    hub.card = CARD
    assert len(parquet_files(HubAddress.parse(address))) == count


def test_an_address_reads_back() -> None:
    for text in (CHARTS, "hub:a/b", "hub:squad", "hub:a/b@refs/convert/parquet:x/test", "hub:a/b:two%20words/train"):
        address = HubAddress.parse(text)
        assert str(address) == text
        assert dataclasses.replace(address) == HubAddress.parse(str(address))
    assert HubAddress.parse("hub:a/b:two%20words").config == "two words"
    assert HubAddress.parse("hub:some/set:charts(filtered)") == HubAddress.parse(CHARTS)


@pytest.mark.parametrize("text", ["hub:", "hub:a/b/c", "hub:../b", "hub:a b", "hub:a/b@", "hub:a/b:c/d/e", "hub:a/b:/"])
def test_an_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no dataset of the hub: write hub:owner/name"):
        read_recipe("parquet", [f"source.file={json.dumps(text)}"])
