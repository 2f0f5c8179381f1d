"""The demo set: what it says is in its pictures, splits share no scene, and it is the same wherever it is drawn."""

import io
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from datamodules.demo import build
from datamodules.demo.data import DemoData
from datamodules.demo.draw import INK
from datamodules.demo.handwriting import load_scans, scans_of
from datamodules.demo.levels import HELD_OUT_PAIRS, LEVELS
from datamodules.demo.record import make_sample
from datamodules.demo.scenes import ALL_SPLITS, SPLITS, UNSEEN_PAIRS, UNSEEN_WORDS, make_scene, sample_random
from datamodules.demo.text import KINDS
from fvl_lightning.core.config.loading import choose
from fvl_lightning.core.errors import ConfigError, DataError

MakeDemo = Callable[..., DemoData]
Sample = tuple[str, dict[str, Any], bytes]

SAMPLES = 250


TRAIN_IMAGES = 900


@pytest.fixture(scope="module", params=sorted(LEVELS))
def drawn(request: pytest.FixtureRequest) -> list[Sample]:
    """The first samples of a level's train split."""
    level = LEVELS[request.param]
    return [make_sample(0, level, "train", i) for i in range(SAMPLES)]


def things(record: dict[str, Any]) -> tuple[str, list[list[str]]]:
    """The family, and the words of each thing, as the description has them."""
    family, _, rest = record["description"].partition(": ")
    return family, [thing.split(" ", 2) for thing in rest.split(", ")]


