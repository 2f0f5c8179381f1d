"""`fvl serve`: the page in a real Chromium, what it says of bad input, and what it draws of a fusion."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import cycle, pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.inference.generation import Sampling
from fvl_lightning.inference.source_weight_maps import source_weights
from fvl_lightning.modeling.build import LoadedModel
from fvl_lightning.runs.references import answering_model
from fvl_lightning.serving.page import build_page, reply
from fvl_lightning.serving.same_host import SameHost
from fvl_lightning.serving.server import launch_page, offline_gradio
from fvl_lightning.serving.weights_panel import heat, overlay, weights_panel
from fvl_lightning.serving.without_panel import without_html
from tests.conftest import ROOT, Run

PICTURE = ROOT / "docs" / "images" / "example.png"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60
MAY_END = Event()
MAY_END.set()
ANSWER = "red green blue red green blue red green blue red green blue"

browser_needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")
gradio_needed = pytest.mark.skipif(find_spec("gradio") is None, reason="the extra serve is not installed")


@pytest.fixture(scope="module")
def loaded(asked: Path) -> LoadedModel:
    """The tiny model with the gated fusion; it always writes ANSWER, a token in a moment, and its end if MAY_END."""
    loaded = answering_model(str(asked / "model"))
    words = loaded.tokenizer.encode(ANSWER, add_special_tokens=False)
    script = cycle([*words, loaded.tokenizer.eos_token_id])

    def next_word(hidden: Tensor) -> Tensor:
        time.sleep(0.02)
        word = next(script)
        if word == loaded.tokenizer.eos_token_id:
            MAY_END.wait(SECONDS)
        ids = torch.full(hidden.shape[:2], word)
        return torch.nn.functional.one_hot(ids, loaded.model.config.get_text_config().vocab_size).float()

    loaded.model.language_model.logits = next_word  # type: ignore[method-assign]
    return loaded


# What the page becomes, without a browser.


def pieces(loaded: LoadedModel, text: str, *files: Path, before: tuple[Any, ...] = ((), ())) -> list[tuple[Any, ...]]:
    """Everything that `reply` says to a question behind (chat, messages)."""
    said = {"text": text, "files": [str(file) for file in files]}
    return list(reply(loaded, Sampling(), said, list(before[0]), list(before[1])))


def test_the_question_is_shown_first_and_then_the_answer_grows(loaded: LoadedModel) -> None:
    states = pieces(loaded, " how many? ", PICTURE)
    chats = [chat for chat, *_ in states]
    assert [said["content"] for said in chats[0]] == [{"path": str(PICTURE)}, "how many?", ""]
    answers = [chat[-1]["content"] for chat in chats]
    assert len(answers) > 5
    assert answers[-1] == ANSWER
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(answers))
    messages = states[-1][1]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"] == answers[-1].strip()


def test_the_second_question_stands_behind_the_first(loaded: LoadedModel) -> None:
    chat, messages, panel, _ = pieces(loaded, "how many?", PICTURE)[-1]
    assert panel is not None
    again, after, unchanged, without = pieces(loaded, "and now?", before=(chat, messages))[-1]
    assert again[:3] == chat
    assert after[:2] == messages
    assert unchanged is None, "no new picture, the shares stay"
    assert len(without) == 4, "but the answer is another one"


def test_one_pass_of_the_encoder_serves_answer_weights_and_the_answers_without_a_source(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    forward = loaded.model.encoder.forward

    def counted(images: Tensor) -> Any:
        encoded.append(len(images))
        return forward(images)

    monkeypatch.setattr(loaded.model.encoder, "forward", counted)
    states = pieces(loaded, "how many?", PICTURE)
    assert encoded == [1]
    assert list(states[-1][3]) == ["davit", "caption", "ocr", "grounding"]
    assert set(states[-1][3].values()) == {ANSWER}
    assert not any(without for *_, without in states[:-1]), "the answer is not kept waiting"


def test_answers_without_a_source_are_text_and_other_ones_are_marked() -> None:
    page = without_html({"davit": "red ", "<b>": "<img src=x>", "ocr": ""}, "red")
    assert "<tr><td>without davit</td><td>red</td></tr>" in page
    assert '<tr><td>without &lt;b&gt;</td><td class="changed">&lt;img src=x&gt;</td></tr>' in page
    assert '<td class="changed">(nothing)</td>' in page
    assert "2 of 3 answers are other ones" in page
    assert without_html({}, "red") == ""
    assert "the answer is the same" in without_html({"davit": "red"}, "red")


def test_nothing_changes_where_there_is_no_answer(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"^bad\.png: not a readable PNG"):
        pieces(loaded, "how many?", tmp_path / "bad.png")
    with pytest.raises(DataError, match="no question"):
        pieces(loaded, "  ", PICTURE)
    with pytest.raises(DataError, match="the model has 512 positions"):
        pieces(loaded, "many " * 600, PICTURE)
    with pytest.raises(DataError, match=r"^a question of 100001 characters, at most 100000 are read$"):
        pieces(loaded, "x" * 100_001)
    with pytest.raises(DataError, match=r"^65 images, at most 64 are read together$"):
        pieces(loaded, "how many?", *[PICTURE] * 65)


def test_weights_of_a_gated_fusion_sum_to_one(loaded: LoadedModel) -> None:
    pixels = loaded.processor.image_processor([PICTURE, PICTURE])["pixel_values"]
    weights = source_weights(loaded, pixels)
    assert [list(one.weights) for one in weights] == [["davit", "caption", "ocr", "grounding"]] * 2
    assert sum(weights[0].weights.values()) == pytest.approx(1, abs=1e-5)
    panel = weights_panel(pixels, weights, loaded)
    assert panel.means == pytest.approx(weights[0].weights, abs=1e-5), "both pictures are the same"
    captions = [caption for _, caption in panel.gallery]
    maps = [f"picture {number}, {source}" for number in (1, 2) for source in weights[0].maps]
    assert [caption.split(":")[0] for caption in captions] == ["picture 1", *maps[:4], "picture 2", *maps[4:]]
    percents = [float(number) for number in re.findall(r"([\d.]+)%", captions[0])]
    assert sum(percents) == pytest.approx(100, abs=0.3)


def test_a_fusion_may_give_shares_per_place(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """`map/<source>` [I, N]: drawn over the picture on the fusion's grid, each value in its place."""
    values = torch.linspace(0, 1, 16).repeat(1, 1)
    embed = loaded.model.embed_images

    def with_map(pixel_values: Any, **question: Any) -> Any:
        embedded = embed(pixel_values)
        return embedded._replace(diagnostics=embedded.diagnostics | {"map/davit": values})

    monkeypatch.setattr(loaded.model, "embed_images", with_map)
    pixels = loaded.processor.image_processor([PICTURE])["pixel_values"]
    (shares,) = source_weights(loaded, pixels)
    assert torch.equal(shares.maps["davit"], values.view(4, 4))
    (picture, _), *maps = weights_panel(pixels, [shares], loaded).gallery
    drawn = next(image for image, caption in maps if caption == "picture 1, davit")
    assert drawn.size == picture.size
    changed = [drawn.getpixel(place) != picture.getpixel(place) for place in ((0, 0), (picture.width - 1,) * 2)]
    assert changed == [False, True], "the smallest weight is transparent"
    assert drawn.tobytes() == overlay(picture, shares.maps["davit"]).tobytes()
    opacity = [heat(shares.maps["davit"]).getpixel((x, y))[3] for y in range(4) for x in range(4)]
    assert opacity == sorted(opacity)
    assert opacity[0] == 0 < opacity[-1] < 255


