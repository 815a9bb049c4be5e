"""The service on Ray Serve: real processes, one of which is killed."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.util

import raymtl
from raymtl.api.service import Service
from raymtl.types import UserError
from tests.adaptation.test_new_rows import TASKS, flats, trained
from tests.data.own import write_csv
from tests.distributed.local import local_ray
from tests.serving.test_served_model import BARE, LABELLED

REPLICA = "SERVE_REPLICA::raymtl#ModelProcess#"
"""How Ray Serve calls the actors that hold the model."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    write_csv(root / "flats.csv", flats())
    return trained(root / "run", {"path": str(root / "flats.csv"), "tasks": TASKS})


@pytest.fixture(scope="module")
def service(run: Path) -> Iterator[Service]:
    with (
        local_ray(num_cpus=3, include_dashboard=False),
        raymtl.serve(run, port=0, replicas=2) as served,
    ):
        yield served


def ask(service: Service, path: str, content: Any = None, token: str | None = None) -> Any:
    """The status and the JSON of an answer."""
    request = urllib.request.Request(f"{service.url}{path}")
    request.add_header("Authorization", f"Bearer {token or service.token}")
    if content is not None:
        request.data = json.dumps(content).encode()
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def kill_one() -> None:
    """Kills a process that holds the model."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    name = next(each["name"] for each in actors if each["name"].startswith(REPLICA))
    ray.kill(ray.get_actor(name, namespace="serve"))


@pytest.mark.slow
def test_it_answers_as_the_model(service: Service, run: Path) -> None:
    assert service.url.startswith("http://127.0.0.1:")
    assert ask(service, "/health") == (200, {"status": "ok"})
    assert ask(service, "/model", token="wrong")[0] == 401
    status, told = ask(service, "/model")
    assert status == 200 and [task["name"] for task in told["tasks"]] == list(TASKS)
    status, adapted = ask(service, "/adapt", {"rows": LABELLED[:20]})
    assert status == 200
    content = {"rows": BARE[:3], "model": adapted["model"]}
    rents = [row["rent"] for row in ask(service, "/predict", content)[1]["predictions"]]
    before = [row["rent"] for row in ask(service, "/predict", {"rows": BARE[:3]})[1]["predictions"]]
    assert rents != before
    status, said = ask(service, "/predict", {"rows": [{"city": "Bonn"}]})
    assert status == 422 and "size (m2)" in said["error"]


@pytest.mark.slow
def test_a_killed_process_loses_no_request(service: Service) -> None:
    handle = ask(service, "/adapt", {"rows": LABELLED[:20]})[1]["model"]

    def answers(number: int) -> list[Any]:
        rows = BARE[number % 30 : number % 30 + 2]
        return [
            ask(service, "/predict", {"rows": rows, "model": model}) for model in (None, handle)
        ]

    expected = [answers(number) for number in range(30)]
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(answers, number) for number in range(150)]
        asked[20].result()
        kill_one()
        asked[60].result()
        kill_one()
        for number, each in enumerate(asked):
            for (status, got), (_, want) in zip(each.result(), expected[number % 30], strict=True):
                assert status == 200
                found = [row["rent"] for row in got["predictions"]]
                assert found == pytest.approx(
                    [row["rent"] for row in want["predictions"]], rel=1e-4
                )


@pytest.mark.slow
def test_more_than_the_machines_have_is_refused(service: Service, run: Path) -> None:
    with (
        pytest.raises(UserError, match="--cpus: expected at most the 3 CPUs of the machines"),
        raymtl.serve(run, port=0, replicas=9),
    ):
        pass