def turns(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of each turn."""
    contents = [message["content"] for message in record["messages"]]
    questions = [c if isinstance(c, str) else c[-1]["text"] for c in contents[::2]]
    return list(zip(record["kinds"], questions, contents[1::2], strict=True))


def possible_answers(record: dict[str, Any], kind: str, question: str) -> set[str]:
    """Every answer the scene allows, worked out from its description and boxes alone."""
    family, scene = things(record)
    if kind == "digits":
        return {scene[0][1]}
    if kind in ("word", "word_colour"):
        asked = re.search(r"the (\w+) word|the word (\w+)\?", question)
        wanted = {word for word in asked.groups() if word} if asked else set()
        matching = [word for word in scene if not wanted or wanted & set(word)]
        return {word[1] if kind == "word" else word[0] for word in matching}
    if family == "bars":
        return bar_answers(scene, question)
    return shape_answers(record, scene, kind, question)


def bar_answers(scene: list[list[str]], question: str) -> set[str]:
    values = [int(value) for _, value in scene]
    if "how many" in question:
        return {str(len(scene))}
    which = question.rstrip("?").split()
    limit = max(values) if "tallest" in which else min(values) if "shortest" in which else None
    matching = [(c, v) for c, v in scene if (int(v) == limit if limit is not None else c in which)]
    return {v if "high" in which else c for c, v in matching}


def shape_answers(record: dict[str, Any], scene: list[list[str]], kind: str, question: str) -> set[str]:
    words = question.rstrip("?").split()
    named = [s for s in scene if all(w in s[:2] for w in words if w in INK or w in LEVELS["hard"].shapes)]
    if kind == "count":
        what = words[2].removesuffix("es" if words[2] == "crosses" else "s")
        return {str(sum(what in ("shape", *s[:2]) for s in scene))}
    if kind == "colour":
        return {s[0] for s in named}
    if kind == "shape":
        return {s[1] for s in named}
    if words[0] == "where":
        return {s[2] for s in named}
    axis, sign = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}[words[2]]
    centres = [(box["label"], (box["box"][axis] + box["box"][axis + 2]) / 2 * sign) for box in record["boxes"]]
    (reference,) = [centre for label, centre in centres if label == " ".join(words[-2:])]
    # Boxes of stars and triangles are not centred: a shape may seem a pixel or two beyond where it is.
    return {label for label, centre in centres if centre > reference + 3 / 64}


def test_every_question_has_the_one_answer_given(drawn: list[Sample]) -> None:
    for key, record, _ in drawn:
        assert record["kinds"], key
        for kind, question, answer in turns(record):
            assert possible_answers(record, kind, question) == {answer}, (key, record["description"], question)


def test_all_ten_kinds_are_asked_at_every_level(drawn: list[Sample]) -> None:
    assert {kind for _, record, _ in drawn for kind in record["kinds"]} == set(KINDS)
    assert len(KINDS) == 10


def test_the_picture_is_seen_once_before_the_first_question(drawn: list[Sample]) -> None:
    for _, record, _ in drawn:
        first, *rest = record["messages"]
        assert [part["type"] for part in first["content"]] == ["image", "text"]
        assert all(isinstance(message["content"], str) for message in rest)


def test_no_question_tells_what_another_one_asks(drawn: list[Sample]) -> None:
    """What colour and shape questions ask of a thing stands in no other turn of the conversation."""
    for key, record, _ in drawn:
        family, scene = things(record)
        if family != "shapes":
            continue
        said = turns(record)
        for kind, question, answer in said:
            if kind not in ("colour", "shape"):
                continue
            asked = question.rstrip("?").split()[-1]
            (thing,) = [s for s in scene if asked in s[:2] and answer in s[:2]]
            others = [set(f"{q} {a}".replace("?", "").split()) for _, q, a in said if q != question]
            # Numbers of things may be asked by either attribute: "how many red shapes" tells of no circle.
            assert not any(set(thing[:2]) <= words for words in others), (key, question, others)


def test_captions_and_boxes_name_every_thing_once(drawn: list[Sample]) -> None:
    for key, record, _ in drawn:
        family, scene = things(record)
        caption, labels = record["caption"].split(), [box["label"] for box in record["boxes"]]
        assert Counter(word for word in caption if word in INK) == Counter(thing[0] for thing in scene), key
        assert len(labels) == len(scene)
        if family == "shapes":
            assert sorted(labels) == sorted(f"{s[0]} {s[1]}" for s in scene)
            assert all(f"at the {s[2]}" in record["caption"] for s in scene)
        if family in ("words", "number"):
            assert all(thing[1] in record["ocr"].split() for thing in scene)
            assert all(thing[1] in caption for thing in scene)
        else:
            assert record["ocr"] == "no text"


def test_captions_come_in_three_orders_and_random_order_of_things(drawn: list[Sample]) -> None:
    shapes = [record for _, record, _ in drawn if things(record)[0] == "shapes" and len(record["boxes"]) > 2]
    starts = {"the " + ("colour" if r["caption"].split()[1] in INK else "shape") if r["caption"].startswith("the")
              else "at" for r in shapes}  # fmt: skip
    assert starts == {"the colour", "the shape", "at"}
    first_boxes = [record["boxes"][0]["box"] for record in shapes]
    leftmost = [min(box["box"][0] for box in record["boxes"]) for record in shapes]
    first_is_leftmost = np.mean([box[0] == left for box, left in zip(first_boxes, leftmost, strict=True)])
    assert 0.05 < first_is_leftmost < 0.6


def nearest_ink(pixel: np.ndarray) -> str:
    return min(INK, key=lambda name: float(np.abs(np.array(INK[name]) - pixel.astype(float)).sum()))


def test_pictures_show_what_is_said(drawn: list[Sample]) -> None:
    """The ink of each thing is in its box, and outside the boxes (and axes) there is none."""
    for key, record, png in drawn:
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        assert pixels.shape == (64, 64, 3)
        family, _ = things(record)
        spread = pixels.max(2).astype(int) - pixels.min(2)
        ink = (spread > 60) | (pixels.min(2) > 200)
        for box in record["boxes"]:
            x0, y0, x1, y1 = (value * 64 for value in box["box"])
            colour = box["label"].split()[0]
            rows, columns = slice(int(y0), int(np.ceil(y1))), slice(int(x0), int(np.ceil(x1)))
            inside = pixels[rows, columns][ink[rows, columns]]
            assert len(inside) >= 12, (key, box)
            brightest = inside[np.argsort(inside.astype(int).sum(1))[-1]]
            if family != "shapes":  # shapes may overlap, so their middles are looked at instead
                assert nearest_ink(brightest) == colour, (key, box, brightest)
            else:
                middle = pixels[int((y0 + y1) / 2), int((x0 + x1) / 2)]
                assert nearest_ink(middle) == colour, (key, box, middle)
            ink[max(rows.start - 1, 0) : rows.stop + 1, max(columns.start - 1, 0) : columns.stop + 1] = False
        assert not ink.any(), (key, np.argwhere(ink)[:3])


def test_bars_are_as_high_as_their_values(drawn: list[Sample]) -> None:
    """Read off the picture: the rows of a bar's colour, from the baseline up."""
    for key, record, png in drawn:
        family, scene = things(record)
        if family != "bars":
            continue
        pixels = np.asarray(Image.open(io.BytesIO(png))).astype(int)
        heights = {c: int((np.abs(pixels - INK[c]).sum(2) == 0).any(1).sum()) for c, _ in scene}
        unit = 56 / LEVELS[record["level"]].tallest_value
        assert all(abs(heights[colour] - int(value) * unit) <= 1.5 for colour, value in scene), (key, heights)


def test_a_sample_is_a_function_of_its_number_alone() -> None:
    level = LEVELS["medium"]
    forward = [make_sample(5, level, "test", i) for i in range(6)]
    assert [make_sample(5, level, "test", i) for i in reversed(range(6))] == forward[::-1]
    assert make_sample(6, level, "test", 0)[1] != forward[0][1]
    assert make_sample(5, level, "train", 0)[1] != forward[0][1]


def test_drawing_is_fast_enough_for_a_first_run() -> None:
    """8,000 training pictures in 30 seconds on one core are 3.75 ms each; this is the time of this process alone."""
    start = time.process_time()
    for i in range(200):
        make_sample(1, LEVELS["easy"], "train", i)
    assert (time.process_time() - start) / 200 < 3.75e-3


TRAIN_IMAGES = 900


@pytest.fixture(scope="module", params=sorted(LEVELS))
def records(request: pytest.FixtureRequest, make_demo: MakeDemo) -> dict[str, list[dict[str, Any]]]:
    """The records of every split, read back from the written shards, with their pictures."""
    data = make_demo(level=request.param, train_images=TRAIN_IMAGES, test_images=200)
    stores = {split: data.store(split) for split in ALL_SPLITS}
    return {
        split: [{**store.record(i), "pixels": store.images(i)[0].tobytes()} for i in range(len(store))]
        for split, store in stores.items()
    }


def test_no_scene_of_one_split_occurs_in_another(records: dict[str, list[dict[str, Any]]]) -> None:
    for field in ("scene", "description", "pixels"):
        owners: dict[Any, set[str]] = {}
        for split, rows in records.items():
            for row in rows:
                owners.setdefault(row[field], set()).add(split)
        assert all(len(splits) == 1 for splits in owners.values()), field
        assert len(owners) > 500
    assert [len(records[split]) for split in ALL_SPLITS] == [TRAIN_IMAGES, 37, 200, 20, 20]


def test_the_families_are_in_proportion(records: dict[str, list[dict[str, Any]]]) -> None:
    families = Counter(things(row)[0] for row in records["train"])
    shares = {family: count / TRAIN_IMAGES for family, count in families.items()}
    expected = {"shapes": 0.36, "words": 0.28, "bars": 0.18, "number": 0.18}
    assert all(abs(shares[family] - share) < 0.04 for family, share in expected.items()), shares


def test_unseen_words_and_pairs_occur_nowhere_else(records: dict[str, list[dict[str, Any]]]) -> None:
    words: dict[str, set[str]] = {}
    pairs: dict[str, list[set[tuple[str, str]]]] = {}
    for split, rows in records.items():
        for row in rows:
            family, scene = things(row)
            if family == "words":
                words.setdefault(split, set()).update(thing[1] for thing in scene)
            if family == "shapes":
                pairs.setdefault(split, []).append({(thing[0], thing[1]) for thing in scene})
    ordinary = set.union(*(words[split] for split in SPLITS))
    assert words[UNSEEN_WORDS]
    assert not words[UNSEEN_WORDS] & ordinary
    assert set("".join(words[UNSEEN_WORDS])) <= set("".join(ordinary))  # new words, known letters
    held_out = set(HELD_OUT_PAIRS)
    assert all(picture & held_out for picture in pairs[UNSEEN_PAIRS])
    assert len(held_out) >= 3
    for split in SPLITS:
        assert not set.union(*pairs[split]) & held_out
    seen = set.union(*pairs["train"])
    assert all({colour, shape} <= {part for pair in seen for part in pair} for colour, shape in held_out)
    assert set(words) == {*SPLITS, UNSEEN_WORDS}
    assert set(pairs) == {*SPLITS, UNSEEN_PAIRS}


def test_scans_are_disjoint_and_of_their_digit() -> None:
    _, targets = load_scans()
    owners = {split: {scan for digit in range(10) for scan in scans_of(digit, split)} for split in SPLITS}
    assert sum(len(scans) for scans in owners.values()) == 1797 == len(set.union(*owners.values()))
    assert all(targets[scan] == digit for digit in range(10) for split in SPLITS for scan in scans_of(digit, split))
    assert all(len(scans_of(digit, split)) >= 15 for digit in range(10) for split in SPLITS)
    for split in SPLITS:
        scenes = [make_scene(sample_random(0, "hard", split, i), LEVELS["hard"], split) for i in range(60)]
        numbers = [scene.number for scene in scenes if scene.number is not None]
        assert numbers
        assert all(scan in owners[split] for number in numbers for scan in number.scans)
        assert all("".join(str(targets[s]) for s in number.scans) == number.digits for number in numbers)


def test_levels_grow() -> None:
    easy, medium, hard = (LEVELS[name] for name in ("easy", "medium", "hard"))
    for one, other in ((easy, medium), (medium, hard)):
        assert one.shape_count[1] < other.shape_count[1]
        assert one.radius[1] > other.radius[1]
        assert one.digit_count < other.digit_count
        assert one.bar_count[1] < other.bar_count[1]
        assert max(map(len, one.words)) < max(map(len, other.words))
    assert len(easy.words) == 16
    assert {len(word) for word in easy.words + easy.unseen_words} == {3}


def test_questions_of_a_split(make_demo: MakeDemo) -> None:
    data = make_demo()
    questions = data.questions("test")
    store = data.store("test")
    assert len(questions) == sum(len(store.record(i)["kinds"]) for i in range(len(store)))
    for question in questions:
        (message,) = question.prompt_messages
        assert [part["type"] for part in message["content"]] == ["image", "text"]
        text = message["content"][1]["text"]
        assert (question.kind, text, question.answer) in turns(store.record(question.index))
        assert store.key(question.index) == question.key


def test_the_tokenizer(make_demo: MakeDemo, tmp_path: Path) -> None:
    data = make_demo()
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_path)
    assert 440 <= len(tokenizer) <= 520
    for level in LEVELS.values():
        for i in range(100):
            _, record, _ = make_sample(0, level, "test", i)
            for text in (record["caption"], record["ocr"], *(answer for _, _, answer in turns(record))):
                assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.decode(tokenizer("ünseen 🙂 words")["input_ids"]) == "ünseen 🙂 words"
    assert tokenizer.tokenize("38") == ["3", "8"]
    assert [len(tokenizer(f"<loc_{k}>")["input_ids"]) for k in range(32)] == [1] * 32
    assert tokenizer.convert_tokens_to_ids("<loc_32>") is None or "<loc_32>" not in tokenizer.get_vocab()
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert len(tokenizer.tokenize("what colour is the circle?")) == 6


