"""From shards to batches: views, order, resume, bad samples, features."""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from tokenizers import processors

from datamodules.batching.loader import MIN_SAMPLES_JUDGED
from datamodules.encoding.items import Piece
from datamodules.shards import ShardsData
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.core.types import IGNORE_INDEX, Batch, DataContext, ImageSpec, PromptedBatch
from tests.datamodules.connecting import connected

Write = Callable[..., Path]
MakeContext = Callable[..., DataContext]
Talk = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path, write_split: Write) -> Path:
    for split, count in (("train", 50), ("validation", 19)):
        write_split(tmp_path, split, count, samples_per_shard=20)
    return tmp_path


def tensors(batch: Any) -> list[torch.Tensor]:
    if isinstance(batch, PromptedBatch):
        return [batch.images, batch.targets]
    return [batch.token_ids, batch.labels, batch.images]


def assert_equal(one: list[Any], other: list[Any]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert (left.keys, left.position) == (right.keys, right.position)
        assert all(torch.equal(a, b) for a, b in zip(tensors(left), tensors(right), strict=True))


def texts(tokenizer: Any, ids: torch.Tensor) -> list[str]:
    return [tokenizer.decode([i for i in row if i != IGNORE_INDEX]) for row in ids.tolist()]


def test_conversations(folder: Path, make_context: MakeContext, tokenizer: Any) -> None:
    context = make_context()
    batch = next(iter(connected(folder, context).train_dataloader()))
    assert isinstance(batch, Batch)
    assert len(batch.keys) == 8
    assert batch.position == 8
    numbers = [key.removeprefix("s") for key in batch.keys]
    assert texts(tokenizer, batch.labels) == [f"{number}<eos>" for number in numbers]
    image = "<image>" * 4
    rows = [text.replace("<pad>", "") for text in texts(tokenizer, batch.token_ids)]
    assert rows == [f"<bos><user>{image}how dark is {n}?<assistant>{n}<eos>" for n in numbers]
    ends = (batch.token_ids != tokenizer.pad_token_id).sum(1)
    assert all((row[end:] == tokenizer.pad_token_id).all() for row, end in zip(batch.token_ids, ends, strict=True))
    assert all((row[end:] == IGNORE_INDEX).all() for row, end in zip(batch.labels, ends, strict=True))


def test_pixels(folder: Path, make_context: MakeContext) -> None:
    """Stretched to P, then (value / 255 - mean) / std per channel, in the order of the rows."""
    spec = ImageSpec(16, (0.5, 0.4, 0.3), (0.25, 0.5, 1.0), 4)
    data = connected(folder, make_context(image=spec))
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (8, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    shade = torch.tensor([int(key.removeprefix("s")) / 255 for key in batch.keys])
    for channel in range(3):
        expected = (shade - spec.mean[channel]) / spec.std[channel]
        assert torch.allclose(batch.images[:, channel, 12, 12], expected, atol=1e-6)
    store = data.store("train")
    numbers = [store.keys.index(key) for key in batch.keys]
    assert torch.equal(data.pixels("train", numbers), batch.images)


def test_captions(folder: Path, make_context: MakeContext, tokenizer: Any) -> None:
    batch = next(iter(connected(folder, make_context(), view="caption").train_dataloader()))
    numbers = [key.removeprefix("s") for key in batch.keys]
    rows = [text.replace("<pad>", "") for text in texts(tokenizer, batch.token_ids)]
    assert rows == [f"<bos>{'<image>' * 4}about {number}<eos>" for number in numbers]
    assert texts(tokenizer, batch.labels) == [f"about {number}<eos>" for number in numbers]


def test_prompted_targets(folder: Path, make_context: MakeContext, tokenizer: Any) -> None:
    data = connected(folder, make_context(tasks=("grounding", "caption", "ocr")), view="tasks")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PromptedBatch)
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.targets.shape[:2] == (8, 3)
    for key, targets in zip(batch.keys, batch.targets, strict=True):
        box = "thing<loc_0><loc_8><loc_16><loc_31><eos>"
        assert texts(tokenizer, targets) == [box, f"about {key.removeprefix('s')}<eos>", "no text<eos>"]
    assert data.prompted("train", [0, 1]).keys == ("s0", "s1")


def test_a_tokenizer_that_ends_its_texts_itself_keeps_its_own_way(
    folder: Path, make_context: MakeContext, tokenizer: Any
) -> None:
    """As BART's does, which the released Florence-2 was trained with: <s> text </s>, and no second end."""
    backend = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ends = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    bart = type(tokenizer)(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    data = connected(folder, make_context(tokenizer=bart, tasks=("ocr",)), view="tasks")
    targets = next(iter(data.train_dataloader())).targets
    assert texts(tokenizer, targets[:, 0]) == ["<bos>no text<eos>"] * 8


def test_a_task_without_field_or_location_tokens(folder: Path, make_context: MakeContext, tokenizer: Any) -> None:
    data = connected(folder, make_context(tasks=("caption", "mood")), view="tasks")
    with pytest.raises(DataError, match=r"sample 's\d+' in .*train-00000\d.tar: no mood"):
        next(iter(data.train_dataloader()))
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer.from_str(_without_locations(tokenizer)))
    data = connected(folder, make_context(tasks=("grounding",), tokenizer=bare), view="tasks")
    with pytest.raises(DataError, match="prompt 'grounding': the tokenizer has no location tokens"):
        data.train_dataloader()


def _without_locations(tokenizer: Any) -> str:
    return str(tokenizer.backend_tokenizer.to_str()).replace("<loc_", "<place_")


@pytest.mark.parametrize("view", ["conversation", "caption", "tasks"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_from_a_position_gives_the_same_batches(
    folder: Path, make_context: MakeContext, view: str, workers: int
) -> None:
    whole = list(islice(connected(folder, make_context(), view=view).train_dataloader(), 14))  # over two epochs
    resumed = connected(folder, make_context(position=whole[4].position), view=view, workers=workers)
    assert_equal(list(islice(resumed.train_dataloader(), 9)), whole[5:])


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_read_the_rows_of_one_process(folder: Path, make_context: MakeContext, workers: int) -> None:
    whole = list(islice(connected(folder, make_context()).train_dataloader(), 4))
    ranks = [
        connected(folder, make_context(batch_size=4, rank=rank, world_size=2), workers=workers) for rank in range(2)
    ]
    halves = [list(islice(data.train_dataloader(), 4)) for data in ranks]
    for batch, one, other in zip(whole, *halves, strict=True):
        assert batch.keys == one.keys + other.keys
        assert torch.equal(batch.images, torch.cat([one.images, other.images]))
        assert batch.position == one.position == other.position


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_is_one_pass_in_order(folder: Path, make_context: MakeContext, workers: int) -> None:
    loader = connected(folder, make_context(), workers=workers).val_dataloader()
    for _ in range(2):
        assert [key for batch in loader for key in batch.keys] == [f"s{i}" for i in range(19)]
    assert len(loader) == 3


def test_a_rank_without_rows_gets_one_that_is_not_supervised(folder: Path, make_context: MakeContext) -> None:
    ranks = [connected(folder, make_context(rank=rank, world_size=2)).val_dataloader() for rank in range(2)]
    assert [len(loader) for loader in ranks] == [2, 2]
    last = [list(loader)[-1] for loader in ranks]
    assert last[0].keys == ("s16", "s17", "s18")
    assert last[1].keys == ("s0",)
    assert (last[1].labels == IGNORE_INDEX).all()
    assert (last[0].labels != IGNORE_INDEX).any()


def test_reading_leaves_the_global_random_stream_alone(folder: Path, make_context: MakeContext) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    list(islice(connected(folder, make_context(), workers=1).train_dataloader(), 2))
    assert torch.equal(torch.rand(1), expected)


def test_features_in_place_of_images(folder: Path, make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    data = connected(folder, make_context())
    asked: list[tuple[str, int]] = []

    def lookup(split: str, index: int) -> dict[str, torch.Tensor]:
        asked.append((split, index))
        return {"davit": torch.full((1, 4, 2), float(index)), "ocr": torch.full((1, 4, 3), -float(index))}

    data.attach_features(lookup)
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.storage.sample_store.SampleStore.images", None)  # no picture is touched
        batch = next(iter(data.train_dataloader()))
        next(iter(data.val_dataloader()))
    assert batch.images is None
    assert batch.features["davit"].shape == (8, 4, 2)
    numbers = [data.store("train").keys.index(key) for key in batch.keys]
    assert batch.features["ocr"][:, 0, 0].tolist() == [-number for number in numbers]
    assert asked[:8] == [("train", number) for number in numbers]
    assert asked[-1][0] == "validation"
    data.attach_features(None)
    assert next(iter(data.train_dataloader())).features is None


def test_several_images_and_none(
    tmp_path: Path, write_split: Write, make_context: MakeContext, make_talk: Talk, image_bytes: Callable[..., bytes]
) -> None:
    replaced = {
        1: (make_talk("which?", "a", 3), [image_bytes(i) for i in (7, 8, 9)]),
        2: (make_talk("hm?", "b", 0), []),
    }
    for split in ("train", "validation"):
        write_split(tmp_path, split, 4, replaced)
    batch = next(iter(connected(tmp_path, make_context(batch_size=4)).val_dataloader()))
    assert batch.images.shape[0] == 5
    shades = (batch.images[:, 2, 40, 40] * 0.25 + 0.5) * 255
    assert [round(float(shade)) for shade in shades] == [0, 7, 8, 9, 3]
    image_token = make_context().image_token_id
    assert (batch.token_ids == image_token).sum(1).tolist() == [4, 12, 0, 4]
    write_split(tmp_path / "text", "train", 2, dict.fromkeys(range(2), replaced[2]))
    write_split(tmp_path / "text", "validation", 1)
    batch = next(iter(connected(tmp_path / "text", make_context(batch_size=2)).train_dataloader()))
    assert batch.images.shape == (0, 3, 64, 64)


def long_record(turns: int) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]
    for turn in range(turns):
        messages += [{"role": "assistant", "content": f"a{turn}"}, {"role": "user", "content": f"q{turn}"}]
    return {"messages": messages, "caption": "x" * 50}


@pytest.mark.parametrize("length", [12, 20, 27, 30, 80])
def test_long_conversations_lose_whole_turns_at_the_end(
    tmp_path: Path,
    write_split: Write,
    make_context: MakeContext,
    image_bytes: Callable[..., bytes],
    tokenizer: Any,
    length: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 2, {1: (long_record(9), [image_bytes()])})
    # Sample 0 has 17 tokens or so: only the second matters here.
    loader = connected(tmp_path, make_context(batch_size=1), sequence_length=length, max_bad_fraction=1.0)
    store, view = loader.store("validation"), loader.view("conversation")
    encoded = view.encode(store, Piece(1))
    ids, labels = encoded.rows[0]
    whole = connected(tmp_path, make_context(batch_size=1)).view("conversation").encode(store, Piece(1)).rows[0]
    assert len(ids) <= length
    assert ids == whole[0][: len(ids)]
    assert labels == whole[1][: len(ids)]
    assert encoded.truncated == (len(ids) < len(whole[0]))
    assert ids[-1] == tokenizer.eos_token_id or not encoded.truncated
    turn = len(whole[0]) if not encoded.truncated else whole[0].index(tokenizer.eos_token_id, len(ids)) + 1
    assert not encoded.truncated or turn > length  # one more turn would not have fitted


def test_images_of_turns_that_are_dropped_go_with_them(
    tmp_path: Path, write_split: Write, make_context: MakeContext, image_bytes: Callable[..., bytes]
) -> None:
    part = {"type": "image"}
    turn = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
    pictures = [image_bytes(shade) for shade in (10, 20, 30)]
    for split in ("train", "validation"):
        write_split(tmp_path, split, 1, {0: ({"messages": turn * 3}, pictures)})
    data = connected(tmp_path, make_context(batch_size=1), sequence_length=20)  # a turn is 8 tokens, behind <bos>
    batch = next(iter(data.train_dataloader()))
    assert batch.token_ids.shape == (1, 17)
    assert [round(float(shade * 0.25 + 0.5) * 255) for shade in batch.images[:, 2, 40, 40]] == [10, 20]
    data.attach_features(lambda split, index: {"davit": torch.arange(3.0).view(3, 1, 1)})
    assert next(iter(data.train_dataloader())).features["davit"].flatten().tolist() == [0, 1]


def test_shortened_samples_are_counted_and_logged(
    tmp_path: Path,
    write_split: Write,
    make_context: MakeContext,
    image_bytes: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 3, {1: (long_record(9), [image_bytes()])})
    with caplog.at_level(logging.INFO):
        loader = connected(tmp_path, make_context(batch_size=3), sequence_length=30).val_dataloader()
        (batch,) = loader
        assert loader.tally.truncated == 1
        list(loader)
    (told,) = [record.message for record in caplog.records if "shortened" in record.message]
    shard = tmp_path / "validation-000000.tar"
    assert told == f"shortened sample 's1' in {shard} to fit sequence_length, 1 so far"
    assert batch.token_ids.shape[1] <= 30
    caption = connected(tmp_path, make_context(batch_size=3), view="caption", sequence_length=30).val_dataloader()
    (batch,) = caption
    assert batch.token_ids.shape == (3, 30)
    assert caption.tally.truncated == 1


def test_a_first_turn_that_does_not_fit_is_a_bad_sample(folder: Path, make_context: MakeContext) -> None:
    data = connected(folder, make_context(), sequence_length=6)
    with pytest.raises(DataError, match="too long"):
        next(iter(data.train_dataloader()))


def bad_samples(talk: Talk, image: Callable[..., bytes]) -> dict[int, tuple[dict[str, Any], list[bytes]]]:
    shown = [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "image"}]}]
    return {
        3: (talk("q", "a"), [b"broken"]),
        11: ({"caption": "x"}, [image()]),
        20: (talk("q", "a", 2), [image()]),
        33: ({"messages": shown}, [image()]),
        34: ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, [image()]),
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_dropped_counted_and_logged(
    tmp_path: Path,
    write_split: Write,
    make_context: MakeContext,
    make_talk: Talk,
    image_bytes: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    workers: int,
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 120, bad_samples(make_talk, image_bytes))
    loader = connected(tmp_path, make_context(), max_bad_fraction=0.05, workers=workers).val_dataloader()
    keys = [key for batch in loader for key in batch.keys]
    assert keys == [f"s{i}" for i in range(120) if i not in (3, 11, 20, 33, 34)]
    assert loader.tally.seen == 120
    reasons = {"broken image": 1, "no messages": 1, "image count": 1, "not encodable": 1, "no answer": 1}
    assert dict(loader.tally.bad) == reasons
    assert "skipped sample 's3' in" in caplog.text
    assert "train" not in caplog.text
    assert "sample 's20' in" in caplog.text
    assert "1 images, 2 image parts" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_end_the_run(
    tmp_path: Path,
    write_split: Write,
    make_context: MakeContext,
    make_talk: Talk,
    image_bytes: Callable[..., bytes],
    workers: int,
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 120, bad_samples(make_talk, image_bytes))
    loader = connected(tmp_path, make_context(), max_bad_fraction=0.04, workers=workers).val_dataloader()
    batches = iter(loader)
    with pytest.raises(DataError) as error:
        list(batches)
    assert loader.tally.seen == 8 * -(-MIN_SAMPLES_JUDGED // 8)  # not before enough were seen
    sentence = str(error.value)
    assert sentence.startswith("5 of 104 samples cannot be used (")
    assert "more than max_bad_fraction 0.04; the last is sample 's34' in" in sentence
    assert "validation-000000.tar" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("workers", [0, 2])
def test_a_first_batch_of_nothing_but_bad_samples_ends_the_run(
    tmp_path: Path, write_split: Write, make_context: MakeContext, make_talk: Talk, workers: int
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 30, {i: (make_talk("q", "a"), [b"broken"]) for i in range(10)})
    loader = connected(tmp_path, make_context(), max_bad_fraction=0.9, workers=workers).val_dataloader()
    with pytest.raises(
        DataError, match=r"10 of 11 samples cannot be used \(broken image: 10\).*the last is sample 's9'"
    ):
        next(iter(loader))


def test_a_later_batch_of_nothing_but_bad_samples_takes_the_next_good_one(
    tmp_path: Path, write_split: Write, make_context: MakeContext, make_talk: Talk
) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, 12, {i: (make_talk("q", "a"), [b"broken"]) for i in (4, 5, 6, 7, 8)})
    loader = connected(tmp_path, make_context(batch_size=4), max_bad_fraction=0.9).val_dataloader()
    assert [batch.keys for batch in loader] == [("s0", "s1", "s2", "s3"), ("s9",), ("s9", "s10", "s11")]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_that_does_not_match_ends_the_run_in_one_sentence(
    folder: Path, tmp_path: Path, make_context: MakeContext, workers: int
) -> None:
    tar = folder / "validation-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"s1.json", b"x1.json"))
    loader = connected(folder, make_context(), workers=workers).val_dataloader()
    with pytest.raises(DataError, match=r"^index .* does not match its tar: no member s1.json [^\n]*$"):
        list(loader)


