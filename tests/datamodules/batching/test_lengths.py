"""What is drawn from a split: pieces with their planned tokens, measured once, and never longer than a row."""

import copy
import logging
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from datamodules.batching.lengths import _identity
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.items import Piece
from datamodules.encoding.over_long import some_turns
from datamodules.encoding.views import CaptionView
from datamodules.shards import DatasetConfig, ShardsData
from fvl_lightning.core.chat_date import dated
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import DataContext
from tests.datamodules.encoding.templates import tokenizer_of

Write = Callable[..., Path]
MakeContext = Callable[..., DataContext]
ROW = 40
ROLES = ("user", "assistant")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_long_talks: Callable[..., None]) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    for split in ("train", "validation"):
        write_long_talks(folder, split, 24)
    return folder


def connected(folder: Path, context: DataContext, **fields: Any) -> ShardsData:
    data = ShardsData(ShardsData.Config(root=str(folder), **{"sequence_length": ROW, **fields}))
    data.prepare_data()
    data.connect(context)
    return data


def drawn(data: ShardsData) -> Any:
    return data.train_dataloader().rows.order.items


@pytest.mark.parametrize("over_long", ["truncate", "split", "drop"])
def test_planned_tokens_are_those_of_the_rows(folder: Path, make_context: MakeContext, over_long: str) -> None:
    data = connected(folder, make_context(), packing="best_fit", over_long=over_long)
    store, view, items = data.store("train"), data.view("conversation"), drawn(data)
    lengths = [len(view.encode(store, items[number]).rows[0][0]) for number in range(len(items))]
    assert lengths == items.tokens.tolist()
    assert max(lengths) <= ROW
    too_long = [i for i in range(24) if len(data.encoder.encode(store.record(i)["messages"])[0]) > ROW]
    assert too_long
    samples = items.samples.tolist()
    if over_long == "drop":
        assert samples == [i for i in range(24) if i not in too_long]
        assert items.counts == {"dropped": len(too_long)}
    elif over_long == "truncate":
        assert items.counts == {"truncated": len(too_long)}
    if over_long != "drop":
        assert sorted(set(samples)) == list(range(24))
        assert (len(samples) > 24) == (over_long == "split")


def test_lengths_are_of_the_texts_as_they_are(tmp_path: Path, make_context: MakeContext, write_split: Write) -> None:
    """An edit of the same length in bytes makes other tokens; the file beside the shards is made again."""
    for split in ("train", "validation"):
        write_split(tmp_path, split, 3)
    before = drawn(connected(tmp_path, make_context(), packing="best_fit")).tokens.tolist()
    tar = tmp_path / "train-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"how dark is", b"howxdark is"))
    data = connected(tmp_path, make_context(), packing="best_fit")
    store, view, items = data.store("train"), data.view("conversation"), drawn(data)
    assert [len(view.encode(store, items[number]).rows[0][0]) for number in range(3)] == items.tokens.tolist() != before


def test_pieces_of_a_conversation_are_all_of_it(folder: Path, make_context: MakeContext, tokenizer: Any) -> None:
    """Every answer once, in order, each piece with the images shown before it."""
    data = connected(folder, make_context(), packing="best_fit", over_long="split")
    store, view, items = data.store("train"), data.view("conversation"), drawn(data)
    answers: dict[int, list[str]] = {}
    for number in range(len(items)):
        encoded = view.encode(store, items[number])
        ids, labels = encoded.rows[0]
        assert ids.count(data.context.image_token_id) == 4 * encoded.images
        assert encoded.images == store.image_count(items[number].sample)  # all are shown in the first turn
        said = tokenizer.decode([label for label in labels if label >= 0]).split("<eos>")[:-1]
        answers.setdefault(items[number].sample, []).extend(said)
    for sample, said in answers.items():
        wanted = [m["content"] for m in store.record(sample)["messages"] if m["role"] == "assistant"]
        assert said == wanted
    assert items.counts["split"] == len([s for s in answers if items.samples.tolist().count(s) > 1])


@pytest.mark.parametrize("over_long", ["truncate", "split", "drop"])
def test_every_sample_is_accounted_for_by_kind(
    tmp_path: Path, make_context: MakeContext, write_split: Write, caplog: pytest.LogCaptureFixture, over_long: str
) -> None:
    """One whole, one of a single long answer, one to split, one with a long answer between short ones."""
    short, long = ("what is it?", "it is a"), ("what is it?", "it is " * 60)
    samples = {}
    for number, turns in enumerate(([short], [long], [short] * 6, [short, long, short])):
        talk = [{"role": role, "content": said} for turn in turns for role, said in zip(ROLES, turn, strict=True)]
        samples[number] = ({"messages": talk}, [])
    for split in ("train", "validation"):
        write_split(tmp_path / "talks", split, 4, samples)
    datasets = {"talks": DatasetConfig(root=str(tmp_path / "talks"))}
    fields = {"sequence_length": ROW, "packing": "best_fit", "over_long": over_long}
    data = ShardsData(ShardsData.Config(datasets=datasets, **fields))
    data.prepare_data()
    data.connect(make_context())
    with caplog.at_level(logging.INFO):
        items = drawn(data)
    told = {
        "truncate": ("1 dropped as longer than sequence_length 40, 2 truncated", {0, 2, 3}),
        "split": ("1 dropped as longer than sequence_length 40, 2 split, 1 truncated", {0, 2, 3}),
        "drop": ("3 dropped as longer than sequence_length 40", {0}),
    }
    words, left = told[over_long]
    assert set(items.samples.tolist()) == left
    (record,) = [record for record in caplog.records if "samples" in record.message]
    advice = "; data.sequence_length and data.over_long define what is too long"
    assert record.message == f"train of talks, 4 samples: {words}{advice}"
    assert record.levelname == "WARNING"


def test_few_left_out_are_no_warning(folder: Path, make_context: MakeContext, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        drawn(connected(folder, make_context(), packing="best_fit", over_long="drop", max_bad_fraction=1.0))
    (record,) = [record for record in caplog.records if "dropped" in record.message]
    assert record.levelname == "INFO"
    assert record.message.startswith("train, 24 samples: ")


@pytest.mark.parametrize(("view", "other"), [("conversation", "caption"), ("caption", "conversation")])
@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_samples_of_the_other_view_are_told_with_the_setting(
    tmp_path: Path, make_context: MakeContext, write_split: Write, image_bytes: Any, view: str, other: str, packing: str
) -> None:
    records = {"conversation": {"caption": "a"}, "caption": {"messages": [{"role": "user", "content": "a"}]}}
    samples = {i: (records[view], [image_bytes()]) for i in range(20)}
    for split in ("train", "validation"):
        write_split(tmp_path, split, 20, samples)
    datasets = {"mine": DatasetConfig(root=str(tmp_path))}
    data = ShardsData(ShardsData.Config(datasets=datasets, view=view, packing=packing))
    data.prepare_data()
    data.connect(make_context())
    with pytest.raises(DataError, match=rf"`view: {other}` reads its (caption|messages)") as caught:
        next(iter(data.train_dataloader()))
    if packing == "best_fit":
        assert str(caught.value).startswith("no sample of train of mine can be used: 20 bad (no ")


def test_some_turns_of_a_conversation() -> None:
    image = {"type": "image"}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [image, {"type": "text", "text": "a?"}]},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b?"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [image]},
        {"role": "assistant", "content": "c"},
    ]
    assert some_turns(messages, 0, 3) == messages
    assert some_turns(messages, 0, 1) == messages[:3]
    shown = {"role": "user", "content": [image, {"type": "text", "text": "b?"}]}
    assert some_turns(messages, 1, 2) == [messages[0], shown, messages[4]]
    assert some_turns(messages, 2, 3) == [messages[0], {"role": "user", "content": [image, image]}, messages[6]]


