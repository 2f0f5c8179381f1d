"""Every recipe under experiments/data loads, and makes the right records of rows as its data set publishes them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.building.config import BuildConfig
from datamodules.encoding.messages import check_messages, image_parts
from datamodules.sources.base import Row
from fvl_lightning.core.config.loading import load_config
from tests.conftest import ROOT
from tests.datamodules.hub.server import FakeHub, serving
from tests.datamodules.sources.reading import read, talk, write_array, write_lines, write_tar

RECIPES = sorted((ROOT / "experiments" / "data").glob("*.yaml"))
IMAGE = {"type": "image"}
HUB_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def images(folder: str, *names: str) -> None:
    for name in names:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def asked(question: str | list[Any], answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def llava_558k() -> list[Row]:
    images("downloads/llava_558k/images", "00453/004539375.jpg")
    rows = [
        talk(
            "Render a clear and concise summary of the photo.\n<image>",
            "select luxury furniture 3 - inch gel memory foam mattress topper",
            id="004539375",
            image="00453/004539375.jpg",
        )
    ]
    write_array(Path("downloads/llava_558k/blip_laion_cc_sbu_558k.json"), rows)
    question, answer = (turn["value"] for turn in rows[0]["conversations"])
    parts = [{"type": "text", "text": question.removesuffix("<image>")}, IMAGE]
    record = {"id": "004539375", "messages": asked(parts, answer), "caption": answer}
    return [Row(record, (b"00453/004539375.jpg",))]


def llava_665k() -> list[Row]:
    images("downloads/llava_665k", "coco/train2017/000000033471.jpg")
    rows = [
        talk("<image>\nWhat colour?", "White.", "More?", "Red.", id="1", image="coco/train2017/000000033471.jpg"),
        talk("Write a poem.", "Roses ...", id="wgByO4Y_0", model=""),
        talk("<image>\nWho wrote it?", "Nobody.", id="2", image="ocr_vqa/images/gone.jpg"),
    ]
    write_array(Path("downloads/llava_665k/llava_v1_5_mix665k.json"), rows)
    first = [*asked([IMAGE, {"type": "text", "text": "\nWhat colour?"}], "White."), *asked("More?", "Red.")]
    return [
        Row({"id": "1", "messages": first}, (b"coco/train2017/000000033471.jpg",)),
        Row({"id": "wgByO4Y_0", "model": "", "messages": asked("Write a poem.", "Roses ...")}),
    ]


def sharegpt4v() -> list[Row]:
    images("downloads/sharegpt4v", "sam/images/sa_545504.jpg")
    rows = [talk("What do you see?\n<image>", "In the centre ...", id="sa_545504", image="sam/images/sa_545504.jpg")]
    write_array(Path("downloads/sharegpt4v/share-captioner_coco_lcs_sam_1246k_1107.json"), rows)
    messages = asked([{"type": "text", "text": "What do you see?\n"}, IMAGE], "In the centre ...")
    record = {"id": "sa_545504", "messages": messages, "caption": "In the centre ..."}
    return [Row(record, (b"sam/images/sa_545504.jpg",))]


def cambrian7m() -> list[Row]:
    images("downloads/cambrian", "chartqa/train/png/1.png")
    Path("downloads/cambrian/jsons").mkdir()
    question = "<image>\nHow many?\nAnswer the question using a single word or phrase."
    rows = [
        talk(question, "3", id="a", image="chartqa/train/png/1.png", source="chartqa.json"),
        talk("Sort a list.", "sorted(a)", id="b", source="code.json"),
        talk("Sort it back.", "sorted(b)", id="c", image="None", source="code.json"),
    ]
    write_lines(Path("downloads/cambrian/jsons/Cambrian7M_withsystemprompt.jsonl"), rows)
    parts = [IMAGE, {"type": "text", "text": question.removeprefix("<image>")}]
    return [
        Row({"id": "a", "source": "chartqa.json", "messages": asked(parts, "3")}, (b"chartqa/train/png/1.png",)),
        Row({"id": "b", "source": "code.json", "messages": asked("Sort a list.", "sorted(a)")}),
        Row({"id": "c", "source": "code.json", "messages": asked("Sort it back.", "sorted(b)")}),
    ]


def vision_flan() -> list[Row]:
    images("downloads/vision_flan/images_191task_1k", "Caltech101+image_classification_1.jpg")
    name = "Caltech101+image_classification_1"
    rows = [talk("Name the object.\n<image>", "An ant.", id=name, image=f"{name}.jpg", task_name="Caltech101")]
    write_array(Path("downloads/vision_flan/annotation_191-task_1k.json"), rows)
    messages = asked([{"type": "text", "text": "Name the object.\n"}, IMAGE], "An ant.")
    return [Row({"id": name, "task_name": "Caltech101", "messages": messages}, (f"{name}.jpg".encode(),))]


def on_the_hub(path: str, rows: list[dict[str, Any]], images: pa.DataType) -> None:
    """Writes a Parquet file of a dataset that a hub of the test's own will have; the first column has the images."""
    (name, *_), table = rows[0], pa.Table.from_pylist(rows)
    table = table.set_column(table.schema.get_field_index(name), name, pa.array([row[name] for row in rows], images))
    target = Path("hub") / path
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target)


