"""Every mistake through the front door: one sentence with place, value, what is allowed and what is near; exit code 2.

Nothing half-written is left: no run folder where none had begun, and one that had begun says that it failed.
"""

import dataclasses
import errno
import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.demo.levels import LEVELS
from datamodules.demo.record import make_sample
from datamodules.storage.index import index_path, open_index, save_index
from datamodules.storage.writer import ShardWriter
from fvl_lightning.cli.main import run
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import TINY, TINY_DATA, Run, furnish

FINETUNE = "experiments/demo/finetune.yaml"
COMPARISON = "experiments/demo/comparison.yaml"
TRAIN = ("train", FINETUNE, *TINY)
TRACKED = tuple(word for word in TRAIN if not word.startswith("tracking."))
ON_SHARDS = tuple(word for word in TRAIN if word not in TINY_DATA)

Refused = Callable[..., str]
Change = Callable[[int, dict[str, Any], list[bytes]], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with two finished runs, `finetune` and `encoder_pretrain`, which no test changes."""
    folder = furnish(tmp_path_factory.mktemp("errors"), tiny_data)
    Image.new("RGB", (64, 64), (200, 20, 20)).save(folder / "a.png")
    for experiment in (FINETUNE, "experiments/demo/encoder_pretrain.yaml"):
        done = fvl_here(folder, "train", experiment, *TINY)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def refused(folder: Path, fvl_here: Run) -> Refused:
    """The one sentence with which the words are refused; checks code, form, and that no file in runs/ has changed."""

    def sentence(*words: str) -> str:
        before = snapshot(folder)
        text = spoken(fvl_here(folder, *words))
        assert snapshot(folder) == before, "something half-written is left"
        return text

    return sentence


def spoken(done: Any) -> str:
    """The sentence of a command that was refused."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("INFO", "WARNING"))]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert done.stdout.strip() == ""
    return lines[0].removeprefix("error: ")


def snapshot(folder: Path) -> dict[Path, int]:
    """Files and folders under runs/ with their times."""
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("fusion=gate", ("fusion on the command line", "'gate'", "attention, bilinear", "did you mean 'gated'?")),
        ("trainer.max_step=20", ("trainer.max_step on", "'max_step'", "max_steps, ", "did you mean 'max_steps'?")),
        ("trainr.max_steps=20", ("'trainr'", "allowed:", "did you mean 'trainer'?")),
        ("stage=finetun", ("stage", "'finetun'", "encoder_pretrain", "did you mean 'finetune'?")),
        ("fusion.gate=softmax", ("fusion.gate", "'gate'", "allowed: repeat", "concat has no such key, gated has it")),
        ("optimizer.lr=1", ("optimizer.lr", "'lr'", "did you mean 'learning_rate'?")),
        ("max_steps=3", ("max_steps on the command line", "did you mean 'trainer.max_steps'?")),
        ("data.batch_size=3", ("data.batch_size", "did you mean 'trainer.batch_size'?")),
        ("warmup=3", ("warmup on", "did you mean 'optimizer.warmup_steps'?")),
        ("trainer.accelerator=gpu", ("trainer.accelerator", "'gpu'", "did you mean 'cuda'?")),
        ("trainer.devices=2", ("trainer.devices on the command line: trainer.strategy: single uses one device",)),
        ("tracking.uri=http://a:b@c", ("tracking.uri on the command line: ", "contains a login")),
        ("name=../a", ("name on the command line: ", "a folder inside `output`")),
        ("stages=[a.yaml]", ("unknown key 'stages'", "a key of comparisons, which `fvl compare` takes")),
        ("trainer.max_steps=many", ("trainer.max_steps on the command line", "a whole number, found 'many'")),
        ("trainer.max_steps=0", ("trainer.max_steps", "at least 1, not 0")),
        ("trainer.batch_size=-8", ("trainer.batch_size", "at least 1, not -8")),
        ("trainer.threads=0", ("trainer.threads", "at least 1, not 0")),
        ("trainer.accelerator=gpus", ("trainer.accelerator", "'gpus'", "auto, cpu, cuda, mps")),
        ("trainer.accelerator=mps", ("trainer.accelerator", "no mps device", "auto or cpu")),
        ("optimizer.learning_rate=-1", ("optimizer.learning_rate", "must be above 0, not -1")),
        ("trainer.precision=16", ("trainer.precision", "'16'", "32-true, bf16-mixed")),
        ("optimizer.betas=[1]", ("optimizer.betas on the command line", "tuple[float, float]", "[1]")),
        ("optimizer.name=muun", ("optimizer.name", "'muun'", "adamw, muon", "did you mean 'muon'?")),
        ("data.view=captions", ("data.view", "'captions'", "caption, conversation, tasks", "did you mean 'caption'?")),
        ("data.level=eassy", ("'eassy'", "easy, hard, medium", "did you mean 'easy'?")),
        ("data.max_bad_fraction=2", ("data", "max_bad_fraction", "2")),
        ("trainable.encodr=full", ("trainable", "'encodr'", "did you mean 'encoder'?")),
        ("trainable.encoder=ful", ("trainable.encoder", "'ful'", "frozen, full", "did you mean 'full'?")),
        ("encoder.sources=[davit, captoin]", ("encoder.sources", "'captoin'", "caption, ocr, grounding")),
        ("encoder.sources=[davit, davit_stage_9]", ("encoder.sources", "'davit_stage_9'", "1 to 3")),
        ("encoder.image_size=1024", ("encoder.image_size", "1024", "64 x 64", "1 to 50")),
        ("encoder.image_size=768", ("encoder.image_size", "768", "the text encoder supports 256")),
        ("encoder.model.vison_config.depths=[1]", ("encoder.model.vison_config", "did you mean 'vision_config'?")),
        ("encoder.model.vision_config.embed_dims=[3]", ("vision_config.embed_dims", "did you mean 'embed_dim'?")),
        ("encoder.model.vision_config=3", ("encoder.model.vision_config", "expected keys and values, found 3")),
        ("encoder.model.model_type=davit", ("encoder.model.model_type", "expected 'florence2', found 'davit'")),
        ("encoder.model.vision_config.embed_dim=[32]", ("encoder.model", "num_stages (1)", "num_heads) (3)")),
        ("encoder.model.text_config.d_model=wide", ("encoder.model", "'d_model'", "expected int, got str")),
        ("language_model.model.model_type=lama", ("language_model.model.model_type", "'lama'", "mean 'llama'?")),
        ("language_model.model.hidden_sise=64", ("language_model.model.hidden_sise", "did you mean 'hidden_size'?")),
        ("language_model.model.hidden_size=many", ("language_model.model", "'hidden_size' expected int, got str")),
        ("language_model.model.num_attention_heads=7", ("language_model.model", "not a multiple of the number of")),
        ("fusion=null", ("fusion", "sets no fusion")),
        ("plugins=[nope.py]", ("plugins", "nope.py", "experiments/demo")),
        ("plugins=[no.such.module]", ("plugins", "no.such.module", "ModuleNotFoundError")),
        ("data.view=tasks", ("data.view", "finetune", "conversation or caption, not tasks")),
        ("stage=encoder_pretrain", ("data.view", "encoder_pretrain", "tasks, not conversation")),
        ("init_from=[runs/finetun]", ("runs/finetun", "did you mean runs/finetune?")),
        ("init_from=[experiments]", ("experiments is not a run folder", "run.json is missing", "runs/finetune")),
        ("feature_cache=cache", ()),
        ("output=/dev/null", ("output", "/dev/null/finetune")),
        ("fusion", ("'fusion'", "is not key=value", "trainer.max_steps=20")),
        ("=3", ("'=3'", "is not key=value")),
        ("[/a]", ("'[/a]'", "is not key=value")),
        ("fusion=[", ("fusion=[", "not valid YAML")),
    ],
)
def test_a_word_that_is_wrong(word: str, parts: tuple[str, ...], refused: Refused) -> None:
    also = ("trainable.encoder=full",) if word.startswith("feature_cache") else ()
    sentence = refused(*TRAIN, word, *also)
    for part in parts:
        assert part in sentence
    if also:
        assert "feature_cache: the encoder trains in this stage" in sentence


