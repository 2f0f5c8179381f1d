"""Images are read under their folder only, and files are found as a recipe names them."""

import errno
import os
from pathlib import Path

import pytest

from datamodules.sources import image_files
from datamodules.sources.base import Refusal
from datamodules.sources.image_files import find_folder, read_images
from datamodules.sources.refusals import Refused
from datamodules.sources.row_files import check_file, find_files, sort_out
from fvl_lightning.core.errors import DataError
from tests.datamodules.sources.reading import PNG, read, source, talk, write_array


def refusal(folder: Path, *names: str) -> Refusal:
    with pytest.raises(Refused) as caught:
        read_images(folder, names)
    return caught.value.refusal


def test_images_are_read_in_the_order_named(images: Path) -> None:
    assert read_images(images, ["sub/b.png", "./a.png", "a.png"]) == (
        PNG + b"sub/b.png",
        PNG + b"a.png",
        PNG + b"a.png",
    )
    assert read_images(images, []) == ()


def test_a_folder_that_is_a_link_itself_and_links_within_it_are_fine(images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(images)
    (images / "again.png").symlink_to("sub/b.png")
    assert read_images(tmp_path / "link", ["again.png"]) == (PNG + b"sub/b.png",)


@pytest.mark.parametrize(
    "name", ["../outside.png", "sub/../../outside.png", "sub/../a.png", "..", "/etc/passwd", "../images_beside/d.png"]
)
def test_a_path_that_leads_out_is_refused(images: Path, name: str) -> None:
    assert refusal(images, name).reason == "unsafe path"


def test_an_absolute_path_is_refused_even_if_it_leads_into_the_folder(images: Path) -> None:
    assert refusal(images, str(images / "a.png")).reason == "unsafe path"


@pytest.mark.parametrize("target", ["../outside.png", "../images_beside/d.png"])
def test_a_link_that_leads_out_is_refused(images: Path, target: str) -> None:
    (images / "link.png").symlink_to(target)
    assert refusal(images, "link.png").reason == "unsafe path"


@pytest.mark.parametrize("place", ["coco", "sub/coco"])
def test_a_linked_folder_is_followed_where_the_recipe_names_its_target(images: Path, place: str) -> None:
    beside = images.parent / "images_beside"
    (images / place).symlink_to(beside)
    (beside / "link.png").symlink_to("../outside.png")
    with pytest.raises(Refused) as caught:
        read_images(images, [f"./{place}/d.png"], [])
    said = f"{place}/d.png leads out of {images} through a link, to {beside}/d.png"
    assert caught.value.refusal.detail == f"./{said}; add a folder that contains it to source.links to follow it"
    assert refusal(images, f"{place}/d.png") == Refusal("unsafe path", said)
    assert read_images(images, [f"{place}/d.png"], [str(beside)]) == ((beside / "d.png").read_bytes(),)
    with pytest.raises(Refused):
        read_images(images, [f"{place}/link.png"], [str(beside)])


@pytest.mark.parametrize("target", ["/", "../..", "../../.."])
def test_a_link_to_everything_shows_nothing(images: Path, target: str) -> None:
    """The folder of images comes from strangers, and so may a link in it."""
    (images / "root").symlink_to(target)
    outside = (images.parent / "outside.png").relative_to((images / "root").resolve())
    assert refusal(images, f"root/{outside}").reason == "unsafe path"
    inside = (images / "a.png").relative_to((images / "root").resolve())
    assert read_images(images, [f"root/{inside}"]) == (PNG + b"a.png",)


@pytest.mark.parametrize("name", ["llava_json", "pairs"])
def test_images_of_a_snapshot_of_the_hub_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every source that reads images from a folder follows links into source.links."""
    monkeypatch.setenv("HOME", str(tmp_path))
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "b").write_bytes(PNG)
    (snapshot / "b.png").symlink_to("../../blobs/b")
    row = {"image": "b.png", "caption": "words", **talk("<image>What?", "That.")}
    fields = {"file": str(write_array(tmp_path / "a.json", [row])), "images": str(snapshot)}
    (found,) = read(source(name, **fields))
    assert found.reason == "unsafe path"
    assert "source.links" in found.detail
    (found,) = read(source(name, **fields, links=["~/hub"]))
    assert found.images == (PNG,)
    with pytest.raises(DataError, match=r"no folder .*/hib with images; did you mean '.*/hub'"):
        read(source(name, **fields, links=["~/hib"]))


@pytest.mark.parametrize("name", ["a\0.png", "\udc80\ud800.png"])
def test_a_path_that_is_no_path_is_refused(images: Path, name: str) -> None:
    assert refusal(images, name).reason == "unsafe path"


@pytest.mark.parametrize("name", ["d.png", "sub", "a.png/x", "x" * 300, "loop"])
def test_what_is_no_file_is_missing(images: Path, name: str) -> None:
    (images / "loop").symlink_to("loop")
    assert refusal(images, name).reason == "missing image"


def test_a_pipe_is_not_waited_for(images: Path) -> None:
    os.mkfifo(images / "pipe.png")
    assert refusal(images, "pipe.png").reason == "missing image"


def test_a_failing_disk_is_not_taken_for_a_missing_image(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, flags: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(image_files, "_opener", fail)
    assert refusal(images, "a.png") == Refusal("unreadable image", f"a.png: {os.strerror(errno.EIO)}")


def test_images_are_capped_together_before_they_are_read(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(PNG) + 5
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 2 * size)
    assert len(read_images(images, ["a.png", "c.png"])) == 2
    assert refusal(images, "a.png", "c.png", "a.png").reason == "image too large"
    with (images / "huge.png").open("wb") as file:
        file.truncate(2**40)
    assert refusal(images, "huge.png").reason == "image too large"


def test_files_keep_the_order_given_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.json", "a.json", "c.json", "odd[1].json"):
        (tmp_path / name).touch()
    names = [tmp_path / "c.json", tmp_path / "a.json", tmp_path / "b.json"]
    assert find_files([str(tmp_path / "c.json"), str(tmp_path / "[ab].json")], (".json",)) == names
    assert find_files(str(tmp_path / "odd[1].json"), (".json",)) == [tmp_path / "odd[1].json"]


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("mix665.json", "no file {}/mix665.json; did you mean '{}/mix665k.json'?"),
        ("*.csv", "no file {}/*.csv"),
        ("images", "{0}/images is a folder: name the files in it, such as '{0}/images/*.tar'"),
        (".", "{0} is a folder: name the files in it, such as '{0}/*.json'"),
        ("mix665k.jso", "no file {0}/mix665k.jso; did you mean '{0}/mix665k.json'?"),
        ("deeper/mix665k.json", "no file {0}/deeper/mix665k.json: there is no folder {0}/deeper"),
    ],
)
def test_a_missing_file_is_named_with_the_nearest(tmp_path: Path, images: Path, entry: str, sentence: str) -> None:
    (tmp_path / "mix665k.json").touch()
    with pytest.raises(DataError) as caught:
        find_files(str(tmp_path / entry), (".tar", ".json", ".jsonl"))
    assert str(caught.value).startswith(sentence.format(tmp_path, tmp_path))


def test_a_hint_never_names_what_was_named(tmp_path: Path) -> None:
    (tmp_path / "photos").touch()
    with pytest.raises(DataError) as caught:
        find_folder(str(tmp_path / "photos"))
    assert str(caught.value) == f"no folder {tmp_path}/photos with images"


def test_files_that_cannot_be_read_are_sorted_out_beside_those_that_can(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        if path.suffix != ".good":
            raise DataError(f"{path} is bad")

    good, bad, worse = (tmp_path / name for name in ("a.good", "b.bad", "c.bad"))
    assert sort_out([bad, good], check) == [Refusal("unreadable file", f"{bad} is bad"), good]
    with pytest.raises(DataError, match=r"b\.bad is bad"):
        sort_out([bad, worse], check)
    assert sort_out([], check) == []


def test_a_missing_folder_is_named_with_the_nearest(images: Path) -> None:
    with pytest.raises(DataError, match=f"no folder .*image with images; did you mean '{images}'"):
        find_folder(str(images.parent / "image"))


@pytest.mark.parametrize("file", [[], "", [""], 3, ["a", 3], None, {"a": "b"}])
def test_a_field_that_names_no_files_is_refused(file: object) -> None:
    with pytest.raises(ValueError, match="file: expected a path, a glob"):
        check_file(file)