def docmatix() -> list[Row]:
    turns = [
        {"user": "What is the total?", "assistant": "5 EUR.", "source": "PDFA key: 244"},
        {"user": "When?", "assistant": "In May.", "source": "PDFA key: 244"},
    ]
    pages = [{"bytes": b"page 1", "path": None}, {"bytes": b"page 2", "path": None}]
    path = "HuggingFaceM4/Docmatix/images/train-00000-of-01106.parquet"
    on_the_hub(path, [{"images": pages, "texts": turns}], pa.list_(HUB_IMAGE))
    first = [IMAGE, IMAGE, {"type": "text", "text": "What is the total?"}]
    messages = [*asked(first, "5 EUR."), *asked("When?", "In May.")]
    return [Row({"source": "PDFA key: 244", "messages": messages}, (b"page 1", b"page 2"))]


def llava_recap_558k() -> list[Row]:
    question, answer = "<image>\nPlease describe it.", "In the image, a table ..."
    row = {"image": {"bytes": b"table", "path": "1.jpg"}, **talk(question, answer, id="1", data_source="blip_558k")}
    on_the_hub("lmms-lab/LLaVA-ReCap-558K/data/train-00000-of-00026.parquet", [row], HUB_IMAGE)
    parts = [IMAGE, {"type": "text", "text": question.removeprefix("<image>")}]
    fields = {"id": "1", "data_source": "blip_558k", "messages": asked(parts, answer), "caption": answer}
    return [Row(fields, (b"table",))]


def cauldron_vqa() -> list[Row]:
    rows = []
    for name in ("ai2d", "aokvqa", "chartqa", "cocoqa", "docvqa", "iconqa", "st_vqa", "tallyqa", "textvqa", "vsr"):
        turns = [{"user": "How many?", "assistant": "Two.", "source": name.upper()}]
        image = {"bytes": name.encode(), "path": None}
        path = f"HuggingFaceM4/the_cauldron/{name}/train-00000-of-00001-abc.parquet"
        on_the_hub(path, [{"images": [image], "texts": turns}], pa.list_(HUB_IMAGE))
        messages = asked([IMAGE, {"type": "text", "text": "How many?"}], "Two.")
        record = {"messages": messages, "source": name.upper(), "kinds": [name.upper()]}
        rows.append(Row(record, (name.encode(),)))
    return rows


def pixelprose() -> list[Row]:
    Path("downloads/pixelprose/tars").mkdir(parents=True)
    fields = {
        "uid": "6d1a",
        "vlm_caption": " This image displays a dog.",
        "caption": "dog for sale",
        "url": "u",
        "key": "000000000",
        "status": "success",
        "error_message": None,
        "width": 512,
        "height": 384,
        "exif": "{}",
    }
    members = [("0.jpg", b"dog"), ("0.txt", b"dog for sale"), ("0.json", json.dumps(fields).encode())]
    write_tar(Path("downloads/pixelprose/tars/00000.tar"), members)
    left_out = ("error_message", "vlm_caption")
    record = {**{key: value for key, value in fields.items() if key not in left_out}, "caption": fields["vlm_caption"]}
    return [Row(record, (b"dog",))]


PUBLISHED: dict[str, Callable[[], list[Row]]] = {
    make.__name__: make
    for make in (
        *(llava_558k, llava_665k, llava_recap_558k, sharegpt4v, cambrian7m, cauldron_vqa),
        *(vision_flan, docmatix, pixelprose),
    )
}
"""By the recipe's name: writes a few rows where the recipe expects them, and says what they are to become."""


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serves the dataset in the folder `hub`, if there is one."""
    files = {path.relative_to("hub").as_posix(): path for path in Path("hub").rglob("*.parquet")}
    if not files:
        yield
        return
    (name,) = {"/".join(path.split("/")[:2]) for path in files}
    contents = {path.removeprefix(f"{name}/"): file.read_bytes() for path, file in files.items()}
    with serving(FakeHub(name, contents)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield


def test_every_recipe_has_rows_to_try() -> None:
    assert {path.stem for path in RECIPES} == set(PUBLISHED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_rows_become_records(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = PUBLISHED[path.stem]()
    config = load_config(BuildConfig, path)
    with served(monkeypatch):
        rows = [row for row in read(config.source.component(config.source.config)) if isinstance(row, Row)]
    assert rows == expected
    for row in rows:
        if "messages" in row.record:
            assert check_messages(row.record["messages"]) == ""
            assert image_parts(row.record["messages"]) == len(row.images)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_launched_and_can_be_aimed_elsewhere(path: Path) -> None:
    name = f"experiments/data/{path.name}"
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"#   fvl shards build {name} output=shards/{path.stem}\n" in text
    config = load_config(BuildConfig, path, ["output=elsewhere", "source.file=[one, other]", "part=2/3"])
    assert (config.output, config.source.config.file, config.part) == ("elsewhere", ["one", "other"], "2/3")
