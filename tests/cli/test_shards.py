"""`fvl shards` through the front door: build, index, check, info, preview, and mistakes in each."""

import io
import json
import re
import shlex
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.storage.index import index_path
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.shard_files import DAMAGED
from fvl_lightning.cli.shards.build import _counted, read_recipe
from fvl_lightning.cli.shards.info import _short
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, Run, furnish

VERBS = ("build", "index", "check", "info", "preview", "order")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with LLaVA conversations about five photos, one of which is missing and one broken."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = []
    for i in range(5):
        if i != 3:
            Image.new("RGB", (40 + i, 30), (50 * i, 0, 0)).save(photos / f"{i}.jpg")
        talk = [{"from": "human", "value": f"<image>\nhow red is {i}?"}, {"from": "gpt", "value": f"{50 * i}"}]
        source = "walls" if i % 2 else "[red]"
        rows.append({"id": f"row{i}", "source": source, "image": f"{i}.jpg", "conversations": talk})
    (photos / "4.jpg").write_bytes((photos / "4.jpg").read_bytes()[:200])
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


SOURCE = ("llava_json", "source.file=a.json", "source.images=photos")
BUILD = ("shards", "build", *SOURCE, "output=out", "--processes", "1")


@pytest.fixture
def built(raw: Path, fvl_here: Run) -> Path:
    assert fvl_here(raw, *BUILD).returncode == 0
    return raw


def cells(output: str) -> list[list[str]]:
    """The rows of all tables in an output."""
    return [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in output.splitlines() if "│" in line]


def change_tar(tar: Path, change: Callable[[str, bytes], dict[str, bytes]]) -> None:
    """Rewrites a tar, every member becoming what `change` makes of its name and content."""
    with tarfile.open(tar) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            for new_name, new_content in change(name, content).items():
                info = tarfile.TarInfo(new_name)
                info.size = len(new_content)
                archive.addfile(info, io.BytesIO(new_content))


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_ends_in_an_example_that_it_understands(verb: str, tmp_path: Path, fvl_here: Run) -> None:
    done = fvl_here(tmp_path, "shards", verb, "--help")
    assert done.returncode == 0
    text = " ".join(done.stdout.split())
    example = re.search(r"Example: (fvl .+?)(?= ╭| \W*Arguments| \W*Options)", text)
    assert example is not None, text
    words = shlex.split(example[1])
    assert words[:3] == ["fvl", "shards", verb]
    assert all(f" {word} " in text for word in words if word.startswith("--"))


def test_help_names_every_verb(tmp_path: Path, fvl_here: Run) -> None:
    text = fvl_here(tmp_path, "shards", "--help").stdout
    assert all(re.search(rf"[│ ] {verb} ", text) for verb in VERBS)
    assert re.search(r"[│ ] shards ", fvl_here(tmp_path, "--help").stdout)


def test_build_says_what_it_made_and_what_it_refused(raw: Path, fvl_here: Run) -> None:
    done = fvl_here(raw, *BUILD)
    assert done.returncode == 0, done.stderr
    table = cells(done.stdout)
    assert ["train", "1", "3", "3"] in [row[:4] for row in table]
    assert ["missing image", "1"] in table
    assert ["broken image", "1"] in table
    assert "out/manifest.json" in done.stdout
    assert "out/refused.jsonl" in done.stdout
    assert len(SampleStore.open(str(raw / "out"), "train")) == 3


def test_what_training_will_miss_is_told(raw: Path, fvl_here: Run) -> None:
    alone = fvl_here(raw, *BUILD)
    assert "out has no split validation, which training needs: build again with" in alone.stderr
    named = fvl_here(raw, "shards", "build", *SOURCE, "output=named", "splits={train: 0.5, val: 0.5}", "processes=1")
    assert "splits: training reads the split validation, and will not look for val" in named.stderr
    splits = "splits={train: 0.0000001, validation: 0.9999999}"
    both = fvl_here(raw, "shards", "build", *SOURCE, "output=both", splits, "processes=1")
    assert both.returncode == 0
    lost = " ".join(both.stderr.split())
    assert "train got no row: the rows have 3 different images (or texts without one)" in lost
    assert re.search(r'"splits=\{train: [\d.]+, validation: [\d.]+\}" would give 1 to train, 2 to validation', lost)