def test_too_many_open_files_are_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "a.json")

    monkeypatch.setattr("fvl_lightning.cli.main.app", fail)
    assert run(["list"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"error: a\.json needs another open file: Too many open files \(.*ulimit -n 4096", said)


def test_losses_that_are_no_numbers_end_the_run(tmp_path: Path, tiny_data: Path, fvl_here: Run) -> None:
    furnish(tmp_path, tiny_data)
    words = ("optimizer.name=adamw", "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0")
    sentence = spoken(fvl_here(tmp_path, *TRAIN, *words, "trainer.max_skipped=1"))
    assert "step 3: no finite loss and gradient for 2 steps in a row, and trainer.max_skipped is 1" in sentence
    assert "lower optimizer.learning_rate" in sentence
    run = tmp_path / "runs" / "finetune"
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["status"] == "failed"
    assert not (run / "model").exists()


def test_another_model_is_no_start(refused: Refused) -> None:
    sentence = refused(*TRAIN, "init_from=[runs/finetune]", "language_model.model.hidden_size=64")
    assert "runs/finetune/model holds another model" in sentence
    assert "(512, 128) for (512, 64)" in sentence


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("train", "experiments/demo/finetun.yaml"), ("finetun.yaml", "pretrain.yaml", "mean 'finetune.yaml'?")),
        (("train", "nowhere.yaml"), ("no configuration file nowhere.yaml",)),
        (("train", COMPARISON), (COMPARISON, "this is a comparison file, which `fvl compare`")),
        (("train",), ("experiment",)),
        (("train", FINETUNE, "--resum"), ("--resum", "--resume")),
        (("train", FINETUNE, "--resume", "--resume-or-start"), ("--resume, --resume-or-start", "give one")),
        (("trian", FINETUNE), ("'trian'", "'train'")),
        (("compare", FINETUNE), (FINETUNE, "this is an experiment file, which `fvl train` takes")),
        (("compare", COMPARISON, "arms={a: {set: [fusion=gate]}}"), ("arms.a.set on the command line", "'gate'")),
        (("compare", COMPARISON, "transfer_levels=[herd]"), ("unknown level 'herd'", "did you mean 'hard'?")),
        (
            ("compare", COMPARISON, "unseen_splits=[test_unseen_word]", f"set=[{', '.join(TINY_DATA)}]"),
            ("no shard test_unseen_word-<number>.tar", "mean 'test_unseen_words'?"),
        ),
        (("compare", COMPARISON, "arms={a: {sett: []}}"), ("arms.a.sett", "did you mean 'set'?")),
        (("compare", COMPARISON, "set=trainer.max_steps=-5"), ("trainer.max_steps in set on the command line",)),
        (("compare", COMPARISON, "trainer.max_steps=5"), ("'trainer'", "as in set=trainer.max_steps=20")),
        (("compare", COMPARISON, "seeds=[0,0]"), ("seeds on the command line: one is named twice",)),
        (("compare", COMPARISON, "arms={}"), ("arms and axes", "a comparison needs exactly one of the two")),
        (("compare", COMPARISON, "stages=[pretrian.yaml]"), ("pretrian.yaml", "did you mean 'pretrain.yaml'?")),
        (("show", FINETUNE, "fusion=gate"), ("'gate'", "did you mean 'gated'?")),
        (("list", "fusions"), ("'fusions'", "data, encoder, fusion", "did you mean 'fusion'?")),
        (("describe", "fusions", "gated"), ("'fusions'", "did you mean 'fusion'?")),
        (("describe", "fusion", "gate"), ("'gate'", "attention, bilinear, concat", "did you mean 'gated'?")),
        (("describe", "trainr"), ("unknown slot or section 'trainr'", "did you mean 'trainer'?")),
        (("describe", "optimizer.lr"), ("optimizer: unknown key 'lr'", "did you mean 'learning_rate'?")),
        (("train", FINETUNE, "--fusion", "attention"), ("--fusion: this is no option", "dashes: fusion=attention")),
        (("train", FINETUNE, "--resume", "--lr=3", "seed=1"), ("--lr: ", "dashes: optimizer.learning_rate=3")),
        (("train", FINETUNE, "--trainer.max-steps", "3", "seed=1"), ("dashes: trainer.max_steps=3",)),
        (("compare", COMPARISON, "--seeds", "0", "1"), ('dashes: "seeds=[0,1]"',)),
        (("launch", FINETUNE, "--nodes", "2", "--nothing", "3"), ("No such option: --nothing",)),
        (("evaluate", "runs/finetune", "--controls", "zeroed"), ("--controls: unknown control 'zeroed'",)),
        (("evaluate", "runs/encoder_pretrain", "--limit", "3"), ("--limit: runs/encoder_pretrain is an encoder",)),
        ((*TRAIN, f"init_from={'a' * 300}"), ("/config.json cannot be used: File name too long",)),
        (("evaluate", "runs/finetun"), ("runs/finetun", "did you mean runs/finetune?")),
        (("evaluate", "experiments"), ("experiments is not a run folder", "runs/finetune")),
        (("evaluate", "0123456789abcdef"), ("0123456789abcdef", "runs/finetune")),
        (("evaluate", "runs/finetune", "--split", "tst"), ("tst", "test_unseen_words", "did you mean 'test'?")),
        (("evaluate", "runs/finetune", "--level", "eassy"), ("'eassy'", "did you mean 'easy'?")),
        (("generate", "runs/finetune", "--image", "nope.png", "--prompt", "x"), ("no image nope.png",)),
        (("generate", "runs/finetune", "--image", FINETUNE, "--prompt", "x"), (FINETUNE, "not a readable PNG")),
        (("generate", "runs/finetune", "--prompt", "x"), ("--image",)),
        (("generate", "runs/encoder_pretrain", "--image", "x.png", "--prompt", "x"), ("without a language model",)),
        (("ui", "--uri", "sqlite:///none.db"), ("none.db", "no MLflow store")),
        (("ui", "--port", "many"), ("--port",)),
    ],
)
def test_a_command_that_is_wrong(words: tuple[str, ...], parts: tuple[str, ...], refused: Refused) -> None:
    untracked = ("tracking.enabled=false",) if words[0] in ("train", "compare") and len(words) > 1 else ()
    sentence = refused(*words, *untracked)
    for part in parts:
        assert part in sentence