def test_the_tokenizer_is_always_the_same(make_demo: MakeDemo, tmp_path: Path) -> None:
    from datamodules.demo.tokenizer import save_tokenizer

    save_tokenizer(tmp_path)
    built = make_demo().tokenizer_path
    assert {path.name for path in tmp_path.iterdir()} | {"manifest.json"} == {path.name for path in built.iterdir()}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (built / path.name).read_bytes(), path.name


TINY = {"train": 3, "validation": 2, "test": 2, UNSEEN_WORDS: 1, UNSEEN_PAIRS: 1}


@pytest.fixture
def tiny_root(tmp_path: Path, make_demo: MakeDemo) -> Path:
    """A root that has the tokenizer already, which takes longest."""
    import shutil

    shutil.copytree(make_demo().tokenizer_path, tmp_path / "demo" / "tokenizer")
    return tmp_path / "demo"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_set_is_built_once_and_the_same_everywhere(tiny_root: Path, tmp_path: Path) -> None:
    folder = build.build_demo(tiny_root, "easy", TINY, 0)
    assert {path.name.split("-")[0] for path in folder.glob("*.tar")} == set(ALL_SPLITS)
    before = files(tiny_root)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build.build_demo(tiny_root, "easy", TINY, 0) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    other = tmp_path / "again"
    (tiny_root / "tokenizer").rename(tmp_path / "tokenizer")
    other.mkdir()
    (tmp_path / "tokenizer").rename(other / "tokenizer")
    build.build_demo(other, "easy", TINY, 0)
    assert files(other) == before


