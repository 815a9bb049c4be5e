"""Calls an ASGI application without a network."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message


class Response(NamedTuple):
    """What an application answers."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    read: int
    """How many parts of the body it has taken."""

    @property
    def content(self) -> Any:
        """The JSON of the body."""
        return json.loads(self.body)


async def call(
    app: ASGIApp,
    method: str,
    path: str,
    parts: Sequence[bytes] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Sends a request, whose body comes in parts."""
    waiting = list(parts) or [b""]
    sent: list[Message] = []

    async def receive() -> Message:
        body = waiting.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    named = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": named,
    }
    await app(scope, receive, send)
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Response(sent[0]["status"], body, got, len(list(parts) or [b""]) - len(waiting))
