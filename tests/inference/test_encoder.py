"""`fvl encoder`: what an encoder's own decoder says about a picture, from runs, saved folders and Florence-2 itself."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, Florence2Config, Florence2ForConditionalGeneration

from datamodules.storage.content_hash import file_hashes
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.experiment import ExperimentConfig
from fvl_lightning.encoders.florence2_original import original_sizes
from fvl_lightning.inference.boxes import BOX_COLOURS, MIN_SIDE
from fvl_lightning.runs.folder import RunFolder
from tests.cli.test_errors import spoken
from tests.conftest import ROOT, TINY, Run, furnish
from tests.encoders import original
from tests.modeling.conversion.original_layout import TOWER, save_weights

ENCODER = "runs/encoder_pretrain"
BOXES = "red circle<loc_0><loc_0><loc_15><loc_31>blue star<loc_24><loc_8><loc_8><loc_24><loc_31><loc_0><loc_31><loc_3>"
Teach = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, fvl_here: Run) -> Path:
    """A working folder with an encoder's run, two stages that follow it, and one that keeps its decoder."""
    folder = furnish(tmp_path_factory.mktemp("encoder"), tiny_data)
    Image.new("RGB", (96, 48), (128, 128, 128)).save(folder / "wide.png")
    started = f"init_from=[{ENCODER}]"
    for words in (
        ("experiments/demo/encoder_pretrain.yaml",),
        ("experiments/demo/pretrain.yaml", started),
        ("experiments/demo/finetune.yaml", "init_from=[runs/pretrain]"),
        ("experiments/demo/finetune.yaml", started, "encoder.decoder=keep", "name=kept"),
    ):
        done = fvl_here(folder, "train", *words, *TINY)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def teach(folder: Path) -> Teach:
    """(name, text) -> a copy of the encoder's run whose decoder says `text` about every picture.

    Nothing is added to the embeddings on their way through the decoder, and its positions are the words to come.
    """

    def taught(name: str, text: str) -> Path:
        run = folder / name
        if run.exists():
            return run
        shutil.copytree(folder / ENCODER, run)
        tokenizer = AutoTokenizer.from_pretrained(folder / "data" / "demo" / "tokenizer")
        words = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        weights = load_file(run / "model" / "model.safetensors")
        decoder = {key: value for key, value in weights.items() if key.startswith("encoder.decoder.")}
        for key, value in decoder.items():
            if "norm" in key:
                value.fill_(float(key.endswith("weight")))
            elif re.search(r"\.(out_proj|fc2)\.", key):
                value.zero_()
        table = weights["encoder.text_encoder.embed_tokens.weight"]
        table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))
        weights["encoder.decoder.embed_positions.weight"][2 : 2 + len(words)] = 100 * table[words]
        save_file(weights, run / "model" / "model.safetensors")
        RunFolder(run).record(files=file_hashes(run / "model"))
        return run

    return taught


def test_the_answer_is_printed_and_no_picture_made(folder: Path, teach: Teach, fvl_here: Run) -> None:
    run = teach("speaks", "the red circle")
    done = fvl_here(folder, "encoder", str(run), "--task", "ocr", "--image", "wide.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the red circle\n", "")
    assert not (folder / "boxes.png").exists()


@pytest.mark.parametrize("by", ["id", "model folder", "folder of its own"])
def test_a_model_is_found_by(by: str, folder: Path, tmp_path: Path, teach: Teach, fvl_here: Run) -> None:
    run = teach("runs/speaks_too", "blue star")
    RunFolder(run).record(mlflow_run_id="0123456789abcdef")
    own = tmp_path / "own"
    reference = {"id": "0123456789abcdef", "model folder": f"{run}/model", "folder of its own": str(own)}[by]
    shutil.copytree(run / "model", own)
    shutil.copytree(folder / "data" / "demo" / "tokenizer", own, dirs_exist_ok=True)
    where = tmp_path if by == "folder of its own" else folder
    done = fvl_here(where, "encoder", reference, "--image", str(folder / "wide.png"))
    assert (done.returncode, done.stdout) == (0, "blue star\n"), done.stderr


