"""The HTTP interface: who may ask, how much, and what is answered to mistakes."""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from raymtl.serving.least_recent import LeastRecent
from raymtl.serving.messages import MISSING, Answer, Query, Support, refused
from raymtl.serving.request_body import query_of, read_body, support_of
from raymtl.serving.settings import ServeSettings
from raymtl.storage.strict_json import finite_or_none
from raymtl.types import UserError

MEBI = 2**20
Endpoint = Callable[[Request], Awaitable[Answer]]
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper ends of the bins of durations."""
_log = logging.getLogger(__name__)


class Models(Protocol):
    """The processes that hold the model."""

    async def predict(self, query: Query) -> Answer:
        """The predictions for some rows."""
        ...

    async def adapt(self, support: Support) -> Answer:
        """A handle of the model that was adapted."""
        ...

    async def describe(self) -> Answer:
        """What the model is."""
        ...


class HttpApi:
    """Answers requests, and keeps the support sets of adapted models within a number of bytes.

    A process that does not have an adapted model gets its support set with the query, so adapted
    models outlive the processes that hold them.
    """

    def __init__(self, models: Models, settings: ServeSettings, token: str | None) -> None:
        """`token` is what requests have to carry; None where they need none."""
        self.models = models
        self.settings = settings
        self.token = token
        self.supports: LeastRecent[Support] = LeastRecent(settings.kept_mb * MEBI)
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "raymtl_requests", "Requests", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "raymtl_request_seconds", "Durations", ["path"], buckets=SECONDS, registry=self.registry
        )
        kept = Gauge("raymtl_adapted_models", "Support sets that are kept", registry=self.registry)
        kept.set_function(lambda: len(self.supports))
        size = Gauge("raymtl_adapted_bytes", "What these take", registry=self.registry)
        size.set_function(lambda: self.supports.bytes)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/model", self._answering(self._describe)),
            Route("/predict", self._answering(self._predict), methods=["POST"]),
            Route("/adapt", self._answering(self._adapt), methods=["POST"]),
            Route("/models/{handle}", self._answering(self._forget), methods=["DELETE"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _as_json})

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        if not self._may(request):
            return _response(UNAUTHORISED)
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    def _may(self, request: Request) -> bool:
        if self.token is None:
            return True
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode())

    def _answering(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint behind the check of the token, with a limit of time, counted."""

        async def answer(request: Request) -> Response:
            start = time.perf_counter()
            path = request.scope["path"].split("/")[1]
            answered = await self._answer(endpoint, request)
            self._requests.labels(path, answered.status).inc()
            self._seconds.labels(path).observe(time.perf_counter() - start)
            return _response(answered)

        return answer

    async def _answer(self, endpoint: Endpoint, request: Request) -> Answer:
        if not self._may(request):
            return UNAUTHORISED
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await endpoint(request)
        except TimeoutError:
            return refused(f"the request took more than {self.settings.timeout_s:g} s", 504)
        except _TooLarge:
            return refused(
                f"expected a request of at most {self.settings.request_mb:g} MB. Send several.", 413
            )
        except UserError as error:
            return refused(str(error), 400)
        except Exception:
            _log.exception("a request failed")
            return refused("the service failed; its log says why", 500)

    async def _describe(self, _: Request) -> Answer:
        return await self.models.describe()

    async def _predict(self, request: Request) -> Answer:
        query = query_of(read_body(await self._body(request)), self.settings.rows)
        if query.handle is None:
            return await self.models.predict(query)
        support = self.supports.get(query.handle)
        if support is None:
            return _unknown(query.handle)
        answer = await self.models.predict(query)
        if answer == MISSING:
            answer = await self.models.predict(query._replace(support=support))
        return answer

    async def _adapt(self, request: Request) -> Answer:
        body = await self._body(request)
        support = support_of(read_body(body), self.settings.rows)
        answer = await self.models.adapt(support)
        if answer.status == 200:
            self.supports.put(support.handle, support, len(body))
        return answer

    async def _forget(self, request: Request) -> Answer:
        handle = request.path_params["handle"]
        if not self.supports.drop(handle):
            return _unknown(handle)
        return Answer(200, {"forgotten": handle})

    async def _body(self, request: Request) -> bytes:
        """The body; raises _TooLarge as soon as it is, so that none is held."""
        most = self.settings.request_mb * MEBI
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise _TooLarge
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise _TooLarge
            parts.append(part)
        return b"".join(parts)


class _TooLarge(Exception):
    """A request with too large a body."""


UNAUTHORISED = refused("expected the header `Authorization: Bearer TOKEN` with the token", 401)


def _unknown(handle: str) -> Answer:
    return refused(
        f"model: expected one that /adapt answered lately, got {handle:.80}. Call /adapt again.",
        404,
    )


def _response(answer: Answer) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
    return JSONResponse(
        finite_or_none(answer.content), answer.status, headers=headers.get(answer.status)
    )


async def _as_json(_: Request, error: Exception) -> Response:
    """No such path, or another method."""
    assert isinstance(error, HTTPException)
    sentence = f"{error.detail}. Expected POST /predict, POST /adapt, GET /model or GET /health."
    return JSONResponse({"error": sentence}, error.status_code, headers=error.headers)
