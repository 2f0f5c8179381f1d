"""A hub of the tests' own on this machine: the API of datasets, and files behind a redirect to another origin."""

import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT, NEXT_COMMIT = "0123456789abcdef" * 2 + "01234567", "f" * 40


@dataclass
class FakeHub:
    """One dataset. Tests change the fields while it serves."""

    name: str
    files: dict[str, bytes]
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    """{revision: its commit}."""
    card: dict[str, Any] = field(default_factory=dict)
    lists_sizes: bool = True
    token: str | None = None
    """The only token that opens it."""
    gated: bool = False
    faults: list[str] = field(default_factory=list)
    """What happens to the next requests for content: 503, 429, cut (half of the bytes), whole (no range)."""
    down: int = 0
    """Number of requests to the API that are answered with 503."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(origin, path, authorization) of all requests."""
    sent: int = 0
    """Bytes of content."""
    address: str = ""
    store: str = ""

    def requests(self, origin: str) -> list[str]:
        """The paths that one of the two origins was asked for."""
        return [path for where, path, _ in self.asked if where == origin]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serves the API on one port and the content on another."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, origin)) for origin in ("hub", "store")]
    hub.address, hub.store = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: FakeHub, origin: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if "/datasets/" in path or origin == "store":  # huggingface_hub asks for more of its own accord
                hub.asked.append((origin, path, self.headers.get("Authorization")))
            info = re.fullmatch(rf"/api/datasets/{hub.name}(?:/revision/(.+))?", path)
            file = re.fullmatch(rf"/datasets/{hub.name}/resolve/([^/]+)/(.+)", path)
            if origin == "store":
                self._content(hub.files[path.removeprefix("/")])
            elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._answer(401, {"error": "no"})
            elif hub.gated:
                self._answer(403, {"error": "no"}, {"X-Error-Code": "GatedRepo"})
            elif info:
                self._info(info[1] or "main")
            elif file and file[1] not in hub.commits.values():
                self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            elif file:
                self._answer(302, None, {"Location": f"{hub.store}/{file[2]}"})
            else:
                self._answer(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})

        def _info(self, revision: str) -> None:
            commit = hub.commits.get(revision, revision if revision in hub.commits.values() else None)
            sized = [
                {"rfilename": name, **({"size": len(content)} if hub.lists_sizes else {})}
                for name, content in hub.files.items()
            ]
            if hub.down:
                hub.down -= 1
                self._answer(503, {"error": "later"})
            elif commit is None:
                self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            else:
                self._answer(200, {"id": hub.name, "sha": commit, "siblings": sized, "cardData": hub.card})

        def _content(self, content: bytes) -> None:
            fault = hub.faults.pop(0) if hub.faults else ""
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert asked is not None
            first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
            part = content if fault == "whole" else content[first : last + 1]
            if fault in ("503", "429"):
                self._answer(int(fault), {"error": "later"}, {"Retry-After": "0"})
                return
            self.send_response(200 if fault == "whole" else 206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.end_headers()
            if fault == "cut":
                part = part[: len(part) // 2]
                self.close_connection = True
            hub.sent += len(part)
            self.wfile.write(part)

        def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            body = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler
