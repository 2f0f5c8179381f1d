"""`fvl doctor`: every check passes on what trains, fails on what would not, and says what to do."""

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from datamodules.demo.data import DemoData
from datamodules.encoding.conversation import ConversationEncoder
from datamodules.encoding.views import ConversationView
from datamodules.shards import DatasetConfig, ShardsData
from datamodules.storage.index import index_path
from datamodules.storage.writer import ShardWriter
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig, LoraConfig
from fvl_lightning.core.types import FusionOutput
from fvl_lightning.doctor.examine import examine
from fvl_lightning.doctor.finding import Finding, run_check, skipped
from fvl_lightning.doctor.model import check_initial_weights, shaped_stage
from fvl_lightning.doctor.one_batch import check_one_batch
from fvl_lightning.doctor.resources import (
    check_disk_space,
    check_memory,
    check_recomputation,
    check_schedule,
    check_tracking,
    model_bytes,
)
from fvl_lightning.doctor.shards import check_shards, count_samples, prepare_data
from fvl_lightning.doctor.supervision import (
    MAX_ROWS,
    RowStatistics,
    assistant_texts,
    check_chat_template,
    check_question_form,
    check_supervision,
    inspect_example,
    inspect_rows,
)
from fvl_lightning.fusions.concat import ConcatFusion
from fvl_lightning.profiling.batch_shape import BatchShape
from fvl_lightning.profiling.memory import MemoryEstimate, checkpoint_bytes
from fvl_lightning.runs.setup import data_context
from fvl_lightning.stages.base import Stage
from tests.conftest import TINY, Run, furnish
from tests.datamodules.encoding.templates import tokenizer_of

