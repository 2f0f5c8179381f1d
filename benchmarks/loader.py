"""What packing saves, what a batch costs beside plain webdataset, and how long a resume takes.

    python benchmarks/loader.py [--images 2000] [--repeats 5] [--samples 1000000]

    fill       the part of all row positions that holds tokens, in a pass over the data: packed, padded in batches of
               32 of like length, and padded as drawn; for the demo set's conversations, and for lengths drawn like
               those of LLaVA's instruction data with 576 tokens per image
    batches    rows per second, pixels included, of the demo set's conversations: shards of the kit's reader beside a
               webdataset stream whose samples are decoded, tokenised and padded by the same functions
    resume     seconds from a position in the middle of an epoch to the first row of a packed epoch of many samples:
               lengths read from their file, order and window worked out

Each of what is compared takes its turn, and of each the median counts. One thread per process. The table is also saved,
with the machine it was measured on, in benchmarks/results/loader.json.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recording import record
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from datamodules.batching.collate import EncodedSample, row_collate
from datamodules.batching.lengths import read_items, write_items
from datamodules.batching.mixture_order import GlobalOrder
from datamodules.batching.rows import WINDOW, Layout, RowOrder, Rows, TrainRows
from datamodules.demo.data import DemoData
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.items import Items, Piece
from datamodules.encoding.views import Encoded
from datamodules.images.decoding import decode_image
from datamodules.shards import ShardsData
from datamodules.storage.writer import ShardWriter
from fvl_lightning.core.types import DataContext, ImageSpec

os.environ["WDS_SECURE"] = "0"  # plain webdataset, on files of our own: under WDS_SECURE=1 it opens no local file
import webdataset

BATCH = 32
LAYOUTS: tuple[Layout, ...] = ("packed", "grouped", "padded")


def main() -> None:
    """Measures, prints the tables and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1_000_000)
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        demo = DemoData(DemoData.Config(root=f"{name}/demo", train_images=words.images))
        demo.prepare_data()
        context = context_of(demo)
        data = in_several_shards(demo, Path(name) / "shards")
        fills = {
            "demo, rows of 512": fill_of(demo_lengths(data, context), 512),
            "like LLaVA's, rows of 4096": fill_of(llava_like_lengths(100_000), 4096),
        }
        rates = measure_batches(data, context, words.repeats)
        resume = measure_resume(Path(name), words.samples, words.repeats)
    show(fills, rates, resume)
    record("loader", {**vars(words), "fill": fills, "rows_per_second": rates, "resume": resume})


def context_of(data: DemoData) -> DataContext:
    """As the demo's model has it: 16 tokens per image."""
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_path)
    spec = ImageSpec(64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 16)
    return DataContext(spec, tokenizer, tokenizer.convert_tokens_to_ids("<image>"), (), BATCH, seed=0)


