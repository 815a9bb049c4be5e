"""The notice of a spot machine, by a stand-in for the clouds' metadata servers on loopback."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from raymtl.distributed import preemption

ROOT = Path(__file__).parent.parent.parent


class Metadata:
    """What the cloud would say, and what it was asked."""

    def __init__(self) -> None:
        self.action: str | None = None
        self.preempted = "FALSE"
        self.fails = 0
        self.asked: list[str] = []


@pytest.fixture
def cloud() -> Iterator[tuple[Metadata, str]]:
    metadata = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Not on the terminal."""

        def answer(self, status: int, text: str = "") -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            metadata.asked.append(self.path)
            if metadata.fails:
                metadata.fails -= 1
                return self.answer(503)
            return (
                self.answer(200, "a token")
                if self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                else None
            )

        def do_GET(self) -> None:
            metadata.asked.append(self.path)
            if self.path == "/computeMetadata/v1/instance/preempted":
                return self.answer(
                    200 if self.headers["Metadata-Flavor"] == "Google" else 403, metadata.preempted
                )
            if self.headers["X-aws-ec2-metadata-token"] != "a token":
                return self.answer(401)
            return self.answer(200, metadata.action) if metadata.action else self.answer(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield metadata, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_aws_tells_when(cloud: tuple[Metadata, str]) -> None:
    metadata, base = cloud
    assert preemption.aws(base) is None
    at = datetime.now(UTC) + timedelta(seconds=90)
    metadata.action = json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})
    left = preemption.aws(base)
    assert left is not None and 30 < left <= 90
    metadata.action = json.dumps({"action": "terminate", "time": "2017-09-18T08:22:00Z"})
    assert preemption.aws(base) == 0


def test_google_tells_that(cloud: tuple[Metadata, str]) -> None:
    metadata, base = cloud
    assert preemption.gcp(base) is None
    metadata.preempted = "TRUE"
    assert preemption.gcp(base) == preemption.GCP_S


def test_notices_are_polled_through_failures(
    cloud: tuple[Metadata, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    metadata, base = cloud
    metadata.fails = 1
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            metadata.action = json.dumps({"action": "stop", "time": "2017-09-18T08:22:00Z"})

    monkeypatch.setattr("raymtl.distributed.preemption.time.sleep", sleep)
    told: list[float] = []
    preemption.watch(lambda: preemption.aws(base), told.append)
    assert told == [0.0]
    assert slept == [preemption.LOOK_S] * 3
    assert "503" in caplog.text


@pytest.mark.parametrize(
    ("file", "cloud_name"), [("cluster.yaml", "aws"), ("clusters/gcp.yaml", "gcp")]
)
def test_shipped_files_poll_on_spot_workers(file: str, cloud_name: str) -> None:
    commands = yaml.safe_load((ROOT / file).read_text())["worker_start_ray_commands"]
    assert f"python3 -m raymtl.distributed.preemption {cloud_name} " in commands[-1]
    assert cloud_name in preemption.CLOUDS
