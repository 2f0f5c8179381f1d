"""Atomic files and folders, that nothing is written otherwise, and what a run or a comparison may be called."""

import ast
import errno
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fvl_lightning.comparison.config import ComparisonConfig
from fvl_lightning.core.atomic import (
    atomic_directory,
    atomic_write,
    check_folder_name,
    remove_abandoned,
    write_text_atomically,
)
from fvl_lightning.core.config.loading import load_config
from fvl_lightning.core.errors import ConfigError, DataError, disk_error
from fvl_lightning.core.experiment import ExperimentConfig

GOOD = ["a", "lora[r=8]", "sweep/b", "a b", "a .", "-x", "...", "..x", "50%#?&'\"", "größe", "x" * 200]


@pytest.mark.parametrize("name", GOOD)
def test_names(name: str) -> None:
    check_folder_name(name, "name")


REFUSED = {
    "../x": "name must be a folder inside `output`, which ../x is not; set `output` instead",
    "a/../../x": "name must be a folder inside `output`, which a/../../x is not; set `output` instead",
    "..": "name must be a folder inside `output`, which .. is not; set `output` instead",
    "/tmp/x": "name must be a folder inside `output`, which /tmp/x is not; set `output` instead",
    "": "name must be a name, or names with / between them such as sweep/b, not ''",
    " ": "name must be a name, or names with / between them such as sweep/b, not ' '",
    ".": "name must be a name, or names with / between them such as sweep/b, not '.'",
    "a//b": "name must be a name, or names with / between them such as sweep/b, not 'a//b'",
    "a/": "name must be a name, or names with / between them such as sweep/b, not 'a/'",
    "a\nb": "name must be of printable characters, not 'a\\nb'",
    "a\0b": "name must be of printable characters, not 'a\\x00b'",
    "ü" * 101: "name is too long for a folder: at most 200 bytes, not 202",
    "a/" + "x" * 201: "name is too long for a folder: at most 200 bytes, not 201",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_folder_name(name, "name")
    assert str(caught.value) == REFUSED[name]


@pytest.mark.parametrize("schema", [ExperimentConfig, ComparisonConfig])
def test_a_configuration_refuses_them_before_anything_is_done(schema: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("name: ../x\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(schema, path)
    assert str(caught.value) == f"configuration in {path}: {REFUSED['../x']}"


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old", encoding="utf-8")
    with atomic_write(path) as new:
        new.write_text("new", encoding="utf-8")
        assert list(tmp_path.glob("*.json")) == [path]
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text_atomically(path, "old")
    with pytest.raises(LookupError), atomic_write(path) as new:
        {}[new.write_text("half", encoding="utf-8")]
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as new:  # as safetensors does
            new.unlink()
            new.touch(0o600)
        with atomic_directory(tmp_path / "folder") as folder:
            (folder / "open").touch(0o640)
            (folder / "closed").touch(0o600)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o640, "folder": 0o750, "open": 0o640, "closed": 0o640}


def test_errors_name_the_file_and_not_its_temporary_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/result\.json cannot be written \(Not a directory\)"):
        write_text_atomically(tmp_path / "file" / "result.json", "")
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "none" / "result.json"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "result.json")


def test_of_two_who_make_a_folder_the_faster_one_wins(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_directory(out, exist_ok=True) as second:
        (second / "second").touch()
        with atomic_directory(out, exist_ok=True) as first:
            (first / "first").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "first"]
    with pytest.raises(ConfigError, match="out exists already"), atomic_directory(out):
        pass


def killed(folder: Path, write: Callable[[], None]) -> None:
    """A process that is killed while it writes; what it has left is in the folder."""
    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert len(list(folder.iterdir())) >= 2


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_leaves_is_removed_by_the_next(kind: str, tmp_path: Path) -> None:
    def write() -> None:
        if kind == "file":
            with atomic_write(tmp_path / "a.tar") as half:
                half.write_bytes(b"half")
                die()
        with atomic_directory(tmp_path / "model") as half:
            (half / "inner").mkdir()
            (half / "inner" / "weights").write_bytes(b"half")
            die()

    killed(tmp_path, write)
    write_text_atomically(tmp_path / "another.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["another.json"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Of another process, and of this one: a lock that it has would not keep it from taking it."""
    begun, end = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def write() -> None:
        with atomic_directory(tmp_path / "theirs") as half:
            (half / "weights").write_bytes(b"half")
            begun.set()
            end.wait(30)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    try:
        assert begun.wait(30)
        with atomic_directory(tmp_path / "ours") as half, atomic_write(tmp_path / "file") as tmp_file:
            (half / "weights").touch()
            tmp_file.write_text("whole", encoding="utf-8")
            remove_abandoned(tmp_path)
            write_text_atomically(tmp_path / "more", "")
    finally:
        end.set()
        process.join()
    assert process.exitcode == 0
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert found == {"theirs", "theirs/weights", "ours", "ours/weights", "file", "more"}


def test_files_of_others_with_such_names_are_left_alone(tmp_path: Path) -> None:
    """A lock file without this kit's form of name, and a temporary folder whose maker cannot be known."""
    for name in (".model.0123abcd", ".model.lock", "model.0123abcd.lock", ".lock"):
        (tmp_path / name).touch()
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_whatever_library_meets_it(error: Exception, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"out cannot be written \(.*; [\d,]+ bytes free in .*\)"),
        atomic_directory(tmp_path / "out"),
    ):
        raise error
    assert not list(tmp_path.iterdir())


def test_torch_and_sqlite_on_a_full_disk() -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file data/0")
    error.__context__ = FULL
    assert disk_error(error) is FULL
    found = disk_error(Exception("(sqlite3.OperationalError) database or disk is full"))
    assert found is not None
    assert found.errno == errno.ENOSPC
    assert disk_error(RuntimeError("a bug")) is None
    assert disk_error(DataError("no model (os error 28)")) is None


def test_a_file_that_does_not_fit_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "report.md"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "report.md")