def test_a_mistake_in_a_file_is_told_with_the_file(folder: Path, refused: Refused) -> None:
    (folder / "mine.yaml").write_text(f"base: {FINETUNE}\nfusion: {{name: gated, gat: sigmoid}}\n", encoding="utf-8")
    sentence = refused("train", "mine.yaml")
    assert "fusion.gat in mine.yaml" in sentence
    assert "did you mean 'gate'?" in sentence
    (folder / "mine.yaml").write_text("trainer: {max_steps: 3\n", encoding="utf-8")
    assert "mine.yaml is not valid YAML: line " in refused("train", "mine.yaml")


def test_a_broken_picture_is_not_looked_at(folder: Path, refused: Refused) -> None:
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:60])
    sentence = refused("generate", "runs/finetune", "--image", "half.png", "--prompt", "what colour is it?")
    assert "half.png: not a readable PNG, JPEG, WebP, GIF or BMP" in sentence


@pytest.mark.parametrize("status", ["interrupted", "running", "failed"])
def test_an_unfinished_run_cannot_be_asked(status: str, tmp_path: Path, folder: Path, refused: Refused) -> None:
    shutil.copytree(folder / "runs" / "finetune", tmp_path / "stopped")
    RunFolder(tmp_path / "stopped").record(status=status)
    for words in (("evaluate",), ("generate", "--image", "x.png", "--prompt", "x")):
        sentence = refused(words[0], str(tmp_path / "stopped"), *words[1:])
        assert f"stopped is {status}" in sentence
        assert "--resume" in sentence