def test_missing_data_is_told_before_anything_else(tmp_path: Path, write_split: Write) -> None:
    with pytest.raises(DataError, match="no folder"):
        ShardsData(ShardsData.Config(root=str(tmp_path / "none"))).prepare_data()
    write_split(tmp_path, "train", 1)
    with pytest.raises(DataError, match=r"no shard validation-<number>\.tar in"):
        ShardsData(ShardsData.Config(root=str(tmp_path))).prepare_data()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"root": "x", "shards": {"train": ["x"]}}, "root and shards are given"),
        ({"datasets": {"a": {"share": 1}, "b": {}}}, "a share is given for some of them"),
        ({"datasets": {"a": {"share": 0}}}, "datasets.a.share must be above 0, not 0"),
        ({"datasets": {"a": {"shar": 1}}}, "did you mean 'share'"),
        ({"datasets": {"a": {}}, "view": "tasks"}, "the view tasks takes one data set"),
        ({"root": "x", "packing": "best_fit", "view": "tasks"}, "view: tasks cannot be combined"),
        ({"root": "x", "packing": "best_fit", "group_by_length": True}, "group_by_length cannot be combined"),
        ({"root": "x", "over_long": "cut"}, "allowed: drop, split, truncate"),
        ({"root": "x", "view": "conversations"}, "view"),
        ({"root": "x", "workers": -1}, "workers must be at least 0, not -1"),
        ({"root": "x", "sequence_length": 0}, "sequence_length must be at least 1, not 0"),
        ({"root": "x", "max_bad_fraction": 2.0}, "max_bad_fraction must be at least 0 and at most 1, not 2"),
        ({"root": "x", "sequence": 5}, "did you mean 'sequence_length'"),
    ],
)
def test_configuration_mistakes(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        choose("data", {"name": "shards", **fields})
    assert "\n" not in str(error.value)


def test_the_registered_name_builds_it(folder: Path) -> None:
    choice = choose("data", {"name": "shards", "root": str(folder)})
    assert choice.component is ShardsData
    choice.component(choice.config).prepare_data()


class Recorder(LightningModule):
    """Trains one weight on nothing, and keeps what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[Batch] = []
        self.validated: list[str] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.trained.append(batch)
        return self.weight * 0

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validated += batch.keys

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_and_validates_on_it(folder: Path, tmp_path: Path, make_context: MakeContext) -> None:
    module, context = Recorder(), make_context()
    trainer = Trainer(
        max_steps=9, val_check_interval=9, check_val_every_n_epoch=None, num_sanity_val_steps=0, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=connected(folder, context))
    assert_equal(module.trained, list(islice(connected(folder, replace(context)).train_dataloader(), 9)))
    assert module.validated == [f"s{i}" for i in range(19)]
