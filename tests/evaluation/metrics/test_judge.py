"""A judge behind an OpenAI-compatible server: asked once per answer, recorded, limited, and its key is never shown."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fvl_lightning.core.errors import ConfigError, DataError
from fvl_lightning.evaluation.metrics.base import Reference
from fvl_lightning.evaluation.metrics.judge import endpoint
from fvl_lightning.evaluation.metrics.judge.judge import JudgeMetric
from fvl_lightning.evaluation.metrics.lookup import metric_of

QUESTION = Reference(("a dog", "dog"), question="What is it?")


class Judge(BaseHTTPRequestHandler):
    """Replies with what the test has put into `replies`, in order: a state of HTTP, or the text of a completion."""

    replies: list[int | str | bytes]
    asked: list[tuple[str | None, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.headers["Authorization"], body))
        reply = self.replies.pop(0)
        self.send_response(reply if isinstance(reply, int) else 200)
        if reply == 307:
            self.send_header("Location", "/elsewhere")
        content = reply if isinstance(reply, bytes) else _completion(str(reply))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.0)
    Judge.replies, Judge.asked = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/v1"
        serving.shutdown()


def judge(server: str, cache: Path, **fields: Any) -> JudgeMetric:
    config = JudgeMetric.Config(endpoint=server, model="judge-7b", cache=str(cache), **fields)
    return JudgeMetric(config, ["all"])


def test_an_answer_is_judged_once_and_recorded(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    Judge.replies = [503, "Score: 3", "0"]
    metric = judge(server, tmp_path, key_variable="JUDGE_KEY", highest=4)
    metric.update("all", "one {truth} dog", QUESTION)
    assert metric.compute().overall == 0.75
    again = judge(server, tmp_path, key_variable="JUDGE_KEY", highest=4)
    assert again.score_answer("one {truth} dog", QUESTION) == 0.75
    assert metric.score_answer("cat", QUESTION) == 0
    assert len(Judge.asked) == 3, "one attempt failed, and one answer was in the cache"
    key, body = Judge.asked[1]
    assert key == "Bearer secret-key"
    prompt = body["messages"][0]["content"]
    assert prompt.endswith("<reference>a dog or dog</reference>\n<answer>one {truth} dog</answer>")
    files = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    assert sorted(file["reply"] for file in files) == ["0", "Score: 3"]
    assert {(file["model"], file["endpoint"]) for file in files} == {("judge-7b", server)}
    assert "secret-key" not in str(files)


@pytest.mark.parametrize(
    ("replies", "sentence"),
    [
        ([500, 502, 429], "did not answer: HTTP 429"),
        ([401], "did not answer: HTTP 401"),
        ([307], "did not answer: HTTP 307"),
        ([b"<html>"] * 3, "did not answer: the reply is no chat completion"),
        ([b"[" * 100_000] * 3, "did not answer: the reply is no chat completion"),
        ([b" " * 1_000_001] * 3, "did not answer: the reply has over 1000000 bytes"),
        (["fine"], "replied 'fine', which is no number from 0 to 1"),
        (["7"], "replied '7', which is no number from 0 to 1"),
    ],
)
def test_a_judge_that_does_not_answer(server: str, tmp_path: Path, replies: list[Any], sentence: str) -> None:
    Judge.replies = list(replies)
    with pytest.raises(DataError) as caught:
        judge(server, tmp_path).score_answer("dog", QUESTION)
    assert str(caught.value) == f"metric judge: judge-7b at {server} {sentence}; what was judged is kept in {tmp_path}"
    assert not Judge.replies, "asked as often as that may help"
    assert not list(tmp_path.rglob("*.json"))


def test_a_judge_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"did not answer: .*refused"):
        judge("http://127.0.0.1:9", tmp_path, attempts=1).score_answer("dog", QUESTION)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "metric judge: endpoint must be set; nothing is judged without it"),
        ({"endpoint": "http://a"}, "metric judge: model must be set"),
        ({"endpoint": "file:///etc/passwd", "model": "m"}, "endpoint must be an address http(s)://... without a login"),
        ({"endpoint": "http://u:secret@a", "model": "m"}, "not http://...@a"),
        ({"endpoint": "http://a", "model": "m", "prompt": "Good?"}, "prompt must contain {answer}"),
        ({"endpoint": "http://a", "model": "m", "key_variable": "NO_KEY"}, "NO_KEY, which is not exported"),
    ],
)
def test_a_judge_that_is_not_set_up(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JudgeMetric(JudgeMetric.Config(**fields), [])
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_comparison_cannot_name_a_judge() -> None:
    with pytest.raises(ConfigError) as caught:
        metric_of("judge/macro", "metric in a.yaml")
    assert str(caught.value) == "metric in a.yaml: judge needs endpoint and model, which only a task can set"
