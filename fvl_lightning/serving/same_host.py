"""A check of the Host and Origin headers: a web site of another name cannot use the page through a visitor's browser.

A site may let its own name point to 127.0.0.1 (DNS rebinding). To the browser, the page then belongs to that site,
whose scripts may upload, ask and read. Such requests have the site's name in their Host header.
"""

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?", re.IGNORECASE)


class SameHost:
    """ASGI middleware that refuses requests for other names, and requests from pages of other sites.

    Any port is accepted, because a tunnel (`ssh -L 9000:localhost:7860`) has another one.

    Args:
        app: the application.
        host: the address or name that the server was asked to listen on.
    """

    def __init__(self, app: Any, host: str) -> None:
        self._app, self._host = app, host
        self._everywhere = _is_unspecified(host)
        self._names = {"localhost", host.lower()}
        if self._everywhere:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers a request with the application, or with 403 and a sentence."""
        if scope["type"] in ("http", "websocket") and (why := self._refusal(scope["headers"])):
            await _refuse(scope["type"], why, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, headers: list[tuple[bytes, bytes]]) -> str:
        """Returns why a request is refused; nothing for one that is answered."""
        hosts, origins = (
            [value.decode("latin-1") for name, value in headers if name.lower() == wanted]
            for wanted in (b"host", b"origin")
        )
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return f"this page answers requests to localhost and {self._host} only; `fvl serve --host NAME` adds a name"
        if any(origin.lower().partition("://")[2] != hosts[0].lower() for origin in origins):
            return "this page answers no requests from pages of other sites"
        return ""

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = (found[1] or found[2]).lower().removesuffix(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        # No other site can have an address for its name.
        return self._everywhere or address.is_loopback or name in self._names


def _is_unspecified(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


async def _refuse(kind: str, why: str, send: Send) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why[:120]})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": f"{why}\n".encode()})