def test_a_run_folder_that_is_broken(tmp_path: Path, folder: Path, refused: Refused) -> None:
    shutil.copytree(folder / "runs" / "finetune", tmp_path / "broken")
    (tmp_path / "broken" / "model" / "model.safetensors").write_bytes(b"no tensors")
    sentence = refused(*TRAIN, f"init_from=[{tmp_path / 'broken'}]")
    assert "broken/model/model.safetensors is not what the run saved" in sentence
    (tmp_path / "broken" / "model" / "model.safetensors").unlink()
    assert "holds no weights" in refused(*TRAIN, f"init_from=[{tmp_path / 'broken'}]")
    (tmp_path / "broken" / "config.yaml").unlink()
    assert "config.yaml is missing" in refused("evaluate", str(tmp_path / "broken"))
    (tmp_path / "broken" / "run.json").write_text("{", encoding="utf-8")
    assert "run.json is not valid JSON" in refused("evaluate", str(tmp_path / "broken"))


def test_a_store_that_cannot_be_opened(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "words.db").write_text("these are words", encoding="utf-8")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for uri, part in (
            (f"sqlite:///{tmp_path}", "is a folder, not an sqlite file"),
            (f"sqlite:///{tmp_path / 'words.db'}", "is not an sqlite database"),
            ("sqlite:////dev/null/mlflow.db", "cannot be created"),
            ("postgres://somewhere", "'postgres://somewhere' is not an MLflow store this kit can use"),
            (closed, f"no MLflow server answers at {closed}"),
        ):
            sentence = refused(*TRACKED, f"tracking.uri={uri}")
            assert "tracking.uri" in sentence
            assert part in sentence
        tiny = f"set=[{', '.join(TINY_DATA)}]"
        assert part in refused("compare", COMPARISON, f"tracking.uri={uri}", "transfer_levels=[]", tiny)