def test_each_configuration_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert build.demo_folder(tmp_path, "easy", build.COUNTS, 0) == tmp_path / "easy"
    others = [
        build.demo_folder(tmp_path, "easy", build.COUNTS, 1),
        build.demo_folder(tmp_path, "easy", {**build.COUNTS, "train": 10}, 0),
        build.demo_folder(tmp_path, "hard", {**build.COUNTS, "train": 10}, 0),
    ]
    assert len({*others, tmp_path / "easy"}) == 4


def test_another_set_in_the_way_is_told_and_kept(tiny_root: Path) -> None:
    folder = build.build_demo(tiny_root, "easy", TINY, 0)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": -1}))
    with pytest.raises(DataError, match=r"holds another demo set .*; delete or move it"):
        build.build_demo(tiny_root, "easy", TINY, 0)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"is not a demo set: it has no readable manifest\.json"):
        build.build_demo(tiny_root, "easy", TINY, 0)
    assert (folder / "train-000000.tar").exists()


def test_an_interrupted_build_leaves_nothing(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any) -> Sample:
        if args[2] == "test":
            raise KeyboardInterrupt
        return make_sample(*args)

    with monkeypatch.context() as patch:
        patch.setattr(build, "make_sample", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build.build_demo(tiny_root, "easy", TINY, 0)
    assert [path.name for path in tiny_root.iterdir()] == ["tokenizer"]
    assert build.build_demo(tiny_root, "easy", TINY, 0).is_dir()


def test_a_set_built_meanwhile_by_another_process_is_taken(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = build._write_split

    def slow(folder: Path, *rest: Any) -> None:
        monkeypatch.setattr(build, "_write_split", real)
        build.build_demo(tiny_root, "easy", TINY, 0)
        real(folder, *rest)

    monkeypatch.setattr(build, "_write_split", slow)
    folder = build.build_demo(tiny_root, "easy", TINY, 0)
    assert sorted(path.name for path in tiny_root.iterdir()) == sorted([folder.name, "tokenizer"])


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the demo set cannot be written to .*file/demo: Not a directory"):
        build.build_demo(tmp_path / "file" / "demo", "easy", TINY, 0)


def test_without_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_scans.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn: pip install 'fvl-lightning\[demo\]'"):
        load_scans()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"level": "eazy"}, r"unknown level 'eazy', allowed: easy, hard, medium; did you mean 'easy'\?"),
        ({"train_images": 0}, "train_images must be at least 1, not 0"),
        ({"train_image": 5}, "did you mean 'train_images'"),
        ({"workers": -2}, "workers must be at least 0, not -2"),
    ],
)
def test_configuration_mistakes(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        choose("data", {"name": "demo", **fields})


def test_a_level_that_is_only_scored_has_the_same_test_images(tmp_path: Path) -> None:
    """A comparison draws `transfer_levels` without their training images."""
    few = DemoData.Config(root=str(tmp_path), train_images=2, validation_images=2, test_images=4, unseen_images=2)
    whole, scored = (DemoData(config) for config in (replace(few, level="hard"), few.for_test_at("hard")))
    for drawn in (whole, scored):
        drawn.prepare_data()
    tars = [tar.name for tar in whole.folder.glob("test-*.tar")]
    assert tars
    for file in tars:
        assert (scored.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    assert scored.config.counts == {"train": 1, "validation": 1, "test": 4, UNSEEN_WORDS: 1, UNSEEN_PAIRS: 1}