def test_a_fusion_that_does_not_weigh_says_so(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = loaded.model.embed_images
    monkeypatch.setattr(loaded.model, "embed_images", lambda pixels, **_: embed(pixels)._replace(diagnostics={}))
    pixels = loaded.processor.image_processor([PICTURE])["pixel_values"]
    panel = weights_panel(pixels, source_weights(loaded, pixels), loaded)
    assert "does not weigh its sources" in panel.note
    assert not panel.means
    assert not panel.gallery


def test_without_the_extra_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r'pip install "fvl-lightning\[serve\]"$'):
        offline_gradio()


# Who is answered.


@pytest.mark.parametrize(
    ("served", "host", "origin", "answered"),
    [
        ("127.0.0.1", "127.0.0.1:7860", None, True),
        ("127.0.0.1", "localhost:7860", "http://localhost:7860", True),
        ("127.0.0.1", "LOCALHOST.:9000", "http://localhost.:9000", True),
        ("127.0.0.1", "[::1]:7860", "http://[::1]:7860", True),
        ("127.0.0.1", "evil.example:7860", "http://evil.example:7860", False),
        ("127.0.0.1", "evil.example", None, False),
        ("127.0.0.1", "127.0.0.1.evil.example:7860", None, False),
        ("127.0.0.1", "localhost.evil.example", None, False),
        ("127.0.0.1", "localhost@evil.example", None, False),
        ("127.0.0.1", "evil.example@localhost", None, False),
        ("127.0.0.1", "10.0.0.5:7860", None, False),
        ("127.0.0.1", "", None, False),
        ("127.0.0.1", None, None, False),
        ("127.0.0.1", "localhost:7860", "http://evil.example", False),
        ("127.0.0.1", "localhost:7860", "http://localhost:3000", False),
        ("127.0.0.1", "localhost:7860", "null", False),
        ("gpu7.lab", "GPU7.lab:7860", "http://gpu7.lab:7860", True),
        ("gpu7.lab", "gpu8.lab:7860", None, False),
        ("10.0.0.5", "10.0.0.5:7860", None, True),
        ("10.0.0.5", "10.0.0.6:7860", None, False),
        ("0.0.0.0", "10.0.0.6:7860", "http://10.0.0.6:7860", True),
        ("::", socket.gethostname(), None, True),
        ("0.0.0.0", "evil.example", None, False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_other_sites_get_no_answer(
    kind: str, served: str, host: str | None, origin: str | None, answered: bool
) -> None:
    """DNS rebinding has a foreign name in Host; a page of another site names itself in Origin."""
    sent: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        sent.append("answered")

    async def send(message: Any) -> None:
        sent.append(message)

    given = {b"host": host, b"origin": origin}
    headers = [(name, value.encode()) for name, value in given.items() if value is not None]
    asyncio.run(SameHost(application, served)({"type": kind, "headers": headers}, lambda: None, send))  # type: ignore[arg-type]
    assert (sent == ["answered"]) == answered
    if not answered:
        assert sent[0].get("status", sent[0].get("code")) in (403, 1008)


def fetch(address: str, content: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, content, headers), timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@gradio_needed
def test_the_page_checks_who_asks(address: str) -> None:
    assert fetch(address)[0] == 200
    for path in ("", "/config", "/gradio_api/queue/join", "/gradio_api/upload"):
        for headers in ({"Host": "evil.example:7860"}, {"Origin": "http://evil.example"}):
            for content in (None, b"{}"):
                status, text = fetch(f"{address}{path}", content, **headers)
                assert status == 403
                assert text.startswith("this page answers")


def answer_to(address: str, session: str, text: str = "how many?", history: Any = None) -> str:
    """The events of an answer to a question that a program asks, as the page would."""
    config = json.loads(fetch(f"{address}/config")[1])
    kinds = {component["id"]: component["type"] for component in config["components"]}
    answering = next(found for found in config["dependencies"] if len(found["inputs"]) > 1)
    inputs = [kinds[number] for number in answering["inputs"]]
    assert inputs == ["multimodaltextbox", "state", "state", "dropdown"]
    join = {
        "data": [{"text": text, "files": []}, history, history, ""],
        "fn_index": answering["id"],
        "session_hash": session,
        "trigger_id": answering["targets"][0][0],
    }
    content = json.dumps(join).encode()
    assert fetch(f"{address}/gradio_api/queue/join", content, **{"Content-Type": "application/json"})[0] == 200
    return fetch(f"{address}/gradio_api/queue/data?session_hash={session}")[1]


@gradio_needed
def test_the_history_is_the_servers_own(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program sends in its place is not read: gradio would make components of it and copy their files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("a secret of the folder", encoding="utf-8")
    file = {"component": "file", "value": {"path": "secret.txt"}, "props": {"value": "secret.txt"}}
    forged = [{"role": "user", "content": content} for content in (file, {"path": "secret.txt"}, "forged words")]
    for history in (forged, forged[0]):
        events = answer_to(address, f"s{len(history)}", history=history)
        assert ANSWER.split()[0] in events
        assert "secret" not in events
        assert "forged" not in events


@gradio_needed
@pytest.mark.slow
def test_two_hundred_questions_at_once(address: str) -> None:
    """Each of a session of its own; none is lost, and none has an answer twice."""
    with ThreadPoolExecutor(200) as people:
        answers = list(people.map(lambda number: answer_to(address, f"person{number}"), range(200)))
    assert sum(ANSWER in events for events in answers) == 200
    assert all(events.count('"process_completed"') == 1 for events in answers)


# The page in a browser.


@pytest.fixture(scope="module")
def address(loaded: LoadedModel) -> Iterator[str]:
    """Where the page is."""
    gradio, port = offline_gradio(), free_port()
    page = build_page(gradio, loaded, Sampling(), "a tiny model")
    launch_page(gradio, page, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    page.close(verbose=False)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """The page in Chromium, and `requests`, what it asked for."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox does not start for root, as whom tests run in containers; only this page is opened.
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#asked textarea")
        yield page
        browser.close()


def ask(page: Any, text: str) -> None:
    """Types a question and sends it."""
    page.fill("#asked textarea", text)
    page.keyboard.press("Enter")


def upload(page: Any, *files: Path) -> None:
    """Adds pictures to the question, and waits until they are there."""
    page.set_input_files("#asked input[type=file]", [str(file) for file in files])
    page.wait_for_function(f"document.querySelectorAll('#asked .thumbnail-item').length === {len(files)}")


@gradio_needed
@browser_needed
def test_a_picture_a_question_and_a_streamed_answer(
    page: Any, address: str, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_word = loaded.model.language_model.logits

    def slowly(hidden: Any) -> Any:  # the page may show several pieces at once that come at once
        time.sleep(0.15)
        return next_word(hidden)

    monkeypatch.setattr(loaded.model.language_model, "logits", slowly)
    page.evaluate(
        """() => { window.seen = new Set(); new MutationObserver(() => {
            for (const bot of document.querySelectorAll('#chat .bot.message')) window.seen.add(bot.innerText.trim());
        }).observe(document.querySelector('#chat'), {childList: true, subtree: true, characterData: true}); }"""
    )
    upload(page, PICTURE)
    ask(page, "how many shapes are there?")
    page.wait_for_function("window.seen.size > 3")
    page.wait_for_selector("#asked .submit-button")  # back where the stop button was
    assert "how many shapes are there?" in page.inner_text("#chat")
    assert page.locator("#chat img").count() == 1
    texts = sorted(page.evaluate("[...window.seen]"), key=len)
    assert texts[-1].startswith(texts[1]), "the answer grew piece by piece"
    for name in ("davit", "caption", "ocr", "grounding"):
        assert re.search(rf"{name}\s+\d+%", page.inner_text("#weights"))
    assert page.locator("#pictures img").count() >= 5
    assert page.locator("#asked textarea").input_value() == ""
    outside = [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
    assert not outside, "the page works without a network"
    page.get_by_text("New conversation").click()
    page.wait_for_function("!document.querySelector('#chat').innerText.includes('shapes')")


@gradio_needed
@browser_needed
def test_a_bad_file_is_one_sentence_and_the_question_stays(page: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    upload(page, tmp_path / "bad.png")
    ask(page, "what is it?")
    page.wait_for_selector(".toast-body")
    said = page.inner_text(".toast-body")
    assert "bad.png: not a readable PNG" in said
    assert "Traceback" not in page.content()
    assert page.locator("#asked textarea").input_value() == "what is it?"


@gradio_needed
@browser_needed
def test_a_file_that_is_too_large_is_not_taken(page: Any, tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(21 * 2**20)
    page.set_input_files("#asked input[type=file]", str(tmp_path / "large.png"))
    page.wait_for_selector(".toast-body")
    assert "exceed the maximum allowed size of 20" in page.inner_text(".toast-body")


@pytest.mark.slow
@gradio_needed
@browser_needed
def test_an_answer_can_be_stopped(page: Any) -> None:
    """However slow the machine: the answer does not end before it is stopped."""
    MAY_END.clear()
    try:
        ask(page, "how many?")
        page.wait_for_function("document.querySelector('#chat').innerText.includes('blue')")
        page.click("#asked .stop-button")
        page.wait_for_selector("#asked .submit-button")
        assert "red green blue" in page.inner_text("#chat")
    finally:
        MAY_END.set()
    end = time.monotonic() + SECONDS
    while "and now?" not in page.inner_text("#chat"):  # gradio drops what comes before it knows of the stop
        assert time.monotonic() < end
        ask(page, "and now?")
        page.wait_for_timeout(1000)
    page.wait_for_selector("#asked .submit-button")


@pytest.mark.slow
@gradio_needed
def test_the_command_serves_until_ctrl_c(asked: Path, tmp_path: Path, fvl_here: Run) -> None:
    port, log = free_port(), tmp_path / "serve.log"
    command = [sys.executable, "-m", "fvl_lightning", "serve", "model", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=asked, stdout=output, stderr=subprocess.STDOUT)
    try:
        assert _up(f"http://127.0.0.1:{port}", server), log.read_text(encoding="utf-8")
        second = fvl_here(asked, "serve", "model", "--port", str(port))
        assert second.returncode == 2
        assert f"127.0.0.1:{port} cannot be listened on" in second.stderr
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
        assert log.read_text(encoding="utf-8") == f"model answers on http://127.0.0.1:{port} (Ctrl-C ends)\n"
    finally:
        server.kill()


def _up(address: str, server: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as page:
                return page.status == 200
        except OSError:
            time.sleep(0.3)
    return False