STREAMS = {
    "datamodules/building/builder.py": "the log of refusals, cut back to a position by the resume log",
    "datamodules/building/processes.py": "rows on their way from one process to another",
    "datamodules/building/replacement.py": "the renames by which a new set takes the place of another",
    "datamodules/storage/shard_cache.py": "the place in a cache that a download fills, under a lock",
    "datamodules/storage/writer.py": "a tar that grows, and that a build takes up again",
    "fvl_lightning/core/atomic.py": "the place of all others",
    "fvl_lightning/core/jsonl.py": "JSON Lines",
    "fvl_lightning/core/locks.py": "a lock, with the id of its process",
    "fvl_lightning/launchers/local.py": "the log of a process",
    "fvl_lightning/launchers/ray.py": "the log of a process",
    "fvl_lightning/training/feature_cache.py": "features, in a folder that is not yet in place",
    "fvl_lightning/training/feature_files.py": "the arrays of that folder",
}
"""Files that open something to write it themselves, and what that is."""

ROOT = Path(__file__).parents[2]


def writes(tree: ast.AST, atomic: bool = False) -> Iterator[int]:
    """Lines that write or rename a file, unless they lie in a `with` of atomic_write or atomic_directory."""
    if isinstance(tree, ast.With):
        names = {item.context_expr.func.id for item in tree.items if _is_named_call(item.context_expr)}
        atomic = atomic or bool(names & {"atomic_write", "atomic_directory"})
    if isinstance(tree, ast.Call) and not atomic and _writes(tree):
        yield tree.lineno
    for child in ast.iter_child_nodes(tree):
        yield from writes(child, atomic)


def _is_named_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _writes(call: ast.Call) -> bool:
    where, name = None, getattr(call.func, "id", "")
    if isinstance(call.func, ast.Attribute):
        where, name = getattr(call.func.value, "id", ""), call.func.attr
    if name in ("open", "fdopen"):
        modes = [*call.args[0 if where not in (None, "os") else 1 :], *(one.value for one in call.keywords)]
        parts = (node for mode in modes for node in ast.walk(mode))  # a mode may be a choice of two
        texts = [set(str(node.value)) for node in parts if isinstance(node, ast.Constant)]
        return any(text & set("wax+") and text <= set("wax+rbt") for text in texts)
    if name == "replace":  # a string's takes two arguments, that of dataclasses takes keywords
        return where == "os" or (len(call.args) == 1 and not call.keywords and where != "dataclasses")
    return name in ("write_text", "write_bytes", "rename", "mkstemp", "mkdtemp", "NamedTemporaryFile")


def test_all_files_are_written_through_one_module() -> None:
    paths = [path for package in ("fvl_lightning", "datamodules") for path in (ROOT / package).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): list(writes(ast.parse(path.read_text("utf-8")))) for path in paths}
    found = {path: lines for path, lines in found.items() if lines}
    assert {path: lines for path, lines in found.items() if path not in STREAMS} == {}
    assert set(found) == set(STREAMS), "these write nothing any more"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("path.write_text('')", 1),
        ("open(path, 'w')", 1),
        ("open(path, mode='ab')", 1),
        ("path.open('r+b')", 1),
        ("os.replace(a, b)", 1),
        ("a.replace(b)", 1),
        ("with closing(a):\n    a.rename(b)", 1),
        ("path.open('rb')", 0),
        ("open('wax')", 0),
        ("text.replace('a', 'b'), dataclasses.replace(a, b=1)", 0),
        ("with atomic_write(path) as new, new.open('wb') as file:\n    new.write_text('')", 0),
    ],
)
def test_what_counts_as_writing(code: str, count: int) -> None:
    assert len(list(writes(ast.parse(code)))) == count
