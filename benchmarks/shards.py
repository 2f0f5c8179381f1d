"""What building, reading and opening shards costs, beside plain webdataset on the same files.

    python benchmarks/shards.py [--images 2000] [--repeats 5] [--index-samples 1000000]

One process with one thread reads or writes; what is compared takes turns, and of each the median counts. The pictures
are drawn: JPEGs of 640 x 480 with about the bytes of a photograph. All files are in the page cache, so that the code is
measured and not the disk. The table is also saved, with the machine it was measured on, in
benchmarks/results/shards.json.

    build      `fvl shards build` of a LLaVA JSON, which decodes every image; beside webdataset's ShardWriter,
               which looks at nothing, and the same writer after decoding every image
    raw        JSON and encoded images: every sample by its number, in random order; beside webdataset's stream
    336, 768   pixels for an encoder of that size, with the same functions for decoding and resizing on both sides
    index      a store of many samples in 100 shards: seconds until it is open, and the memory it then holds
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recording import record
from rich.console import Console
from rich.table import Table

from datamodules.building.builder import build_shards
from datamodules.building.config import BuildConfig
from datamodules.images.decoding import decode_image
from datamodules.images.transforms import to_pixels
from datamodules.storage.index import index_path, make_index, save_index
from datamodules.storage.sample_store import SampleStore
from fvl_lightning.core.config.loading import check_config
from fvl_lightning.core.types import ImageSpec

os.environ["WDS_SECURE"] = "0"  # plain webdataset, on files of our own: under WDS_SECURE=1 it opens no local file
import webdataset

SIZES = (336, 768)
INDEX_SHARDS = 100
GOALS = {"raw": "5", "336": "1", "768": "1"}
"""The ratio that is wanted, where one is."""


def main() -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--index-samples", type=int, default=1_000_000)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = draw_pictures(folder / "photos", words.images)
        image_bytes = statistics.mean(path.stat().st_size for path in pictures)
        built = measure_build(folder, pictures, words.repeats)
        looked = {"webdataset": built.pop("webdataset, decoding"), "here": built["here"]}
        rows = {"build": built, "build, both decode": looked}
        rows |= measure_reads(folder / "shards", words.images, words.repeats)
        index = measure_index(folder / "million", words.index_samples)
    show(rows, index)
    measured = {"image_bytes": image_bytes, "samples_per_second": rows, "index": index}
    record("shards", {**vars(words), **measured})


def draw_pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs of 640 x 480: smooth colours with noise at several scales, which costs a decoder what a photograph does."""
    folder.mkdir()
    random = np.random.default_rng(0)
    paths = [folder / f"{number:06d}.jpg" for number in range(count)]
    for path in paths:
        layers = (random.normal(128, 40, (480 // cell, 640 // cell, 3)) for cell in (160, 40, 10, 2))
        images = [Image.fromarray(layer.clip(0, 255).astype(np.uint8)).resize((640, 480)) for layer in layers]
        pixels = np.mean([np.asarray(image, dtype=np.float32) for image in images], axis=0) * 1.6 - 76
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return paths


def measure_build(folder: Path, pictures: list[Path], repeats: int) -> dict[str, float]:
    """Images per second of one process; leaves the shards in `folder`/shards."""
    rows = [
        {
            "image": path.name,
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is in picture {path.stem}?"},
                {"from": "gpt", "value": f"Colours and noise, and they are those of number {path.stem}."},
            ],
        }
        for path in pictures
    ]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")

    def ours(output: Path) -> None:
        source = {"name": "llava_json", "file": str(folder / "rows.json"), "images": str(pictures[0].parent)}
        values = {"source": source, "output": str(output), "processes": 1, "samples_per_shard": 1000}
        build_shards(check_config(BuildConfig, values))

    def theirs(output: Path, look: bool) -> None:
        output.mkdir()
        with webdataset.ShardWriter(str(output / "train-%06d.tar"), maxcount=1000, verbose=0) as writer:
            for row, path in zip(rows, pictures, strict=True):
                content = path.read_bytes()
                if look:
                    decode_image(content)
                writer.write({"__key__": path.stem, "json": json.dumps(row), "jpg": content})

    runs = {"webdataset": lambda o: theirs(o, False), "webdataset, decoding": lambda o: theirs(o, True), "here": ours}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            output = folder / (f"{name}-{number}" if (name, number) != ("here", 0) else "shards")
            seconds[name].append(timed(run, output))
    return {name: len(pictures) / statistics.median(times) for name, times in seconds.items()}


def measure_reads(shards: Path, count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Samples per second that one process reads, undecoded and as pixels."""
    store = SampleStore.open(str(shards), "train")
    order = np.random.default_rng(1).permutation(count).tolist()
    tars = sorted(map(str, shards.glob("train-*.tar")))
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)

    def pixels(image: np.ndarray, size: int) -> torch.Tensor:
        return to_pixels([image], ImageSpec(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1))

    def here(size: int) -> None:
        for i in order:
            store.record(i)
            pixels(store.images(i)[0], size)

    def there(size: int) -> None:
        for sample in stream:
            json.loads(sample["json"])
            pixels(decode_image(sample["jpg"]), size)

    pairs: dict[str, dict[str, Callable[[], object]]] = {
        "raw": {"webdataset": lambda: exhaust(stream), "here": lambda: exhaust(map(store.read, order))}
    }
    for size in SIZES:
        pairs[str(size)] = {"webdataset": lambda size=size: there(size), "here": lambda size=size: here(size)}
    rates = {}
    for name, pair in pairs.items():
        seconds: dict[str, list[float]] = {side: [] for side in pair}
        for number in range(repeats):
            # Who goes first changes, as what runs second may find the machine in another state.
            for side, run in sorted(pair.items(), reverse=bool(number % 2)):
                seconds[side].append(timed(run))
        rates[name] = {side: count / statistics.median(times) for side, times in seconds.items()}
    return rates


def measure_index(folder: Path, count: int) -> dict[str, float]:
    """Seconds and megabytes of a store of `count` samples, each a JSON and an image, opened in a process of its own.

    The tars are of the right size and empty: nothing of them is read to open a store.
    """
    folder.mkdir()
    each = count // INDEX_SHARDS
    for shard in range(INDEX_SHARDS):
        tar = folder / f"train-{shard:06d}.tar"
        fabricate(tar, shard * each, each)
    done = subprocess.run(
        [sys.executable, __file__, "--open", str(folder)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def fabricate(tar: Path, first: int, samples: int) -> None:
    """An index of samples with a JSON of 1 kB and an image of 100 kB each, and a hole of the tar's size."""
    length = 512 + 1024 + 512 + 100 * 1024

    def sample(number: int) -> tuple[bytes, list[tuple[str, int, int]]]:
        start = number * length + 512
        key = f"{(first + number) // 64:08d}-{(first + number) % 64:06d}".encode()
        return key, [("json", start, 1000), ("jpg", start + 1024 + 512, 100 * 1000)]

    with tar.open("wb") as file:
        file.truncate(samples * length + 1024)
    save_index(make_index(map(sample, range(samples)), samples * length + 1024), index_path(tar))


def open_million(folder: str) -> None:
    """Opens the store once and prints what that took, as JSON; runs in a process of its own."""
    before = resident_bytes()
    start = time.perf_counter()
    store = SampleStore.open(folder, "train")
    seconds = time.perf_counter() - start
    result = {"samples": len(store), "seconds": seconds, "megabytes": (resident_bytes() - before) / 1e6}
    sys.stdout.write(json.dumps(result))


def resident_bytes() -> int:
    """Memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def timed(call: Callable[..., object], *arguments: object) -> float:
    """Seconds that `call` takes."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def exhaust(samples: Iterable[Any]) -> None:
    """Reads all there is."""
    for _ in samples:
        pass


def show(rows: dict[str, dict[str, float]], index: dict[str, float]) -> None:
    """Prints the table."""
    table = Table(title="Samples per second of one process")
    for column in ("", "webdataset", "here", "ratio", "goal"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        goal = GOALS.get(name, "")
        ratio = row["here"] / row["webdataset"]
        table.add_row(name, f"{row['webdataset']:,.0f}", f"{row['here']:,.0f}", f"{ratio:.2f}", goal)
    console = Console()
    console.print(table)
    console.print(
        f"index of {index['samples']:,} samples: open in {index['seconds']:.2f} s, {index['megabytes']:.0f} MB "
        "(goal: under 1 s and 100 MB)",
        highlight=False,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--open"]:
        open_million(sys.argv[2])
    else:
        main()