def test_boxes_are_told_in_pixels_and_drawn(folder: Path, tmp_path: Path, teach: Teach, fvl_here: Run) -> None:
    """Of 32 bins, 3 pixels wide and 1.5 high each; corners in the middle of a bin, and in any order."""
    run, out = teach("locates", BOXES), tmp_path / "out.png"
    words = ("encoder", str(run), "--task", "grounding", "--image", "wide.png", "--output", str(out))
    done = fvl_here(folder, *words)
    assert done.returncode == 0, done.stderr
    rows = [cells for line in done.stdout.splitlines() if len(cells := [c.strip() for c in line.split("│")[1:-1]]) == 5]
    assert rows == [
        ["red circle", "2", "1", "46", "47"], ["blue star", "26", "13", "74", "37"], ["blue star", "94", "1", "94", "5"]
    ]
    picture = Image.open(out)
    zoom = MIN_SIDE // 96
    assert (picture.mode, picture.size) == ("RGB", (96 * zoom, 48 * zoom))
    middle = {"red circle": (46.5 * zoom, 24 * zoom), "blue star": (50 * zoom, 36.75 * zoom)}
    for place, colour in zip(middle.values(), BOX_COLOURS, strict=False):
        x, y = map(int, place)
        assert colour in {picture.getpixel((x + dx, y + dy)) for dx in range(-6, 7) for dy in range(-6, 7)}
    assert picture.getpixel((80 * zoom, 45 * zoom)) == (128, 128, 128)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png"]


def test_an_answer_that_is_cut_says_so(folder: Path, teach: Teach, fvl_here: Run) -> None:
    done = fvl_here(folder, "encoder", str(teach("locates", BOXES)), "--image", "wide.png", "--max-tokens", "3")
    assert done.returncode == 0
    assert 0 < len(done.stdout) < len(BOXES)
    assert "cut" in done.stderr
    assert "--max-tokens" in done.stderr


def test_a_prompt_of_ones_own(folder: Path, teach: Teach, fvl_here: Run) -> None:
    model = teach("asks", "green") / "model"
    config = json.loads((model / "encoder.json").read_text(encoding="utf-8"))
    ids = config["prompt_ids"]["caption"]
    config |= {"sources": ["davit", "colour"], "prompts": {"colour": "What colour?"}, "prompt_ids": {"colour": ids}}
    (model / "encoder.json").write_text(json.dumps(config), encoding="utf-8")
    done = fvl_here(folder, "encoder", str(model), "--task", "colour", "--image", "wide.png")
    assert (done.returncode, done.stdout) == (0, "green\n"), done.stderr
    sentence = spoken(fvl_here(folder, "encoder", str(model), "--task", "color", "--image", "wide.png"))
    assert sentence == "task: unknown prompt 'color', allowed: colour; did you mean 'colour'?"


def test_a_later_stage_that_kept_the_decoder(folder: Path, fvl_here: Run) -> None:
    """As a run and as a model folder; its encoder is frozen, so it says what the encoder's run says."""
    said = {
        fvl_here(folder, "encoder", model, "--image", "wide.png", "--max-tokens", "9").stdout
        for model in (ENCODER, "runs/kept", "runs/kept/model")
    }
    assert len(said) == 1
    assert said != {""}


