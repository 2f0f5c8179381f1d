"""Small datasets that the tests of the data share; no test changes them."""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from datamodules.demo.data import DemoData
from datamodules.demo.scenes import ALL_SPLITS
from datamodules.encoding.messages import image_parts
from datamodules.storage.writer import ShardWriter
from fvl_lightning.core.types import DataContext, ImageSpec

COUNTS = {"train_images": 300, "validation_images": 37, "test_images": 60, "unseen_images": 20}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def make_demo(demo_root: Path) -> Callable[..., DemoData]:
    """Returns a function that makes a prepared DemoData of a small set; it takes fields of the Config by name."""

    def make(**fields: Any) -> DemoData:
        data = DemoData(DemoData.Config(root=str(demo_root), **{**COUNTS, **fields}))
        data.prepare_data()
        return data

    return make


@pytest.fixture(scope="session")
def tokenizer(make_demo: Callable[..., DemoData]) -> Any:
    return AutoTokenizer.from_pretrained(make_demo().tokenizer_path)


@pytest.fixture(scope="session")
def make_context(tokenizer: Any) -> Callable[..., DataContext]:
    """Returns a function that makes a DataContext with the demo's tokenizer, 4 tokens per image and batches of 8."""

    def make(**fields: Any) -> DataContext:
        defaults: dict[str, Any] = {
            "image": ImageSpec(64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 4),
            "tokenizer": tokenizer,
            "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
            "tasks": ("caption", "ocr", "grounding"),
            "batch_size": 8,
            "seed": 3,
        }
        return DataContext(**{**defaults, **fields})

    return make


def encoded_image(shade: int = 0, size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """Returns an encoded image of one shade with a red corner, width x height."""
    pixels = np.full((size[1], size[0], 3), shade, dtype=np.uint8)
    pixels[0, 0] = (255, 0, 0)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def talk(question: str, answer: str, images: int = 1) -> dict[str, Any]:
    """Returns a record of one turn with that many image parts."""
    parts = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    return {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}],
        "caption": f"about {answer}",
        "ocr": "no text",
        "boxes": [{"label": "thing", "box": [0.0, 0.25, 0.5, 1.0]}],
    }


@pytest.fixture
def write_split() -> Callable[..., Path]:
    """Writes `count` samples (keys s0, s1 ...) of one image each; `replaced` {number: (record, images)} differ."""

    def write(
        folder: Path,
        split: str,
        count: int,
        replaced: dict[int, tuple[dict[str, Any], list[bytes]]] | None = None,
        samples_per_shard: int = 1000,
    ) -> Path:
        with ShardWriter(folder, split, samples_per_shard) as writer:
            for i in range(count):
                record, images = (replaced or {}).get(i, (talk(f"how dark is {i}?", str(i)), [encoded_image(i % 256)]))
                writer.write(f"s{i}", record, images)
        return folder

    return write


@pytest.fixture
def image_bytes() -> Callable[..., bytes]:
    return encoded_image


@pytest.fixture
def make_talk() -> Callable[..., dict[str, Any]]:
    return talk


@pytest.fixture
def splits() -> tuple[str, ...]:
    return ALL_SPLITS


@pytest.fixture(scope="session")
def write_long_talks() -> Callable[..., None]:
    """Writes `count` samples of 1 to 4 turns and 0 to 2 images each; with `bad`, the fourth cannot be used."""

    def write(folder: Path, split: str, count: int, prefix: str = "s", bad: bool = False) -> None:
        with ShardWriter(folder, split, samples_per_shard=6) as writer:
            for i in range(count):
                images = (1, 0, 2)[i % 3]
                first = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": f"what is {i}?"}]
                messages: list[dict[str, Any]] = []
                for turn in range(1 + i % 4):
                    asked: Any = f"and {turn} more?" if turn else first
                    messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": f"{i} {turn}"}]
                record = {"messages": "none" if bad and i == 3 else messages}
                writer.write(f"{prefix}{i}", record, [encoded_image((i * 7 + n) % 256) for n in range(images)])

    return write


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Starts a server with S3's interface and returns its address."""
    from moto.server import ThreadedMotoServer  # a second of imports that few tests need

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Makes an empty bucket for each test, which s3fs finds through environment variables."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = boto3.resource("s3").Bucket(f"bucket-{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}")
    made.create()
    return made


@pytest.fixture(scope="session")
def write_talks() -> Callable[..., None]:
    """Writes conversations as samples s0, s1 ..., each with as many images as it has image parts."""

    def write(folder: Path, split: str, talks: list[list[dict[str, Any]]]) -> None:
        with ShardWriter(folder, split, samples_per_shard=1000) as writer:
            for i, messages in enumerate(talks):
                images = [encoded_image((i * 7 + n) % 256) for n in range(image_parts(messages))]
                writer.write(f"s{i}", {"messages": messages, "caption": "about it"}, images)

    return write
