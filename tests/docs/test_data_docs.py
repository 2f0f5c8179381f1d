"""docs/data.md: its commands run in order on its own data, and its table of reasons has every one there is."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from datamodules.encoding.conversation import ConversationEncoder
from datamodules.inspection.check import check_samples
from datamodules.shards import ShardsData
from datamodules.storage.sample_store import SampleStore
from datamodules.storage.writer import ShardWriter
from fvl_lightning.core import registry
from fvl_lightning.language_models.causal import CausalLanguageModel
from tests.conftest import ROOT, Run
from tests.datamodules.encoding.templates import dressed, tokenizer_of

TEXT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, tiny_data: Path) -> Path:
    """A folder as the page describes it: its files, the photos they name but one, and the demo's tokenizer."""
    (tmp_path / "a.json").write_text(blocks("json")[0], encoding="utf-8")
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(("red.jpg", "green.png", "blue.webp")):
        Image.new("RGB", (60, 40), tuple(255 * (number == i) for i in range(3))).save(tmp_path / "photos" / name)
    (tmp_path / "captions").mkdir()
    for name in ("wall", "lost"):
        (tmp_path / "captions" / f"{name}.txt").write_text(f"a {name}", encoding="utf-8")
    Image.new("RGB", (60, 40)).save(tmp_path / "captions" / "wall.jpg")
    (tmp_path / "mine.py").write_text(blocks("python")[0], encoding="utf-8")
    (tmp_path / "data").symlink_to(tiny_data)
    return tmp_path


@pytest.mark.slow
def test_the_commands_run_and_say_what_the_page_says(folder: Path, fvl_here: Run) -> None:
    commands = [shlex.split(line) for block in blocks("bash") for line in block.splitlines()]
    verbs = ("build", "check", "info", "preview", "build")
    assert [words[:3] for words in commands] == [["fvl", "shards", verb] for verb in verbs]
    said = []
    for words in commands:
        done = fvl_here(folder, *words[1:])
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    refused = json.loads((folder / "shards" / "mine" / "refused.jsonl").read_text(encoding="utf-8"))
    assert (refused["reason"], refused["where"], refused["id"]) == ("missing image", "a.json, row 2", 3)
    assert "lost.jpg" in refused["detail"]
    assert re.search(r"missing image\s*│\s*1", said[0])
    assert "all is well" in said[1]
    assert json.loads((folder / "statistics.json").read_text(encoding="utf-8"))["samples"] == 4
    ShardsData(ShardsData.Config(root=str(folder / "shards" / "mine"))).prepare_data()
    assert "⟦It is red.<eos>⟧" in said[3]
    assert (folder / "preview.png").is_file()
    assert re.search(r"missing image\s*│\s*1", said[4])
    assert '"where": "lost.txt"' in (folder / "shards" / "beside" / "refused.jsonl").read_text(encoding="utf-8")
    assert SampleStore.open(str(folder / "shards" / "beside"), "train").record(0) == {"caption": "a wall"}


def test_the_second_example_is_a_sample_of_one_image(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (4, 3)).save(image, "PNG")
    with ShardWriter(tmp_path, "train") as writer:
        writer.write("key", json.loads(blocks("json")[1]), [image.getvalue()])
    assert check_samples(SampleStore.open(str(tmp_path), "train"), processes=1).counts == {}


def test_with_the_template_of_the_page_several_turns_are_one_row() -> None:
    (text,) = [found for found in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "chat_template" in found]
    fields = yaml.safe_load(text)["language_model"]
    assert fields.pop("name") == "causal"
    config = CausalLanguageModel.Config(**fields)
    theirs = tokenizer_of("qwen_3")
    tokenizer = dressed(theirs.backend_tokenizer, config.chat_template, eos_token=theirs.eos_token)
    encoder = ConversationEncoder(tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 2)
    turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    asked, answer = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>\n"
    assert encoder.written(turn * 2) == (asked + answer) * 2
    assert encoder.written(turn[:1], generate=True) == asked
    assert len(encoder.encode_turns(turn * 2).turn_ends) == 2


def test_the_tables_have_every_reason() -> None:
    files = (ROOT / "datamodules").rglob("*.py")
    names = r"(?:Refusal|Refused|_Refused|RefusedEntry|refuse|ShardProblem|self\.error|store\.error)"
    calls = rf"\b{names}\(\s*(?:[\w.]+, )?\"([a-z A-Z]+)\""
    reasons = {reason for file in files for reason in re.findall(calls, file.read_text(encoding="utf-8"))}
    assert {"missing image", "broken image", "image count", "unsafe path", "duplicate key"} <= reasons
    # Those of training alone, which depend on tokenizer and view.
    of_views = {"no answer", "too long", "not encodable", "no boxes", "kinds"}
    missing = {reason for reason in reasons - of_views if f"`{reason}`" not in TEXT}
    assert not missing


@pytest.mark.parametrize("name", ["llava_json", "pairs", "parquet", "img2dataset"])
def test_every_source_is_on_the_page_with_fields_that_it_has(name: str) -> None:
    components = {source: registry.component("source", source) for source in registry.names("source")}
    own = {source for source, made in components.items() if made.__module__.startswith("datamodules.sources.")}
    assert own == {"llava_json", "pairs", "parquet", "img2dataset"}
    (row,) = [line for line in TEXT.splitlines() if f"| `{name}` |" in line]
    fields = set(re.findall(r"`source\.(\w+)`", row))
    assert fields <= set(registry.component("source", name).Config.__dataclass_fields__)
    assert "file" in fields