def test_a_port_that_is_taken(folder: Path, empty_store: Path, refused: Refused) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        sentence = refused("ui", "--uri", f"sqlite:///{empty_store}", "--port", port)
    assert f"port {port} on 127.0.0.1 cannot be used" in sentence


def write_shards(root: Path, split: str, images: int, change: Change) -> Path:
    """A shard of the demo's pictures; `change(index, record, images)` may spoil a sample before it is written."""
    with ShardWriter(root, split) as writer:
        for index in range(images):
            key, record, png = make_sample(0, LEVELS["easy"], "train", index)
            pictures = [png]
            change(index, record, pictures)
            writer.write(key, record, pictures)
    return root / f"{split}-000000.tar"


def as_it_is(index: int, record: dict[str, Any], images: list[bytes]) -> None:
    """Spoils nothing."""


def cut_picture(index: int, record: dict[str, Any], images: list[bytes]) -> None:
    """Half of a picture."""
    images[0] = images[0][:80]


def two_pictures(index: int, record: dict[str, Any], images: list[bytes]) -> None:
    """One picture more than the conversation speaks of."""
    images.append(images[0])


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Good shards of both splits, for a test to spoil."""
    write_shards(tmp_path / "shards", "train", 32, as_it_is)
    write_shards(tmp_path / "shards", "validation", 8, as_it_is)
    return tmp_path / "shards"


def on(root: Path, *more: str) -> tuple[str, ...]:
    """Words that train on shards of one's own."""
    return (*ON_SHARDS, f"data={{name: shards, root: {root}}}", *more)


def test_good_shards_are_trained_on_but_need_questions_to_be_scored(
    shards: Path, tmp_path: Path, tiny_data: Path, fvl_here: Run
) -> None:
    folder = furnish(tmp_path, tiny_data)
    done = fvl_here(folder, *on(shards))
    assert done.returncode == 0, done.stderr
    assert fvl_here(folder, "evaluate", "runs/finetune", "--split", "validation").returncode == 0
    write_shards(shards, "test", 4, lambda index, record, images: record.pop("kinds"))
    sentence = spoken(fvl_here(folder, "evaluate", "runs/finetune"))
    assert f"split test ({shards / 'test-000000.tar'} ...) has no questions to score" in sentence
    assert "which has no levels" in spoken(fvl_here(folder, "evaluate", "runs/finetune", "--level", "hard"))