FINETUNE = "experiments/demo/finetune.yaml"
SHORT = (*TINY, "data.sequence_length=96", "optimizer.warmup_steps=1")
NAMES = {"encoder": 0, "fusion": 0, "projector": 0, "language_model": 0}
SHAPE = BatchShape(1, 1, 1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[Path]:
    """The working folder of this module; nothing in it is changed but by what a check makes."""
    folder = furnish(tmp_path_factory.mktemp("doctor"), tiny_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def load(*words: str) -> ExperimentConfig:
    return load_config(ExperimentConfig, Path(FINETUNE), (*SHORT, *words))


@pytest.fixture(scope="module")
def stage(here: Path) -> Stage:
    return shaped_stage(load())


def connected(config: ExperimentConfig, stage: Stage) -> Any:
    """The experiment's data module as `fvl doctor` has it."""
    data = config.data.component(config.data.config)
    assert not list(prepare_data(data, lambda words: None)), "the set is there"
    data.connect(data_context(stage.model, stage.tokenizer, config))
    return data


def looked_at(config: ExperimentConfig, stage: Stage) -> RowStatistics:
    looked = RowStatistics()
    inspect_rows(connected(config, stage), looked)
    return looked


def worst(findings: list[Finding]) -> Finding:
    """The only finding that is not ok, which says what to do."""
    (found,) = [finding for finding in findings if finding.status != "ok"]
    return found


def copied(here: Path, folder: Path) -> Path:
    """The demo's shards in a folder of their own."""
    config = load()
    shutil.copytree(config.data.component(config.data.config).folder, folder / "shards")
    return folder / "shards"


def on_shards(root: Path, *words: str) -> ExperimentConfig:
    tokenizers = [f"{slot}.tokenizer=data/demo/tokenizer" for slot in ("encoder", "language_model")]
    kept = [word for word in SHORT if not word.startswith("data.")]
    data = [f"data={{name: shards, root: {root}, view: conversation, sequence_length: 96}}"]
    return load_config(ExperimentConfig, Path(FINETUNE), (*kept, *tokenizers, *data, *words))


def test_what_trains_passes_and_the_table_has_every_check(here: Path, fvl_here: Run) -> None:
    done = fvl_here(here, "doctor", FINETUNE, *SHORT, "--memory-gb", "80")
    assert done.returncode == 0, done.stdout
    verdicts = dict(line.split("│")[1:3] for line in done.stdout.splitlines() if line.count("│") == 5)
    found = {name.strip(): verdict.strip() for name, verdict in verdicts.items()}
    ran = ("configuration", "model", "init_from", "shards", "supervision", "batches", "warm-up", "memory")
    assert {name: found[name] for name in ran} == dict.fromkeys(ran, "ok") | {"init_from": "warning"}
    assert {found[name] for name in ("run folder", "tracking", "one batch")} == {"ok"}
    assert "8 x 1 device x 1 node x 1 accumulated = 8 samples a step" in done.stdout
    assert "64 samples, validation: " in done.stdout
    assert "exactly the answers are supervised" in done.stdout
    assert "8 rows of 96 tokens, 8 images" in done.stdout
    assert not (here / "runs").exists()


def test_a_check_that_fails_is_exit_code_2(here: Path, fvl_here: Run) -> None:
    done = fvl_here(here, "doctor", FINETUNE, *SHORT, "data.view=tasks")
    assert done.returncode == 2
    assert re.search(r"model +│ failed +│ data.view: stage finetune learns from", done.stdout)
    for check in ("supervision", "memory", "run folder", "one batch"):
        assert re.search(rf"{check} +│ skipped +│ needs the model", done.stdout), "said, not left out"
    assert "8 samples a step" in done.stdout
    assert "memory per rank" not in done.stdout


@pytest.mark.parametrize(
    ("word", "said"),
    [("fussion=gated", "mean 'fusion'"), ("plugins=[nothing.py]", "nothing.py"), ("data=null", "must name both")],
)
def test_a_configuration_that_cannot_be_resolved(here: Path, word: str, said: str) -> None:
    findings, estimate = examine(Path(FINETUNE), [*SHORT, word], None, lambda words: None)
    assert estimate is None
    assert [finding.status for finding in findings] == ["failed"]
    assert said in findings[0].message
    assert "fvl describe" in findings[0].advice
    assert "plugin" in findings[0].advice


def test_a_run_to_start_from_that_is_not_there(here: Path) -> None:
    found = worst(run_check("init_from", lambda: check_initial_weights(load("init_from=[runs/nobody]"))))
    assert found.status == "failed"
    assert "runs/nobody" in found.message
    assert "has finished" in found.advice


def test_a_finetuning_of_random_values_is_a_warning(here: Path) -> None:
    (found,) = check_initial_weights(load())
    assert found.status == "warning"
    assert found.message.endswith("from random values: encoder, fusion, projector, language_model")
    assert "init_from" in found.advice
    (begins,) = check_initial_weights(load_config(ExperimentConfig, Path("experiments/demo/pretrain.yaml")))
    assert begins.status == "ok"


def test_shards_that_are_not_there(here: Path, stage: Stage, tmp_path: Path) -> None:
    config = on_shards(tmp_path / "nowhere")
    data = config.data.component(config.data.config)
    found = worst(run_check("shards", lambda: check_shards(config, data)))
    assert (found.check, found.status) == ("shards", "failed")
    assert "nowhere" in found.message
    assert "fvl shards build" in found.advice


def test_shards_without_an_index(here: Path, stage: Stage, tmp_path: Path) -> None:
    root = copied(here, tmp_path)
    index_path(root / "train-000000.tar").unlink()
    config = on_shards(root)
    data = connected(config, stage)
    found = worst(run_check("shards", lambda: check_shards(config, data)))
    assert found.status == "warning"
    assert "fvl shards index" in found.advice
    assert count_samples(data) is None
    assert not index_path(root / "train-000000.tar").exists(), "a whole data set may take hours"


def test_shards_that_were_cut_short_or_changed(here: Path, stage: Stage, tmp_path: Path) -> None:
    root = copied(here, tmp_path)
    tar, content = root / "train-000000.tar", (root / "train-000000.tar").read_bytes()
    config = on_shards(root)
    tar.write_bytes(content[: len(content) // 2])
    data = config.data.component(config.data.config)
    found = worst(run_check("shards", lambda: check_shards(config, data)))
    assert found.status == "failed"
    assert "train-000000" in found.message
    first = content.index(b"ustar") - 257
    tar.write_bytes(content[:first] + b"zz" + content[first + 2 :])  # another name, of the same length
    data = config.data.component(config.data.config)
    found = worst(run_check("shards", lambda: check_shards(config, data)))
    assert found.status == "failed"
    assert "fvl shards check" in found.advice


def test_fewer_samples_to_validate_on_than_ranks(here: Path, stage: Stage) -> None:
    config = load("trainer.strategy=ddp", "trainer.devices=8", "trainer.nodes=8")
    found = worst(run_check("shards", lambda: check_shards(config, connected(config, stage))))
    assert found.status == "warning"
    assert "64 ranks" in found.message


def test_rows_are_compared_with_their_answers(here: Path, stage: Stage) -> None:
    looked = looked_at(load(), stage)
    assert len(looked.tokens) == MAX_ROWS
    assert not looked.wrong + looked.broken
    captions = looked_at(load("stage=pretrain", "data.view=caption"), stage)
    assert len(captions.tokens) == MAX_ROWS
    assert not captions.wrong + captions.broken


Change = Callable[[list[int], list[int]], tuple[list[int], list[int]]]
MISTAKES: dict[str, tuple[Change, str]] = {
    "one late": (lambda ids, labels: (ids, [-100, *labels[:-1]]), "supervised in place of"),
    "everything": (lambda ids, labels: (ids, list(ids)), "supervised in place of"),
    "no end token": (
        lambda ids, labels: (ids, [-100 if i + 1 == len(labels) or labels[i + 1] == -100 else labels[i] for i in range(len(labels))]),  # noqa: E501
        "without an end token",
    ),
    "nothing": (lambda ids, labels: (ids, [-100] * len(ids)), "0 runs of tokens"),
    "an image token less": (lambda ids, labels: (ids[:1] * 2 + ids[2:], labels), "image tokens in place of"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_mask_is_found(name: str, here: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    change, said = MISTAKES[name]
    right, config = ConversationEncoder.encode, load()
    data = connected(config, stage)
    image = stage.model.config.image_token_id

    def wrong(encoder: ConversationEncoder, messages: Any) -> tuple[list[int], list[int]]:
        ids, labels = right(encoder, messages)
        if name == "an image token less":
            place = ids.index(image)
            return [*ids[:place], ids[0], *ids[place + 1 :]], labels
        return change(ids, labels)

    encoder = data.encoder
    monkeypatch.setattr(ConversationEncoder, "encode", wrong)
    looked = RowStatistics()
    inspect_example(encoder, "conversation", looked)
    found = worst(list(check_supervision(config, looked, real=False)))
    assert found.status == "failed"
    assert said in found.message
    assert "chat_template" in found.advice


def test_without_shards_a_row_is_made_up(here: Path, stage: Stage) -> None:
    looked, data = RowStatistics(), connected(load(), stage)
    for view in ("conversation", "caption"):
        inspect_example(data.encoder, view, looked)
    (found,) = check_supervision(load(), looked, real=False)
    assert found.status == "ok"
    assert "an example row" in found.message
    assert looked.images == [1, 1]


def test_rows_that_are_too_long_are_counted(here: Path, stage: Stage) -> None:
    config = load("data.sequence_length=40")
    looked = looked_at(config, stage)
    assert looked.over_long == sum(tokens > 40 for tokens in looked.tokens) > 0
    found = worst(list(check_supervision(config, looked, real=True)))
    assert f"{looked.over_long} of 64 rows" in found.message
    assert "sequence_length" in found.advice


def test_rows_that_cannot_be_used_are_counted(here: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(store: Any, i: int) -> Any:
        raise store.error(i, "bad messages", "no role")

    monkeypatch.setattr("fvl_lightning.doctor.supervision.messages_of", refuse)
    looked = looked_at(load(), stage)
    found = worst(list(check_supervision(load(), looked, real=True)))
    assert found.status == "failed"
    assert "64 rows cannot be used" in found.message
    assert "fvl shards check" in found.advice
    looked.tokens, looked.broken = [50] * 200, looked.broken[:1]
    assert worst(list(check_supervision(load(), looked, real=True))).status == "warning"


def test_targets_of_the_encoder_are_looked_at(here: Path) -> None:
    words = [word for word in SHORT if not word.startswith("data.sequence")]
    config = load_config(ExperimentConfig, Path("experiments/demo/encoder_pretrain.yaml"), words)
    looked = looked_at(config, shaped_stage(config))
    assert len(looked.tokens) == MAX_ROWS
    assert not looked.broken


def test_images_of_a_row_for_the_memory() -> None:
    looked = RowStatistics(tokens=[20, 30], images=[1, 2])
    assert looked.images_per_row(SimpleNamespace(layout="padded", sequence_length=100)) == 2
    assert looked.images_per_row(SimpleNamespace(layout="packed", sequence_length=100)) == 6
    assert RowStatistics().images_per_row(SimpleNamespace(layout="packed", sequence_length=100)) is None


def test_the_arithmetic_of_batches(here: Path) -> None:
    words = ("trainer.strategy=fsdp", "trainer.devices=4", "trainer.nodes=2", "trainer.accumulate=3")
    config = load(*words, "trainer.max_steps=30", "optimizer.warmup_steps=3")
    first, second = check_schedule(config, 1920, 50)
    assert "8 x 4 devices x 2 nodes x 3 accumulated = 192 samples a step, about 9,600 tokens" in first.message
    assert "10 steps an epoch, 3 epochs in 30" in first.message
    assert second.message == "3 of 30 steps"
    assert {first.status, second.status} == {"ok"}
    packed = load(*words, "data.packing=best_fit", "data.group_by_length=false")
    assert "192 rows a step, about 18,432 tokens" in check_schedule(packed, 1920, 50)[0].message


def test_a_warm_up_that_never_ends(here: Path) -> None:
    found = worst(check_schedule(load("optimizer.warmup_steps=3"), None, None))
    assert found.status == "failed"
    assert "optimizer.warmup_steps" in found.advice


def test_a_step_of_more_than_there_is(here: Path) -> None:
    found = worst(check_schedule(load("optimizer.warmup_steps=0", "trainer.accumulate=9"), 64, 50))
    assert found.status == "warning"
    assert "trainer.batch_size" in found.advice


def peak_of(size: int) -> MemoryEstimate:
    return MemoryEstimate(SHAPE, NAMES, NAMES, NAMES, NAMES, 0, size)


def test_memory_against_a_device(here: Path) -> None:
    config = load()
    assert check_memory(config, peak_of(89), 100)[0].status == "ok"
    assert worst(check_memory(config, peak_of(95), 100)).status == "warning"
    found = worst(check_memory(config, peak_of(101), 100))
    assert found.status == "failed"
    for way in ("checkpoint_activations", "strategy=fsdp", "bf16-mixed", "batch_size"):
        assert way in found.advice
    spared = load(
        "trainer.strategy=fsdp", "trainer.checkpoint_activations=[language_model]", "trainer.precision=bf16-mixed"
    )
    assert worst(check_memory(spared, peak_of(101), 100)).advice.startswith("a smaller trainer.batch_size")
    assert "--memory-gb" in check_memory(config, peak_of(101), None)[0].message
    found = worst(check_memory(config, peak_of(200), 100, longest=0))
    assert "rows of 1 tokens, the longest that data.sequence_length lets through (the longest ins" in found.message
    assert "a smaller data.sequence_length" in found.advice
    packed = load("data.packing=best_fit", "data.group_by_length=false")
    found = worst(check_memory(packed, peak_of(200), 100, longest=0))
    assert "as they are packed" in found.message
    assert "sequence_length" not in found.message + found.advice
    narrow = dataclasses.replace(config, lora=LoraConfig(quantization="4bit"))
    assert "fsdp" not in worst(check_memory(narrow, peak_of(101), 100)).advice


def test_recomputation_that_is_not_needed() -> None:
    (found,) = check_recomputation(int(0.8e11), int(1e11))
    assert found.message == "80.0 GB without trainer.checkpoint_activations, which computes blocks twice: not needed"
    assert not check_recomputation(int(0.95e11), int(1e11))


def test_a_run_folder_without_room_or_leave(
    here: Path, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_disk_space(load(), stage)[0].status == "ok"
    (tmp_path / "file").write_text("")
    found = worst(check_disk_space(load(f"output={tmp_path}/file/runs"), stage))
    assert found.status == "failed"
    assert "`output`" in found.advice
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    found = worst(check_disk_space(load(f"output={tmp_path}/runs"), stage))
    assert "10.0 MB free" in found.message
    assert "make room for 3" in found.advice


def test_a_disk_has_room_for_the_model_at_the_end(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(f"output={tmp_path}/runs", "trainable={encoder: frozen, language_model: frozen}")
    stage = shaped_stage(config)
    checkpoint, model = checkpoint_bytes(config, stage.model), model_bytes(stage)
    assert model > 3 * checkpoint, "most of it is frozen"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * checkpoint + model))
    assert check_disk_space(config, stage)[0].status == "ok"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * checkpoint + model - 1))
    assert worst(check_disk_space(config, stage)).status == "failed"


def test_a_store_that_cannot_be_opened(here: Path, tmp_path: Path, empty_store: Path) -> None:
    config = load("tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}")
    found = worst(run_check("tracking", lambda: check_tracking(config)))
    assert found.status == "failed"
    assert "is a folder" in found.message
    assert "tracking.uri" in found.advice
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    (found,) = check_tracking(load("tracking.enabled=true", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"))
    assert "answers in" in found.message


@pytest.mark.parametrize(("scale", "said"), [(float("nan"), "loss nan"), ("absent", "TypeError: ")])
def test_a_component_that_does_not_work(
    scale: Any, said: str, here: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ConcatFusion.forward
    monkeypatch.setattr(ConcatFusion, "forward", lambda self, x: right(self, {k: v * scale for k, v in x.items()}))
    words = [*SHORT, "fusion=concat"]
    experiment = load("fusion=concat")
    found = worst(run_check("one batch", lambda: check_one_batch(Path(FINETUNE), words, experiment, stage)))
    assert (found.check, found.status) == ("one batch", "failed")
    assert said in found.message
    assert found.advice


def test_a_component_that_asks_for_values_leaves_the_memory_open(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ConcatFusion.forward

    def asks(fusion: ConcatFusion, sources: dict[str, Tensor]) -> FusionOutput:
        assert next(iter(sources.values())).sum().item() != 1.0, "the number that shapes have"
        return right(fusion, sources)

    monkeypatch.setattr(ConcatFusion, "forward", asks)
    findings, estimate = examine(Path(FINETUNE), [*SHORT, "fusion=concat"], None, lambda words: None)
    assert estimate is None
    (found,) = [finding for finding in findings if finding.check == "memory"]
    assert found.status == "warning"
    assert "measure it" in found.advice


def test_a_large_model_is_tried_in_its_small_size(here: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fvl_lightning.doctor.one_batch.MAX_PARAMETERS_FOR_TRIAL_STEP", 0)
    assert "not tried" in worst(check_one_batch(Path(FINETUNE), list(SHORT), load(), stage)).message
    preset = Path("experiments/florence_vl/3b/finetune.yaml")
    config = load_config(ExperimentConfig, preset, ["scale=tiny", *SHORT])
    words = ["recipe=released", "data.root=elsewhere", "fusion=gated"]
    (found,) = check_one_batch(preset, words, config, stage)
    assert found.status == "ok"
    assert found.message.startswith("scale=tiny on demo data: loss ")
    words = ["recipe=released", "projector=pool", "projector.factor=3"]  # divides 24 x 24, and not the tiny 2 x 2
    (found,) = check_one_batch(preset, words, config, stage)
    assert found.status == "warning"
    assert found.message.startswith("not tried with scale=tiny: projector.factor: 3 does not divide the map of 2 x 2")
    (found,) = check_one_batch(Path(FINETUNE), list(SHORT), load(), None)
    assert found.status == "skipped"


def test_a_finding_that_is_not_ok_says_what_to_do() -> None:
    assert skipped("memory", "the model").message == "needs the model"
    with pytest.raises(AssertionError, match="a failed needs advice"):
        Finding("memory", "failed", "too much")


def test_the_demo_set_is_not_drawn_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = dict.fromkeys(("train_images", "validation_images", "test_images", "unseen_images"), 4)
    data = DemoData(DemoData.Config(root="drawn", **few))
    told: list[str] = []
    (found,) = prepare_data(data, told.append)
    assert told == ["making the data set"]
    assert f"it was made in {data.folder}" in found.message
    assert not list(prepare_data(data, told.append))


def test_json_of_the_shards_is_what_is_compared(here: Path, stage: Stage) -> None:
    data = connected(load(), stage)
    view = data.view("conversation")
    assert isinstance(view, ConversationView)
    record = data.store("train").record(0)
    assert assistant_texts(record["messages"])
    assert all(answer in json.dumps(record) for answer in assistant_texts(record["messages"]))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("qwen", []),
        ("gemma", []),
        ("dated", [("ok", "it writes a date: always 2024-07-26, in training and")]),
        ("r_1", [("warning", "its generation prompt is '<think>")]),
        ("silent", [("warning", "its generation prompt is 'nothing', but in training an answer follows")]),
        (
            "qwen_3",
            [
                ("warning", "in training an answer follows '<think>"),
                (
                    "warning",
                    "conversations of several turns are refused: the chat template writes an answer differently "
                    "once messages follow it (for instance without its thoughts), so that training on several turns "
                    "would not match generation; set language_model.chat_template to one that writes all answers alike",
                ),
            ],
        ),
    ],
)
def test_what_is_special_about_a_chat_template_is_said(name: str, told: list[tuple[str, str]]) -> None:
    tokenizer = tokenizer_of(name)
    encoder = ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 3)
    found = list(check_chat_template(encoder, "2024-07-26"))
    assert [finding.status for finding in found] == [verdict for verdict, _ in told]
    for finding, (_, words) in zip(found, told, strict=True):
        assert words in finding.message


def test_how_the_data_asks_is_said(tmp_path: Path) -> None:
    for name, gap in (("llava", "\n"), ("plain", "")):
        parts = [{"type": "image"}, {"type": "text", "text": f"{gap}what?"}]
        talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": "red"}]
        image = io.BytesIO()
        Image.new("RGB", (8, 8)).save(image, format="PNG")
        with ShardWriter(tmp_path / name, "train", samples_per_shard=10) as writer:
            writer.write("s0", {"messages": talk}, [image.getvalue()])

    def found(*names: str) -> list[Finding]:
        datasets = {name: DatasetConfig(root=str(tmp_path / name), share=share) for share, name in enumerate(names, 1)}
        return list(check_question_form(ShardsData(ShardsData.Config(datasets=datasets))))

    assert found("plain") == []
    (joined,) = found("llava")
    assert (joined.status, r"'\n' stands between an image" in joined.message) == ("ok", True)
    assert [finding.status for finding in found("plain", "llava")] == ["ok", "warning"]
