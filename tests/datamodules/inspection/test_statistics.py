"""Numbers about a set, against a set whose numbers are known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.inspection.statistics import NO_SOURCE, Statistics, collect_statistics
from datamodules.storage.sample_store import SampleStore


@pytest.fixture
def store(tmp_path: Path, write_split: Callable[..., Path], make_talk: Any, image_bytes: Any) -> SampleStore:
    """400 samples over two shards; nearly all of one image of 8 x 6, a question, an answer and a caption."""
    samples = {
        0: ({**make_talk("hm?", "yes", images=2), "source": "a"}, [image_bytes(1, (30, 7)), image_bytes(2, (100, 9))]),
        1: ({"caption": "wall", "source": 7}, [image_bytes()]),
        2: ({"messages": [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cde"}]}, []),
        3: ({"messages": []}, [image_bytes()]),
        4: ({"caption": "broken", "source": "a"}, [b"not an image"]),
        5: ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}], "source": "a"}, [image_bytes()]),
    }
    write_split(tmp_path, "train", 400, samples, samples_per_shard=300)
    return SampleStore.open(str(tmp_path), "train")


@pytest.fixture
def encoder(tokenizer: Any) -> ConversationEncoder:
    return ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 0)


def test_what_is_counted(store: SampleStore, image_bytes: Any) -> None:
    statistics = collect_statistics(store, processes=1)
    summary = statistics.summary()
    assert (summary["shards"], summary["samples"]) == (2, 400)
    assert summary["bytes"] == sum(Path(shard).stat().st_size for shard in store.shards)
    assert summary["images"] == 2 + 1 + 0 + 1 + 394
    assert summary["sources"] == {NO_SOURCE: 396, "a": 2}
    assert summary["unusable"] == {"no messages": 1, "broken image": 1}
    assert summary["extensions"] == {"png": 398}
    measures = summary["measures"]
    assert list(measures) == ["images", "width", "height", "image_bytes", "characters", "turns"]
    assert measures["width"] == {
        "total": 30 + 100 + 396 * 8,
        "mean": pytest.approx((130 + 396 * 8) / 398),
        "p0": 8,
        "p5": 8,
        "p50": 8,
        "p95": 8,
        "p100": 100,
    }
    assert measures["image_bytes"]["p100"] == len(image_bytes(2, (100, 9)))
    characters = measures["characters"]
    assert characters["p0"] == 0
    assert characters["p100"] == len("how dark is 399?399")
    assert measures["images"]["p0"] == 0
    assert measures["turns"] == {"total": 398, "mean": 1.0, "p0": 1, "p5": 1, "p50": 1, "p95": 1, "p100": 1}


def test_empty_answers_and_duplicates_are_counted(
    tmp_path: Path, write_split: Callable[..., Path], make_talk: Any, image_bytes: Any
) -> None:
    silent = {"messages": [{"role": role, "content": said} for role, said in (("user", "?"), ("assistant", " \n"))]}
    samples = {
        0: (silent, []),
        1: ({"caption": "a", "id": 1}, [image_bytes(1)]),
        2: ({"caption": "a", "id": 2}, [image_bytes(1)]),
        3: ({"caption": "a", "id": 1}, [image_bytes(2)]),
        4: ({"caption": "b", "id": 1}, [image_bytes(1)]),
        5: ({"caption": "a", "id": 1}, [image_bytes(1)] * 2),
        299: ({"caption": "a", "id": 9}, [image_bytes(1)]),
        6: ({"caption": ""}, [image_bytes(1)]),
    }
    write_split(tmp_path, "train", 300, samples)
    for processes in (1, 2):
        summary = collect_statistics(SampleStore.open(str(tmp_path), "train"), processes=processes).summary()
        assert (summary["empty_answers"], summary["duplicates"]) == (2, 2)


def test_tokens_are_those_of_training_without_the_images(store: SampleStore, encoder: ConversationEncoder) -> None:
    statistics = collect_statistics(store, encoder, processes=1)
    assert statistics.unusable == {"no messages": 1, "broken image": 1, "not encodable": 1}
    ids, labels = encoder.encode(store.record(0)["messages"])
    assert statistics.measured["tokens"][0] == len(ids)
    assert statistics.measured["supervised"][0] == sum(label >= 0 for label in labels)
    caption = encoder.caption("wall")
    assert statistics.measured["tokens"][1] == len(caption[0])
    assert encoder.image_token_id not in ids


def test_processes_change_nothing(store: SampleStore, encoder: ConversationEncoder) -> None:
    done: list[int] = []
    one, two = collect_statistics(store, encoder, 1), collect_statistics(store, encoder, 2, done.append)
    assert one == two
    assert sum(done) == 400
    assert len(done) > 1


def test_nothing_is_said_of_what_is_not_there() -> None:
    summary = Statistics().summary()
    assert not any(summary.values()), summary
    assert summary["measures"] == {}