def test_lengths_are_measured_once(
    folder: Path, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"packing": "best_fit", "over_long": "drop"}
    first = drawn(connected(folder, make_context(), **fields)).tokens.tolist()
    measured = list(folder.glob("train.lengths-*.npz"))
    times = {path: path.stat().st_mtime_ns for path in measured}
    assert drawn(connected(folder, make_context(), **fields)).tokens.tolist() == first
    assert {path: path.stat().st_mtime_ns for path in folder.glob("train.lengths-*.npz")} == times
    other = drawn(connected(folder, make_context(), **fields, planned_tokens_per_image=6)).tokens
    assert sum(other.tolist()) > sum(first) or len(other) < len(first)
    assert len(list(folder.glob("train.lengths-*.npz"))) == len(measured) + 1
    for path in measured:
        path.write_bytes(b"broken")
    with caplog.at_level(logging.WARNING):
        assert drawn(connected(folder, make_context(), **fields)).tokens.tolist() == first
    assert "cannot be read, so it is made again" in caplog.text


def test_workers_measure_the_same(folder: Path, tmp_path: Path, make_context: MakeContext, write_split: Write) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 600)
    alone = drawn(connected(tmp_path, make_context(), packing="best_fit"))
    for path in tmp_path.glob("*.lengths-*.npz"):
        path.unlink()
    together = drawn(connected(tmp_path, make_context(), packing="best_fit", workers=2))
    assert (together.samples == alone.samples).all()
    assert (together.tokens == alone.tokens).all()


def test_too_many_bad_samples_end_the_run_before_it_begins(
    tmp_path: Path, make_context: MakeContext, write_split: Write
) -> None:
    bad = {i: ({"caption": "x"}, [b"y"]) for i in range(0, 120, 10)}
    write_split(tmp_path, "train", 120, bad)
    write_split(tmp_path, "validation", 2)
    data = connected(tmp_path, make_context(), packing="best_fit", max_bad_fraction=0.05)
    with pytest.raises(DataError, match=r"12 of 120 samples of train cannot be used \(12 bad \(no messages\)\)"):
        data.train_dataloader()
    tiny = connected(tmp_path, make_context(), over_long="drop", sequence_length=3, max_bad_fraction=1.0)
    with pytest.raises(DataError, match=r"no sample of train can be used: 12 bad .*, 108 dropped"):
        tiny.train_dataloader()