def test_shards_that_are_missing(shards: Path, refused: Refused) -> None:
    assert "did you mean 'shards'?" in refused(*on(shards.with_name("shard")))
    (shards / "validation-000000.tar").unlink()
    sentence = refused(*on(shards))
    assert "no shard validation-<number>.tar" in sentence
    assert "there are the splits train" in sentence
    (shards / "train-000000.tar").unlink()
    assert "there are no shards at all" in refused(*on(shards))


def test_shards_that_are_empty_or_cut_short(shards: Path, refused: Refused) -> None:
    tar = shards / "train-000000.tar"
    index_path(tar).unlink()
    tar.write_bytes(b"")
    assert f"shard {tar} holds no samples: 1 x empty file" in refused(*on(shards))
    tar.write_bytes(bytes(10240))
    sentence = refused(*on(shards))
    assert f"shard {tar} holds no samples" in sentence


def test_an_index_that_does_not_match_its_tar(shards: Path, refused: Refused) -> None:
    tar = shards / "train-000000.tar"
    tar.write_bytes(tar.read_bytes() + bytes(10240))
    sentence = refused(*on(shards))
    assert f"index {index_path(tar)} does not match its tar" in sentence
    assert "delete the index and it is rebuilt" in sentence
    index_path(tar).write_bytes(b"not an index")
    assert f"index {index_path(tar)} cannot be read" in refused(*on(shards))


def fails_while_training(folder: Path, run: Run, *words: str) -> str:
    """The sentence of a training that had begun; its folder must say that it failed and hold no model."""
    sentence = spoken(run(folder, *words))
    failed = RunFolder(folder / "runs" / "finetune")
    assert failed.info["status"] == "failed"
    assert sentence in failed.info["error"]
    assert not failed.model.exists()
    return sentence


def test_an_index_of_the_same_length_that_lies(shards: Path, refused: Refused) -> None:
    tar = shards / "train-000000.tar"
    index = open_index(tar)
    save_index(dataclasses.replace(index, offsets=index.offsets + 512), index_path(tar))
    assert f"index {index_path(tar)} does not match its tar: no member" in refused(*on(shards))


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (cut_picture, ("broken image", "max_bad_fraction 0.01")),
        (two_pictures, ("image count", "2 images, 1 image parts")),
        (lambda index, record, images: record.pop("messages"), ("no messages",)),
        (lambda index, record, images: record["messages"].pop(0), ("image count", "1 images, 0 image parts")),
    ],
    ids=["broken-image", "more-images-than-placeholders", "no-conversation", "fewer-placeholders-than-images"],
)
def test_samples_of_which_none_is_good(
    spoil: Any, parts: tuple[str, ...], shards: Path, tmp_path: Path, tiny_data: Path, fvl_here: Run
) -> None:
    tar = write_shards(shards, "train", 16, spoil)
    sentence = fails_while_training(furnish(tmp_path, tiny_data), fvl_here, *on(shards))
    for part in (*parts, str(tar), "sample 'easy-train-0000"):
        assert part in sentence


def test_more_bad_samples_than_allowed(tmp_path: Path, tiny_data: Path, fvl_here: Run) -> None:
    root = tmp_path / "shards"
    write_shards(root, "train", 40, lambda index, *sample: cut_picture(index, *sample) if index % 8 == 0 else None)
    write_shards(root, "validation", 8, as_it_is)
    folder, words = furnish(tmp_path, tiny_data), on(root, "trainer.max_steps=14")
    sentence = fails_while_training(folder, fvl_here, *words)
    assert "samples cannot be used (broken image: " in sentence
    assert "max_bad_fraction 0.01" in sentence
    assert "train-000000.tar" in sentence
    allowed = fvl_here(folder, *words, "data.max_bad_fraction=0.2", "name=allowed")
    assert allowed.returncode == 0, allowed.stderr
    assert "skipped sample 'easy-train-0000" in allowed.stderr
