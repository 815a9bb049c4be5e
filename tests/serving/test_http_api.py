"""Who may ask, how much, and what is answered to mistakes; the model is a stand-in."""

import asyncio
import json
from typing import Any

import pytest

from raymtl.serving.http_api import HttpApi
from raymtl.serving.messages import MISSING, Answer, Query, Support, refused
from raymtl.serving.settings import ServeSettings
from tests.serving.asgi import Response, call

TOKEN = {"Authorization": "Bearer secret"}


class StandIn:
    """Processes that know the handles in `known` alone."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.queries: list[Query] = []
        self.wait = 0.0

    async def predict(self, query: Query) -> Answer:
        await asyncio.sleep(self.wait)
        self.queries.append(query)
        if query.support is not None:
            self.known.add(query.support.handle)
        if query.handle is not None and query.handle not in self.known:
            return MISSING
        if "boom" in query.rows[0]:
            raise ValueError("boom")
        return Answer(200, {"predictions": [{"n": float("nan")} for _ in query.rows]})

    async def adapt(self, support: Support) -> Answer:
        if "bad" in support.rows[0]:
            return refused("rows: bad")
        self.known.add(support.handle)
        return Answer(200, {"model": support.handle})

    async def describe(self) -> Answer:
        return Answer(200, {"tasks": []})


class Client:
    """Asks one service."""

    def __init__(self, token: str | None = "secret", **limits: Any) -> None:
        self.models = StandIn()
        self.api = HttpApi(self.models, ServeSettings(run="run", **limits), token)
        self.app = self.api.app()

    def ask(
        self, method: str, path: str, content: Any = None, headers: dict[str, str] = TOKEN
    ) -> Response:
        parts = [json.dumps(content).encode()] if content is not None else []
        return asyncio.run(call(self.app, method, path, parts, headers))

    def adapted(self, x: int) -> str:
        answer = self.ask("POST", "/adapt", {"rows": [{"x": x}]})
        return str(answer.content["model"])


def test_the_token_is_asked_for_everywhere_but_health() -> None:
    client = Client()
    assert client.ask("GET", "/health", headers={}).content == {"status": "ok"}
    for method, path in (
        ("GET", "/model"),
        ("GET", "/metrics"),
        ("POST", "/predict"),
        ("POST", "/adapt"),
        ("DELETE", "/models/m-1"),
    ):
        for headers in ({}, {"Authorization": "Bearer secre"}, {"Authorization": "Bearer sécret"}):
            answer = client.ask(method, path, {"rows": [{"x": 1}]}, headers)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert client.models.queries == []
    assert Client(token=None).ask("GET", "/model", headers={}).status == 200


def test_numbers_that_json_does_not_have_are_null() -> None:
    answer = Client().ask("POST", "/predict", {"rows": [{"x": 1}, {"x": 2}]})
    assert (answer.status, answer.content) == (200, {"predictions": [{"n": None}, {"n": None}]})


def test_paths_and_methods_that_are_not_there() -> None:
    client = Client()
    assert client.ask("GET", "/nowhere").status == 404
    answer = client.ask("GET", "/predict")
    assert answer.status == 405 and "POST /predict" in answer.content["error"]


def test_a_large_request_is_not_read() -> None:
    client = Client(request_mb=0.001)
    said = asyncio.run(
        call(client.app, "POST", "/predict", [b"x"], {**TOKEN, "Content-Length": "5000"})
    )
    assert (said.status, said.read) == (413, 0)
    streamed = asyncio.run(call(client.app, "POST", "/predict", [b"x" * 600] * 50, TOKEN))
    assert (streamed.status, streamed.read) == (413, 2)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"rows": 3}'])
def test_malformed_requests_are_said(body: bytes) -> None:
    answer = asyncio.run(call(Client().app, "POST", "/predict", [body], TOKEN))
    assert answer.status == 400 and "expected" in answer.content["error"]


def test_a_request_that_takes_too_long_is_given_up() -> None:
    client = Client(timeout_s=0.05)
    client.models.wait = 5
    answer = client.ask("POST", "/predict", {"rows": [{"x": 1}]})
    assert answer.status == 504 and "0.05 s" in answer.content["error"]


def test_a_failure_says_nothing_of_the_inside() -> None:
    answer = Client().ask("POST", "/predict", {"rows": [{"boom": 1}]})
    assert (answer.status, answer.content) == (
        500,
        {"error": "the service failed; its log says why"},
    )


def test_a_process_that_forgot_gets_the_support_set_again() -> None:
    client = Client()
    handle = client.adapted(1)
    query = {"rows": [{"x": 1}], "model": handle}
    assert client.ask("POST", "/predict", query).status == 200
    assert [each.support for each in client.models.queries] == [None]
    client.models.known.clear()  # as a new process
    assert client.ask("POST", "/predict", query).status == 200
    assert [each.support is None for each in client.models.queries] == [True, True, False]


def test_handles_that_nobody_knows() -> None:
    client = Client(kept_mb=3 * 20 / 2**20)  # a support set takes 20 bytes
    for path in ("/predict",):
        answer = client.ask("POST", path, {"rows": [{"x": 1}], "model": "m-unknown"})
        assert answer.status == 404 and "Call /adapt again" in answer.content["error"]
    first, *others = [client.adapted(x) for x in range(4)]
    assert client.ask("POST", "/predict", {"rows": [{"x": 1}], "model": first}).status == 404
    for handle in others:
        assert client.ask("POST", "/predict", {"rows": [{"x": 1}], "model": handle}).status == 200
    assert client.ask("DELETE", f"/models/{others[0]}").status == 200
    assert client.ask("DELETE", f"/models/{others[0]}").status == 404
    answer = client.ask("POST", "/predict", {"rows": [{"x": 1}], "model": others[0]})
    assert answer.status == 404


def test_what_cannot_be_adapted_to_is_not_kept() -> None:
    client = Client()
    answer = client.ask("POST", "/adapt", {"rows": [{"bad": 1}]})
    assert (answer.status, len(client.api.supports)) == (422, 0)


def test_requests_are_counted() -> None:
    client = Client()
    client.adapted(1)
    client.ask("POST", "/predict", {"rows": [{"x": 1}]})
    client.ask("POST", "/predict", {})
    text = client.ask("GET", "/metrics").body.decode()
    for line in (
        'raymtl_requests_total{path="predict",status="200"} 1.0',
        'raymtl_requests_total{path="predict",status="400"} 1.0',
        'raymtl_request_seconds_count{path="predict"} 2.0',
        "raymtl_adapted_models 1.0",
    ):
        assert line in text