def in_several_shards(demo: DemoData, folder: Path) -> ShardsData:
    """The demo set in four shards, since webdataset gives a shard to one worker only."""
    for split in ("train", "validation"):
        store = demo.store(split)
        with ShardWriter(folder, split, samples_per_shard=-(-len(store) // 4)) as writer:
            for i in range(len(store)):
                writer.write(store.key(i), store.record(i), [bytes(image) for image in store.read(i).images])
    data = ShardsData(ShardsData.Config(root=str(folder), sequence_length=512))
    data.prepare_data()
    return data


def demo_lengths(data: ShardsData, context: DataContext) -> NDArray[np.int32]:
    """Tokens of every conversation of the train split."""
    data.connect(context)
    store, view = data.store("train"), data.view("conversation")
    measured = (view.measure(store, i).pieces for i in range(len(store)))
    return np.array([sum(tokens for _, tokens in pieces) for pieces in measured], dtype=np.int32)


def llava_like_lengths(samples: int) -> NDArray[np.int32]:
    """94 in 100 with an image of 576 tokens; text log-normal around 200 tokens, up to the row; seed 0."""
    random = np.random.default_rng(0)
    text = np.exp(random.normal(np.log(200), 0.8, samples))
    images = 576 * (random.random(samples) < 0.94)
    return np.clip(text + images, 16, 4096).astype(np.int32)


def fill_of(lengths: NDArray[np.int32], capacity: int) -> dict[str, float]:
    """Tokens divided by row positions, per layout."""
    found = {}
    for layout in LAYOUTS:
        order = RowOrder(GlobalOrder([len(lengths)], 0), items_of(lengths), layout, capacity)
        tokens = positions = 0
        batches = max(1, int(lengths.sum() / capacity / BATCH))
        for rows in itertools.islice(TrainRows(order, BATCH), batches):
            sums = [sum(int(lengths[piece.sample]) for piece in row) for row in rows.rows]
            tokens += sum(sums)
            positions += len(sums) * (capacity if layout == "packed" else max(sums))
        found[layout] = tokens / positions
    return found


def items_of(lengths: NDArray[np.int32]) -> Items:
    """Whole samples of these lengths."""
    whole = Items.whole(range(len(lengths)))
    return Items(whole.samples, whole.first_turn, whole.last_turn, lengths)


def measure_batches(data: ShardsData, context: DataContext, repeats: int) -> dict[str, float]:
    """Rows per second of one pass, for 0 and 2 workers, ours and webdataset's in turn."""
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for workers in (0, 2):
            for name, batches in (("kit", our_batches), ("webdataset", their_batches)):
                start = time.perf_counter()
                rows = sum(len(batch.token_ids) for batch in batches(data, context, workers))
                found.setdefault(f"{name}, {workers} workers", []).append(rows / (time.perf_counter() - start))
    return {name: statistics.median(rates) for name, rates in found.items()}


def our_batches(data: ShardsData, context: DataContext, workers: int) -> Iterator[Any]:
    """One pass through the kit's loader."""
    data.config.workers = workers
    data.connect(context)
    return itertools.islice(iter(data.train_dataloader()), len(data.store("train")) // BATCH)


def their_batches(data: ShardsData, context: DataContext, workers: int) -> Iterator[Any]:
    """One pass through webdataset's stream, with the kit's own functions for images, tokens and rows."""
    encoder = ConversationEncoder(context.tokenizer, context.image_token_id, context.image.tokens_per_image)
    collate = row_collate(context, with_features=False, packed=False, datasets=[], fit="stretch")

    def sample(found: dict[str, Any]) -> EncodedSample:
        record = json.loads(found["json"])
        rows = [encoder.encode(record["messages"])]
        return EncodedSample(found["__key__"], 0, Encoded(rows, 1), [decode_image(found["png"])])

    def batch(samples: list[EncodedSample]) -> Any:
        return collate([[one] for one in samples], Rows((tuple(Piece(0) for _ in samples),), 0))

    shards = [str(shard) for shard in data.store("train").shards]
    stream = webdataset.WebDataset(shards, shardshuffle=False, workersplitter=webdataset.split_by_worker)
    stream = stream.shuffle(1000).map(sample).batched(BATCH, collation_fn=batch, partial=False)
    return iter(DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=None))


def measure_resume(folder: Path, samples: int, repeats: int) -> dict[str, float]:
    """Seconds until the first row after a position in the middle of the epoch."""
    path = folder / "lengths.npz"
    write_items(items_of(llava_like_lengths(samples)), path)
    position = samples // 2 // WINDOW * WINDOW + 100

    def first_row() -> None:
        items = read_items(path)
        assert items is not None
        order = RowOrder(GlobalOrder([len(items)], 0), items, "packed", 4096)
        next(iter(TrainRows(order, BATCH, position)))

    return {"samples": samples, "seconds": statistics.median(timed(first_row) for _ in range(repeats))}


def timed(call: Callable[[], object]) -> float:
    """Seconds that `call` takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def show(fills: dict[str, dict[str, float]], rates: dict[str, float], resume: dict[str, float]) -> None:
    """The three results as tables."""
    table = Table("fill of the rows", *LAYOUTS)
    for name, row in fills.items():
        table.add_row(name, *(f"{row[layout]:.3f}" for layout in LAYOUTS))
    Console().print(table)
    table = Table("rows per second", "kit", "webdataset", "ratio")
    for workers in (0, 2):
        ours, theirs = rates[f"kit, {workers} workers"], rates[f"webdataset, {workers} workers"]
        table.add_row(f"{workers} workers", f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}")
    Console().print(table)
    Console().print(f"resume among {resume['samples']:,.0f} samples: {resume['seconds']:.2f} s")


if __name__ == "__main__":
    main()