@pytest.mark.parametrize("packing", ["none", "best_fit"])
def test_turns_that_a_template_writes_in_two_ways_end_the_run_with_what_to_do(
    tmp_path: Path,
    make_context: MakeContext,
    make_talk: Callable[..., Any],
    image_bytes: Callable[..., bytes],
    write_split: Write,
    packing: str,
) -> None:
    tokenizer = tokenizer_of("qwen_3")
    talk = make_talk("q", "a")
    talk["messages"] += make_talk("and?", "b", images=0)["messages"]
    for split in ("train", "validation"):
        write_split(tmp_path, split, 10, {i: (talk, [image_bytes()]) for i in range(10)})
    context = make_context(tokenizer=tokenizer, image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    with pytest.raises(DataError) as error:
        next(iter(connected(tmp_path, context, packing=packing).train_dataloader()))
    sentence = str(error.value)
    assert sentence.count("writes an answer differently once messages follow it") == 1
    assert sentence.count("set language_model.chat_template to one that writes all answers alike") == 1
    assert re.search(r"sample 's\d' in \S*train-000000\.tar: not encodable", sentence)
    assert "\n" not in sentence


def test_rows_are_planned_by_the_largest_arm(folder: Path, make_context: MakeContext) -> None:
    """A model with fewer tokens per image gets the same samples in its rows, cut at the same turns."""
    small = make_context(batch_size=1)
    large = make_context(batch_size=1, image=small.image.__class__(64, (0.5,) * 3, (0.25,) * 3, 9))
    for packing in ("none", "best_fit"):
        seen = []
        for context in (small, large):
            data = connected(folder, context, packing=packing, planned_tokens_per_image=9)
            found = []
            for batch in islice(data.train_dataloader(), 12):
                words = (batch.labels != -100).sum().item()
                found.append((batch.keys, batch.position, words))
                assert batch.token_ids.shape[1] <= ROW
            seen.append(found)
        assert seen[0] == seen[1]
    with pytest.raises(ConfigError, match="planned_tokens_per_image: 3 are planned for an image, the model makes 4"):
        connected(folder, small, planned_tokens_per_image=3).train_dataloader()


def test_a_view_of_captions_is_cut_or_dropped(
    tmp_path: Path, make_context: MakeContext, write_split: Write, image_bytes: Callable[..., bytes]
) -> None:
    long = {1: ({"caption": "abc " * 30}, [image_bytes()])}
    for split in ("train", "validation"):
        write_split(tmp_path, split, 3, long)
    cut = drawn(connected(tmp_path, make_context(), view="caption", packing="best_fit"))
    assert cut.samples.tolist() == [0, 1, 2]
    assert cut.tokens.max() == ROW
    dropped = drawn(connected(tmp_path, make_context(), view="caption", packing="best_fit", over_long="drop"))
    assert dropped.samples.tolist() == [0, 2]


def test_data_sets_of_a_mixture(tmp_path: Path, make_context: MakeContext, write_split: Write) -> None:
    for name, count in (("one", 30), ("two", 10)):
        write_split(tmp_path / name, "train", count)
    write_split(tmp_path / "one", "validation", 5)
    datasets = {
        "one": DatasetConfig(root=str(tmp_path / "one"), share=1),
        "two": DatasetConfig(root=str(tmp_path / "two"), share=3, view="caption"),
    }
    data = ShardsData(ShardsData.Config(datasets=datasets))
    data.prepare_data()
    data.connect(make_context())
    batch = next(iter(data.train_dataloader()))
    assert batch.datasets == ("one", "two")
    assert batch.dataset_ids is not None
    assert batch.dataset_ids[:, 0].tolist().count(1) == 6
    answers = [row[row >= 0].tolist() for row in batch.labels]
    texts = [data.context.tokenizer.decode(ids) for ids in answers]
    for text, dataset in zip(texts, batch.dataset_ids[:, 0].tolist(), strict=True):
        assert text.startswith("about ") == (dataset == 1)
    loader = data.train_dataloader()
    list(islice(loader, 10))
    assert loader.tally.datasets == {0: 20, 1: 60}
    assert next(iter(data.val_dataloader())).datasets == ()
    assert Piece(3) == data.train_dataloader().rows.order.items[3]


def test_a_split_that_no_data_set_has(tmp_path: Path, write_split: Write) -> None:
    write_split(tmp_path, "train", 3)
    data = ShardsData(ShardsData.Config(datasets={"one": DatasetConfig(root=str(tmp_path))}))
    with pytest.raises(
        DataError, match=r"data.datasets: none of one has the split validation; build again with .*splits="
    ):
        data.prepare_data()
    named = ShardsData(ShardsData.Config(shards={"train": [str(tmp_path)]}))
    with pytest.raises(ConfigError, match=r"data.shards: unknown split 'validation', allowed: train"):
        named.prepare_data()
    with pytest.raises(ConfigError, match="data: root or shards must say where the shards are"):
        ShardsData(ShardsData.Config()).prepare_data()


def test_lengths_are_known_by_all_that_makes_tokens(folder: Path, make_context: MakeContext, tokenizer: Any) -> None:
    """Template and its day, special tokens, image token, tokens per image, length: each names another file."""

    def name(template: str | None = None, tokens: int = 4, length: int = ROW, **named: Any) -> str:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template or tokenizer.chat_template
        for token, text in named.items():
            setattr(other, token, text)
        encoder = ConversationEncoder(other, other.convert_tokens_to_ids("<image>"), tokens)
        return _identity(store, range(24), CaptionView(encoder, length))

    store, own = connected(folder, make_context()).store("train"), tokenizer.chat_template
    dated_template = own + "{{ strftime_now('%Y') }}"
    names = [
        name(),
        name(own + " "),
        name(dated_template),
        name(dated(dated_template, "2026-05-01")),
        name(tokens=5),
        name(length=ROW + 1),
        name(eos_token="<pad>"),
        name(bos_token="<pad>"),
    ]
    assert len(set(names)) == len(names)
    assert name() == names[0]
    assert name(dated(dated_template)) == names[2], "a day that is set is no other than the one that is used"
