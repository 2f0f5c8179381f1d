"""Files of a run and of a model, cut anywhere and with flipped bits: refused in a sentence, repaired or left out.

Nothing raises anything but the error of a user, and what is opened is what was written, or a warning says otherwise.
"""

import dataclasses
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.building.manifest import Manifest
from datamodules.storage.index import load_index
from fvl_lightning.core.errors import DataError, UserError
from fvl_lightning.modeling.build import MAX_LAYERS, load_model
from fvl_lightning.runs import run_files
from fvl_lightning.runs.folder import RunFolder
from fvl_lightning.runs.references import check_model
from fvl_lightning.training.checkpointing.last_and_previous import is_whole
from tests.conftest import Run

SLOW = pytest.mark.slow


def refused(call: Callable[[], Any]) -> bool:
    """Whether a call is refused with a sentence; any other error is the test's."""
    try:
        call()
    except UserError as error:
        lines = str(error).splitlines()
    else:
        return False
    assert len(lines) == 1
    return True


def flips(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` copies of a file, each with another bit flipped."""
    draw = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        yield bytes(damaged)


def cuts(whole: bytes, most: int) -> Iterator[bytes]:
    """A file cut at every byte, or at `most` places spread evenly."""
    for size in range(0, len(whole), max(1, len(whole) // most)):
        yield whole[:size]


@pytest.fixture
def run(asked: Path, tmp_path: Path) -> RunFolder:
    """A copy of a finished run."""
    shutil.copytree(asked / "runs" / "tiny", tmp_path / "tiny")
    return RunFolder(tmp_path / "tiny")


@pytest.fixture
def model(asked: Path, tmp_path: Path) -> Path:
    """A copy of its model, of which nobody knows the hashes."""
    shutil.copytree(asked / "runs" / "tiny" / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("flipped", "cut"), [(10, 10), pytest.param(300, 10**9, marks=SLOW)])
def test_files_of_a_run(flipped: int, cut: int, run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    reads: dict[str, Callable[[], Any]] = {
        "run.json": lambda: dict(run.info), "config.yaml": lambda: run.config, "metrics.jsonl": run.curves,
    }  # fmt: skip
    for name, read in reads.items():
        file = run.path / name
        whole, before = file.read_bytes(), read()
        for damaged in (*flips(whole, flipped), *cuts(whole, cut)):
            file.write_bytes(damaged)
            caplog.clear()
            run_files._say_changed.cache_clear()  # two cuts may be read alike, which is said once
            result: list[Any] = []
            if refused(lambda read=read, result=result: result.append(read())) or result == [before]:
                continue
            torn = name == "metrics.jsonl"  # a number in a line may be another one, and a torn last line is left out
            assert torn or caplog.messages, f"{name}: {damaged[:200]!r}"
        file.write_bytes(whole)
        assert read() == before


@pytest.mark.parametrize(("flipped", "cut"), [(20, 20), pytest.param(2_000, 500, marks=SLOW)])
def test_the_model_of_a_run_is_the_one_it_saved(
    flipped: int, cut: int, run: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights are refused; other files cause a warning, since their readers find what is wrong in them."""

    def noticed(suffix: str) -> str:
        caplog.clear()
        if suffix == ".safetensors":
            with pytest.raises(DataError) as told:
                check_model(run)
            return str(told.value)
        check_model(run)
        return caplog.text

    check_model(run)
    assert not caplog.text
    for file in sorted(run.model.iterdir()):
        whole = file.read_bytes()
        for damaged in (*flips(whole, flipped), *cuts(whole, cut)):
            file.write_bytes(damaged)
            assert f"{file} is not what the run saved: it is damaged or edited" in noticed(file.suffix)
        file.unlink()
        if file.suffix == ".safetensors":
            with pytest.raises(DataError):
                load_model(run.model)
        assert f"{file} is not what the run saved: it is gone" in noticed("")
        file.write_bytes(whole)
    check_model(run)


@pytest.mark.parametrize(("flipped", "cut"), [(1, 1), pytest.param(40, 40, marks=SLOW)])
def test_a_model_folder_of_a_stranger(flipped: int, cut: int, model: Path) -> None:
    """Weights and words may be others; nothing but a sentence is raised."""
    for file in sorted(model.iterdir()):
        whole = file.read_bytes()
        for damaged in (*flips(whole, flipped, seed=1), *cuts(whole, cut), b""):
            file.write_bytes(damaged)
            refused(lambda: load_model(model))
        file.write_bytes(whole)
    assert load_model(model)


def changed(file: Path, **values: Any) -> None:
    """Changes keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def inner(file: Path, key: str, **values: Any) -> None:
    """Changes keys of an object in a JSON file."""
    changed(file, **{key: json.loads(file.read_text(encoding="utf-8"))[key] | values})


STRANGE: dict[str, Callable[[Path], Any]] = {
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text("", encoding="utf-8"),
    "tokenizer of another type": lambda folder: (folder / "tokenizer.json").write_text("[]", encoding="utf-8"),
    "tokenizer without a model": lambda folder: changed(folder / "tokenizer.json", model=3),
    "tokenizer class": lambda folder: changed(folder / "tokenizer_config.json", tokenizer_class=3),
    "300,000 added tokens": lambda folder: changed(
        folder / "tokenizer.json",
        added_tokens=[{"id": 999 + i, "content": f"<{i}>", "special": True, "normalized": False, "lstrip": False,
                       "rstrip": False, "single_word": False} for i in range(300_000)],
    ),
    "added tokens of another type": lambda folder: changed(folder / "tokenizer.json", added_tokens=3),
    "processor [": lambda folder: (folder / "processor_config.json").write_text("[", encoding="utf-8"),
    "processor []": lambda folder: (folder / "processor_config.json").write_text("[]", encoding="utf-8"),
    "processor 3": lambda folder: (folder / "processor_config.json").write_text("3", encoding="utf-8"),
    "no tokens per image": lambda folder: changed(folder / "processor_config.json", tokens_per_image=0),
    "tokens per image": lambda folder: changed(folder / "processor_config.json", tokens_per_image="x"),
    "asking": lambda folder: changed(folder / "processor_config.json", asking={"behind_image": 3}),
    "asking of another type": lambda folder: changed(folder / "processor_config.json", asking=[1]),
    "image size": lambda folder: inner(folder / "processor_config.json", "image_processor", size={"height": 10**9}),
    "image fit": lambda folder: inner(folder / "processor_config.json", "image_processor", fit="bent"),
    "image mean": lambda folder: inner(folder / "processor_config.json", "image_processor", image_mean="x"),
    "configuration []": lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"),
    "configuration nested": lambda folder: (folder / "config.json").write_text("[" * 100_000, encoding="utf-8"),
    "model type": lambda folder: changed(folder / "config.json", model_type="llama"),
    "fusion 3": lambda folder: changed(folder / "config.json", fusion=3),
    "fusion null": lambda folder: changed(folder / "config.json", fusion=None),
    "encoder 3": lambda folder: changed(folder / "config.json", encoder={"name": "florence2", "model": 3}),
    "text null": lambda folder: changed(folder / "config.json", text_config=None),
    "image token": lambda folder: changed(folder / "config.json", image_token_id="x"),
    "dtype": lambda folder: changed(folder / "config.json", dtype="float99"),
    "hidden size x": lambda folder: inner(folder / "config.json", "text_config", hidden_size="x"),
    "hidden size": lambda folder: inner(folder / "config.json", "text_config", hidden_size=2**20),
    "heads 0": lambda folder: inner(folder / "config.json", "text_config", num_attention_heads=0),
    "layers": lambda folder: inner(folder / "config.json", "text_config", num_hidden_layers=MAX_LAYERS + 1),
    "text type": lambda folder: inner(folder / "config.json", "text_config", model_type="nobody"),
    "stop tokens": lambda folder: (folder / "generation_config.json").write_text('{"eos_token_id": "x"}', "utf-8"),
    "generation []": lambda folder: (folder / "generation_config.json").write_text("[]", encoding="utf-8"),
    "weights elsewhere": lambda folder: (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "../../etc/passwd"}}', encoding="utf-8"
    ),
    "weights by an absolute path": lambda folder: (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "/etc/passwd"}}', encoding="utf-8"
    ),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights are a folder": lambda folder: (
        (folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()
    ),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff\xfe"),
}  # fmt: skip


@pytest.mark.parametrize("damage", STRANGE.values(), ids=STRANGE)
def test_a_strange_model_folder_is_a_sentence(damage: Callable[[Path], Any], model: Path) -> None:
    damage(model)
    with pytest.raises(UserError) as told:
        load_model(model)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("flipped", [150, pytest.param(4_000, marks=SLOW)])
def test_an_index_of_shards(flipped: int, tiny_data: Path, tmp_path: Path) -> None:
    tar = next(iter(sorted((tiny_data / "demo").rglob("train-*.tar"))))
    shutil.copy(tar, tmp_path / tar.name)
    tar = tmp_path / tar.name
    from datamodules.storage.index import index_path, open_index

    before = open_index(tar)
    file = index_path(tar)
    whole = file.read_bytes()
    for damaged in (*flips(whole, flipped), *cuts(whole, flipped)):
        file.write_bytes(damaged)
        found: list[Any] = []
        if not refused(lambda found=found: found.append(load_index(tar))):
            assert found[0] is None or _fields(found[0]) == _fields(before)


def _fields(index: Any) -> list[Any]:
    return [value.tolist() if hasattr(value, "tolist") else value for value in dataclasses.astuple(index)[:-1]]


@pytest.mark.parametrize("flipped", [200, pytest.param(2_000, marks=SLOW)])
def test_a_manifest_of_shards(flipped: int) -> None:
    shard = {"name": "train-000000.tar", "samples": 3, "images": 3, "bytes": 9}
    from datamodules.storage.writer import Shard

    names = [part.name for part in dataclasses.fields(Shard)]
    shards = {"train": [Shard(**{name: shard.get(name, "0") for name in names})]}
    whole = Manifest({"a": 1}, shards, {"reason": 2}).to_json().encode()
    def is_refused(damaged: bytes) -> bool:
        return refused(lambda: Manifest.from_json(damaged.decode(errors="replace"), "manifest.json"))

    assert not is_refused(whole)
    assert all(map(is_refused, cuts(whole.strip(), flipped)))
    # A flip in a name or a count leaves a manifest; `fvl shards check` compares it with the shards.
    assert sum(map(is_refused, flips(whole, flipped))) > flipped // 4


@pytest.mark.parametrize("flipped", [20, pytest.param(1_000, marks=SLOW)])
def test_checkpoints_of_a_run(flipped: int, run: RunFolder) -> None:
    for file in sorted(run.checkpoints.iterdir()):
        whole = file.read_bytes()
        for damaged in (*flips(whole, flipped), *cuts(whole, flipped)):
            file.write_bytes(damaged)
            assert not is_whole(file)
        file.write_bytes(whole)
        assert is_whole(file)


def test_commands_on_a_damaged_run(asked: Path, run: RunFolder, fvl_here: Run) -> None:
    """Exit code 2 and a sentence, from evaluate, generate, export and sync; and the checkpoint before for an export."""
    picture = run.path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    weights = run.model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    words = {
        "evaluate": ("--limit", "1"), "generate": ("--image", str(picture), "--prompt", "x"),
        "export": (str(run.path / "out"),),
    }  # fmt: skip
    for verb, more in words.items():
        done = fvl_here(asked, verb, str(run.path), *more)
        assert (done.returncode, "is not what the run saved" in done.stderr) == (2, True), done.stderr
    last, previous = (run.checkpoints / name for name in ("last.ckpt", "previous.ckpt"))
    shutil.copy(last, previous)
    last.write_bytes(last.read_bytes()[:1000])
    done = fvl_here(asked, "export", str(run.path), str(run.path / "again"), "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    assert f"{last} is damaged; the checkpoint before it is taken, {previous}" in done.stderr
    for name, text in (("run.json", "[]"), ("config.yaml", "3")):
        file = run.path / name
        before = file.read_bytes()
        file.write_text(text, encoding="utf-8")
        for verb, more in words.items():
            done = fvl_here(asked, verb, str(run.path), *more)
            assert done.returncode == 2
            assert done.stderr.startswith("error: ")
        file.write_bytes(before)


def test_the_warning_about_an_edited_configuration(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    file = run.path / "config.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "\nnote: mine\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert run.config["note"] == "mine"
    assert "was changed since the run was started" in caplog.text
