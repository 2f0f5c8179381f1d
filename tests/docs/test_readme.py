"""README.md and the index of docs/: every command runs where the quick demo has run, every link leads somewhere."""

import ast
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import fvl_lightning
from fvl_lightning.core.registry import SLOT_PACKAGES
from fvl_lightning.runs.folder import RunFolder
from tests.conftest import ROOT, Run
from tests.docs.readme import README, blocks, commands, files, write_files

COMMANDS = commands()
OTHERS = [words for page in ("demo", "configuration") for words in commands(ROOT / "docs" / f"{page}.md")]
"""Commands of pages that have no test of their own for them."""
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "datamodules/**/*.md", "benchmarks/**/*.md", "notebooks/**/*.md")
    for path in ROOT.glob(pattern)
)
UI_SECONDS = 60


@pytest.fixture(scope="module")
def folder(quick_demo: Path) -> Path:
    """The quick demo's folder with the README's own files."""
    write_files(quick_demo)
    return quick_demo


def test_the_readme_shows_what_matters() -> None:
    verbs = {words[1] for words in COMMANDS}
    assert {words[0] for words in COMMANDS} == {"fvl"}, "a command this test does not know"
    assert {"demo", "train", "compare", "evaluate", "generate", "export", "list", "describe", "show", "ui"} <= verbs
    assert ["fvl", "demo", "--quick"] in COMMANDS, "what the fixture has run"


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def is_fast(words: list[str]) -> bool:
    """Whether a command is run by `make test`: all but trainings and what uses them, many questions, and MLflow."""
    return words[1] not in ("train", "compare", "explain", "ui") and "runs/lora" not in words


def distinct(listed: list[list[str]]) -> dict[str, list[str]]:
    """{command line: words}, each command once and in order."""
    return {shlex.join(words): words for words in listed}


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=[] if is_fast(words) else pytest.mark.slow, id=line)
        for line, words in distinct([*COMMANDS, *OTHERS]).items()
    ],
)
def test_a_command_of_the_readme_runs(words: list[str], folder: Path, fvl_here: Run) -> None:
    if words == ["fvl", "demo", "--quick"]:
        assert "macro average" in (folder / "output.txt").read_text(encoding="utf-8")
        return
    if words[1] == "ui":
        _serve(words[1:], folder)
        return
    done = fvl_here(folder, *words[1:])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()
    if words[1] == "train":
        finished = re.search(r"finished: (\S+)", done.stdout)
        assert finished is not None
        assert RunFolder(folder / finished[1]).finished


def code() -> str:
    """The Python of the README that uses the kit, rather than being a file of its own."""
    (found,) = [block for block in blocks("python") if block not in files().values()]
    return found


def test_the_python_of_the_readme_names_what_there_is() -> None:
    imported = [node for node in ast.walk(ast.parse(code())) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in imported] == ["fvl_lightning"]
    assert {alias.name for node in imported for alias in node.names} <= set(fvl_lightning.__all__)


@pytest.mark.slow
def test_the_python_of_the_readme_runs(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code()], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def _serve(words: list[str], folder: Path) -> None:
    """Starts the server on a free port, waits for its page, and ends it with Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fvl_lightning", *words, "--port", str(port)]
    log = folder / "ui.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    try:
        assert _answers(f"http://127.0.0.1:{port}", server), log.read_text(encoding="utf-8")
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    finally:
        server.kill()


def _answers(address: str, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + UI_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as page:
                return page.status == 200 and b"MLflow" in page.read()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    return False


def test_there_are_documents() -> None:
    assert {Path("README.md"), Path("docs/architecture.md")} <= set(DOCUMENTS)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in DOCUMENTS if path.parent == Path("docs")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w.]+\.md)\)", index))
    assert "(docs/README.md)" in README.read_text(encoding="utf-8")


def test_every_picture_is_shown() -> None:
    shown = " ".join((ROOT / path).read_text(encoding="utf-8") for path in DOCUMENTS)
    assert not [path.name for path in (ROOT / "docs" / "images").iterdir() if f"images/{path.name}" not in shown]


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    missing = []
    for target in targets:
        place, _, heading = target.partition("#")
        if re.match(r"[a-z]+:", place):
            continue
        file = (ROOT / path).parent / place if place else ROOT / path
        if not file.exists() or (heading and heading not in _anchors(file)):
            missing.append(target)
    assert not missing


def _anchors(file: Path) -> set[str]:
    """The headings of a document as GitHub names them in addresses."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_files_named_in_a_document_exist(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    named = re.findall(r"`((?:fvl_lightning|datamodules|experiments|tests|docs|notebooks|benchmarks)/[\w./-]+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_files_named_on_the_developers_page_exist() -> None:
    there = {path.name for path in (ROOT / "datamodules").rglob("*.py")}
    named = re.findall(r"\b\w+\.py\b", (ROOT / "datamodules" / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert not set(named) - there


def test_the_page_about_components_has_every_slot() -> None:
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| (\w+) \| `", page, re.MULTILINE)) == sorted(SLOT_PACKAGES)