@pytest.mark.parametrize("task", ["caption", "ocr"])
def test_florence2_in_both_layouts_says_the_same(task: str, tmp_path: Path, folder: Path, fvl_here: Run) -> None:
    inside = "model.vision_tower.vision_tower."
    whole = original.tensors("llama/model.safetensors")
    weights = {name.removeprefix(inside): value for name, value in whole.items() if name.startswith(inside)}
    theirs, native = tmp_path / "theirs", tmp_path / "native"
    shutil.copytree(original.TOWER, theirs)
    save_weights(theirs, weights)
    config = Florence2Config(**original_sizes(TOWER))
    model = Florence2ForConditionalGeneration(config)
    encoder = original.encoder()
    model.model.vision_tower.load_state_dict(encoder.vision_tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(encoder.image_projector.state_dict())
    bart = "language_model.model."
    model.model.language_model.load_state_dict(
        {name.removeprefix(bart): value for name, value in weights.items() if name.startswith(bart)}
    )
    model.save_pretrained(native)
    shutil.copyfile(theirs / "preprocessor_config.json", native / "preprocessor_config.json")
    said = []
    for place in (theirs, native):
        original.save_tokenizer(place, 50265)
        words = ("encoder", str(place), "--task", task, "--image", str(folder / "wide.png"), "--max-tokens", "12")
        done = fvl_here(folder, *words)
        assert done.returncode == 0, done.stderr
        said.append(re.sub(r"<loc_\d+>|</?\w+>", "", done.stdout))  # the native folder's tokenizer has no such tokens
    assert said[0] == said[1]
    assert said[0].strip()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((ENCODER, "--task", "captoin", "--image", "wide.png"), ("'captoin'", "caption, grounding, ocr", "mean 'cap")),
        ((ENCODER, "--image", "nope.png"), ("no image nope.png",)),
        ((ENCODER, "--image", "data/demo/tokenizer/tokenizer.json"), ("not a readable PNG",)),
        ((ENCODER,), ("--image",)),
        ((ENCODER, "--image", "wide.png", "--max-tokens", "9999"), ("9999 are too many", "decoder has 256")),
        (("runs/encoder_pretrian", "--image", "wide.png"), ("runs/encoder_pretrian", "did you mean runs/encoder_pre")),
        (("0123456789abcdeg", "--image", "wide.png"), ("0123456789abcdeg is no run folder and no run id",)),
        (("experiments", "--image", "wide.png"), ("experiments holds no encoder", "encoder.json")),
        (("runs/finetune", "--image", "wide.png"), ("without its decoder", "name runs/encoder_pretrain")),
        (("runs/finetune/model", "--image", "wide.png"), ("without its decoder", "name an encoder_pretrain run")),
        (("bert", "--image", "wide.png"), ("bert is a model of type 'bert', expected a Florence-2",)),
    ],
)
def test_mistakes(words: tuple[str, ...], parts: tuple[str, ...], folder: Path, fvl_here: Run) -> None:
    if not (folder / "bert").exists():
        BertConfig().save_pretrained(folder / "bert")
    sentence = spoken(fvl_here(folder, "encoder", *words))
    for part in parts:
        assert part in sentence


def test_a_place_that_cannot_be_written_to(folder: Path, teach: Teach, fvl_here: Run) -> None:
    words = ("encoder", str(teach("locates", BOXES)), "--image", "wide.png", "--output", "nowhere/boxes.png")
    assert "--output: nowhere/boxes.png cannot be written" in spoken(fvl_here(folder, *words))


def spoilt(model: Path, config: dict[str, Any]) -> None:
    (model / "tokenizer_config.json").unlink(missing_ok=True)
    (model / "encoder.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda model, c: RunFolder(model.parent).record(status="interrupted"), "broken is interrupted"),
        (lambda model, c: (model / "model.safetensors").write_bytes(b"no tensors"), "is not what the run saved"),
        (lambda model, c: (model / "model.safetensors").unlink(), "holds no weights"),
        (lambda model, c: (model / "encoder.json").write_text("{"), "encoder.json could not be read"),
        (lambda model, c: spoilt(model, {**c, "image_sise": 64}), "'image_sise'"),
        (lambda model, c: spoilt(model, {**c, "decoder": "drop"}), "without its decoder, which cannot write"),
        (lambda model, c: spoilt(model, {**c, "tokenizer": "no/such/tokenizer"}), "was saved without its tokenizer"),
    ],
)
def test_a_run_that_is_broken(
    spoil: Callable[[Path, dict[str, Any]], Any], says: str, folder: Path, tmp_path: Path, fvl_here: Run
) -> None:
    shutil.copytree(folder / ENCODER, tmp_path / "broken")
    model = tmp_path / "broken" / "model"
    spoil(model, json.loads((model / "encoder.json").read_text(encoding="utf-8")))
    assert says in spoken(fvl_here(folder, "encoder", str(tmp_path / "broken"), "--image", "wide.png"))


def test_the_commands_of_the_page_run_on_the_quick_demo(quick_demo: Path, fvl_here: Run) -> None:
    """How well it sees is known from its scores; here, that it writes in the words and the format of the set."""
    text = (ROOT / "docs" / "encoders_florence2.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    said = []
    for words in map(shlex.split, block.splitlines()):
        done = fvl_here(quick_demo, *words[1:])
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    caption, _, boxes = said
    assert "the" in caption.split()
    assert "boxes: boxes.png" in boxes
    assert Image.open(quick_demo / "boxes.png").size == (MIN_SIDE, MIN_SIDE)


def test_what_the_page_writes_in_yaml_is_an_experiments_encoder(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "encoders_florence2.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "a.yaml").write_text(block, encoding="utf-8")
    assert load_config(ExperimentConfig, tmp_path / "a.yaml").encoder.name == "florence2"
