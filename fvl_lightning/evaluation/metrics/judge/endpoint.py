"""Asks an OpenAI-compatible server, with a time limit and retries; refuses redirects, which would receive the key."""

import json
import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from fvl_lightning.core.errors import first_line

MAX_REPLY_BYTES = 1_000_000
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further wait is twice as long."""
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""HTTP status codes that are retried."""


class EndpointError(Exception):
    """The server gave no reply; the message says why, without the key."""


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects, to which urllib would send the key."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def ask(endpoint: str, key: str, body: dict[str, Any], seconds: float, attempts: int) -> str:
    """Returns the text of the first choice of a chat completion.

    Args:
        endpoint: address below which chat/completions lies.
        key: sent as a bearer token; empty for none.
        body: the request.
        seconds: time limit of one attempt.
        attempts: the most attempts, while its errors are temporary.

    Raises:
        EndpointError: the server cannot be reached, refuses, is too slow, or replies with something else.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    content = json.dumps(body).encode()
    request = Request(f"{endpoint.rstrip('/')}/chat/completions", data=content, headers=headers, method="POST")
    opener, wait = build_opener(_NoRedirect), FIRST_WAIT
    for attempt in range(1, attempts + 1):
        try:
            return _text(_read(opener, request, seconds))
        except HTTPError as error:
            reason = f"HTTP {error.code}"
            if error.code not in PASSING:
                break
        except (OSError, HTTPException, ValueError) as error:
            reason = first_line(error)[:200]
        if attempt < attempts:
            time.sleep(wait)
            wait *= 2
    raise EndpointError(reason)


def _read(opener: OpenerDirector, request: Request, seconds: float) -> bytes:
    end, content = time.monotonic() + seconds, b""
    with opener.open(request, timeout=seconds) as response:
        while part := response.read1(1 << 16):
            content += part
            if len(content) > MAX_REPLY_BYTES:
                raise ValueError(f"the reply has over {MAX_REPLY_BYTES} bytes")
            if time.monotonic() > end:  # the timeout of the socket is that of one packet
                raise TimeoutError("timed out")
    return content


def _text(content: bytes) -> str:
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise ValueError("the reply is no chat completion")
    return text