def test_an_output_with_other_files_is_told(raw: Path, fvl_here: Run) -> None:
    done = fvl_here(raw, "shards", "build", *SOURCE, "output=photos", "--processes", "1")
    assert done.returncode == 0
    told = "output: photos holds 4 other files and folders (such as 0.jpg), between which the shards will lie"
    assert told in done.stderr


def test_a_finished_build_is_left_alone(built: Path, fvl_here: Run) -> None:
    before = (built / "out" / "manifest.json").stat().st_mtime_ns
    done = fvl_here(built, *BUILD)
    assert done.returncode == 0
    assert "out was complete already, and its source has not changed; nothing was done" in done.stdout
    assert (built / "out" / "manifest.json").stat().st_mtime_ns == before
    (built / "photos" / "0.jpg").write_bytes((built / "photos" / "1.jpg").read_bytes())
    changed = fvl_here(built, *BUILD)
    assert changed.returncode == 2
    assert changed.stderr.startswith("error: the source of out is not the one that it was built from: photos/ has")
    assert fvl_here(built, *BUILD, "--fresh").returncode == 0
    assert (built / "out" / "manifest.json").stat().st_mtime_ns > before


def test_a_recipe_file_and_a_source_name_build_the_same(built: Path, fvl_here: Run) -> None:
    recipe = "source: {name: llava_json, file: nothing.json, images: photos}\noutput: other\n"
    (built / "recipe.yaml").write_text(recipe, encoding="utf-8")
    done = fvl_here(built, "shards", "build", "recipe.yaml", "source.file=a.json", "--processes", "2")
    assert done.returncode == 0, done.stderr
    tar = "train-000000.tar"
    assert (built / "other" / tar).read_bytes() == (built / "out" / tar).read_bytes()


def test_parts_are_named_by_an_option(raw: Path, fvl_here: Run) -> None:
    done = fvl_here(raw, *BUILD, "--part", "1/2")
    assert done.returncode == 0, done.stderr
    assert (raw / "out" / "manifest-part1of2.json").is_file()
    assert "out/manifest-part1of2.json" in done.stdout


@pytest.mark.parametrize(("part", "expected"), [("1/1", 2), ("2/2", 1), ("3/3", 0)])
def test_chunks_are_counted_for_the_time_left(part: str, expected: int, raw: Path) -> None:
    rows = [{"image": "0.jpg", "conversations": []}] * 100  # in groups of 64
    (raw / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    words = [f"source.file={raw / 'b.json'}", f"source.images={raw}", f"part={part}"]
    counted = _counted(read_recipe("llava_json", words))
    end = time.monotonic() + 10
    while not counted and time.monotonic() < end:
        time.sleep(0.01)
    assert counted == [expected]


def test_check_of_a_good_set_is_quiet(built: Path, fvl_here: Run) -> None:
    done = fvl_here(built, "shards", "check", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1 shards?, 3 samples, 3 images: all is well", done.stdout)


def test_check_finds_what_is_wrong_and_where(built: Path, fvl_here: Run) -> None:
    tar = built / "out" / "train-000000.tar"
    keys = SampleStore.open(str(built / "out"), "train").keys

    def change(name: str, content: bytes) -> dict[str, bytes]:
        if name == f"{keys[0]}.jpg":
            return {name: content[: len(content) // 2]}
        if name == f"{keys[1]}.json":
            return {name: b"{"}
        return {name: content}

    change_tar(tar, change)
    for file in (index_path(tar), built / "out" / "manifest.json"):
        file.unlink()
    done = fvl_here(built, "shards", "check", "out", "--processes", "1")
    assert done.returncode == 1
    table = cells(done.stdout)
    assert ["broken image", "1"] in table
    assert ["bad JSON", "1"] in table
    assert ["broken image", "out/train-000000.tar", keys[0]] in [row[:3] for row in table]
    assert ["bad JSON", "out/train-000000.tar", keys[1]] in [row[:3] for row in table]


def test_check_holds_the_bytes_against_the_manifest(built: Path, fvl_here: Run) -> None:
    tar = built / "out" / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    place = content.index(b"how red")
    content[place : place + 3] = b"HOW"
    tar.write_bytes(content)
    done = fvl_here(built, "shards", "check", "out")
    assert done.returncode == 1
    assert ["checksum", "1"] in cells(done.stdout)


def test_index_says_what_a_foreign_tar_holds(tmp_path: Path, fvl_here: Run) -> None:
    with tarfile.open(tmp_path / "theirs.tar", "w") as archive:
        for name in ("a.jpg", "a.txt", "a.pkl", "b.json", "../c.json"):
            archive.addfile(tarfile.TarInfo(name))
    for _ in range(2):
        done = fvl_here(tmp_path, "shards", "index", "*.tar")
        assert done.returncode == 0, done.stderr
        assert "1 shard, 2 samples, 1 image: 1 cannot be used" in done.stdout
        assert ["unsafe name", "theirs.tar", "../c.json"] in [row[:3] for row in cells(done.stdout)]
        assert "passed over: 1 pkl" in done.stdout
        assert index_path(tmp_path / "theirs.tar").is_file()


def test_damaged_tars_are_told_in_one_line_for_all(built: Path, fvl_here: Run) -> None:
    content = (built / "out" / "train-000000.tar").read_bytes()
    (built / "bad").mkdir()
    for number in range(4):
        (built / "bad" / f"{number}.tar").write_bytes(content[: len(content) - 5000 * number])
    indexed = fvl_here(built, "shards", "index", "bad", "--processes", "1")
    assert indexed.stderr == ""
    assert indexed.stdout.count(DAMAGED) == 1
    again = fvl_here(built, "shards", "info", "bad", "--processes", "1")
    damaged = [line for line in again.stderr.splitlines() if DAMAGED in line]
    assert len(damaged) == 1
    assert " of 4 shards are damaged (such as bad/1.tar)" in damaged[0]


def test_info_counts(built: Path, fvl_here: Run) -> None:
    (built / "copy.tar").write_bytes((built / "out" / "train-000000.tar").read_bytes())
    done = fvl_here(built, "shards", "info", "out", "--json", "numbers.json")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((built / "numbers.json").read_text(encoding="utf-8"))
    assert (numbers["samples"], numbers["images"], numbers["shards"]) == (3, 3, 1)
    assert numbers["sources"] == {"[red]": 2, "walls": 1}
    assert numbers["measures"]["width"]["p100"] == 42
    table = cells(done.stdout)
    assert ["[red]", "2"] in table
    assert ["jpg", "3"] in table
    assert re.search(r"image width +41\.0 +40 +40 +41 +42 +42\s*$", done.stdout, re.MULTILINE)
    assert "text tokens" not in done.stdout
    assert "the same as" not in done.stdout
    twice = fvl_here(built, "shards", "info", "out/train-000000.tar", "copy.tar", "--json", "numbers.json")
    assert twice.returncode == 0, twice.stderr
    assert json.loads((built / "numbers.json").read_text(encoding="utf-8"))["duplicates"] == 3
    assert "3 samples are the same as an earlier one, in text and images" in twice.stdout


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (9999, "9,999"), (10_000, "10.0k"), (185_273, "185k"), (1_234_567, "1.2M"), (3e12, "3.0T")],
)
def test_large_numbers_are_short(number: float, words: str) -> None:
    assert _short(number) == words


def test_info_counts_tokens_with_a_tokenizer(built: Path, tiny_data: Path, fvl_here: Run) -> None:
    done = fvl_here(built, "shards", "info", "out", "--tokenizer", str(tiny_data / "demo" / "tokenizer"))
    assert done.returncode == 0, done.stderr
    assert "supervised tokens" in done.stdout


def test_preview_draws_and_prints(built: Path, tiny_data: Path, fvl_here: Run) -> None:
    plain = fvl_here(built, "shards", "preview", "out", "--output", "sheet.png")
    assert plain.returncode == 0, plain.stderr
    assert "user: <image> \nhow red is 0?" in plain.stdout
    with Image.open(built / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[2] == 3
    assert ((pixels[..., 0] > 80) & (pixels[..., 1] < 20)).sum() > 40 * 30
    taught = fvl_here(built, "shards", "preview", "out", "--tokenizer", str(tiny_data / "demo" / "tokenizer"))
    assert taught.returncode == 0, taught.stderr
    assert len(re.findall(r"⟦\d+<.+?>⟧", taught.stdout)) == 3
    assert re.search(r"\d+ of \d+ tokens supervised", taught.stdout)


def test_order_lists_the_samples_that_a_run_logs(workspace: Path, fvl_here: Run) -> None:
    """The number under the list is the one that the run has logged for that step, accumulated batches together."""
    words = (*TINY, "trainer.max_steps=4", "trainer.batch_size=4", "trainer.accumulate=2", "trainer.log_every=1")
    done = fvl_here(workspace, "train", "experiments/demo/finetune.yaml", *words)
    assert done.returncode == 0, done.stderr
    run = RunFolder(workspace / "runs" / "finetune")
    logged = dict(run.curve("data/step_keys"))
    assert len(set(logged.values())) == len(logged) == 4
    for step, number in logged.items():
        listed = fvl_here(workspace, "shards", "order", "runs/finetune/config.yaml", "--step", str(step))
        assert listed.returncode == 0, listed.stderr
        assert f"data/step_keys: {number:.0f}, if" in listed.stdout
        rows = cells(listed.stdout)
        assert len(rows) == 4 * 2
        (folder,) = {Path(row[0]).parent for row in rows}
        assert {row[1] for row in rows} <= set(SampleStore.open(workspace / folder, "train").keys)


def test_order_names_the_sets_of_a_mixture(built: Path, tiny_data: Path, fvl_here: Run) -> None:
    furnish(built, tiny_data)
    for name in ("one", "two"):
        words = (*SOURCE, f"output={name}", "splits={train: 0.9999999, validation: 0.0000001}", "processes=1")
        assert fvl_here(built, "shards", "build", *words).returncode == 0
    there = "{train: [one], validation: [one]}"
    words = ("data=shards", f"data.datasets={{a: {{shards: {there}}}, b: {{root: two}}}}", "trainer.batch_size=6")
    done = fvl_here(built, "shards", "order", "experiments/demo/finetune.yaml", "--step", "2", *words)
    assert done.returncode == 0, done.stderr
    assert sorted((row[2], row[0]) for row in cells(done.stdout)) == [
        *[("a", "one/train-000000.tar")] * 3,
        *[("b", "two/train-000000.tar")] * 3,
    ]


MISTAKES = [
    (("build", "llava_jsn"), "did you mean 'llava_json'?"),
    (("build", "no.yaml"), "no configuration file no.yaml"),
    (("build", "llava_json", "source.file=b.json", "source.images=photos"), "no file b.json; did you mean 'a.json'?"),
    (("build", "llava_json", "source.fil=a.json"), "did you mean 'file'?"),
    (("build", "llava_json", "source.file=a.json", "source.images=photos", "--part", "3/2"), "'3/2' is not i/n with"),
    (("build", "llava_json", "a.json"), "'a.json' on the command line is not key=value"),
    (("check", "shardz"), "shardz"),
    (("info", "photos"), "photos"),
    (("index", "a.json"), "a.json"),
    (("info", "out", "--json", "nowhere/x.json"), "--json: there is no folder nowhere"),
    (("preview", "out", "--output", "sheet.jpg"), "--output: sheet.jpg must be a .png file"),
    (("preview", "out", "--tokenizer", "./nothing"), "--tokenizer: there is no folder ./nothing, and it is no hub id"),
    (("info", "out", "--tokenizer", "data/demo/tokenizer"), "--tokenizer: there is no folder data/demo/tokenizer, and"),
    (("info", "out", "--tokenizer", "photos"), "--tokenizer: photos could not be read"),
    (("build", "llava_json", "source.file=photos", "source.images=photos"), "photos is a folder: name the files in it"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES, ids=lambda value: " ".join(value)[:40] if value else "")
def test_a_mistake_is_one_sentence(words: tuple[str, ...], sentence: str, built: Path, fvl_here: Run) -> None:
    done = fvl_here(built, "shards", *words)
    assert done.returncode == 2, done.stdout
    assert sentence in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
