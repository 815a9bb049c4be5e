"""The numbers of a run in MLflow and in Weights & Biases."""

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import raymtl
from raymtl.types import UserError
from tests.tracking.test_tracker import finish, run

__all__ = ["run"]

pytest.importorskip("mlflow")
pytest.importorskip("wandb")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where MLflow writes: files, or a server on loopback where $RAYMTL_MLFLOW is the command of a
    whole MLflow, for the client alone cannot be a server.
    """
    command = os.environ.get("RAYMTL_MLFLOW")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "raymtl tests")
    if not command:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (tmp_path / "store").as_uri()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = [
        "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--host", "127.0.0.1", "--port",
        str(port), "--workers", "1",
    ]  # fmt: skip
    server = subprocess.Popen([command, "server", *place], cwd=tmp_path)
    try:
        uri = f"http://127.0.0.1:{port}"
        _wait_for(uri)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
    finally:
        server.terminate()
        server.wait()


def _wait_for(uri: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the server does not answer")


def test_mlflow_gets_the_whole_run_once(run: Path, store: str) -> None:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(store)
    assert raymtl.track(run, "mlflow") == 6
    finish(run)
    assert raymtl.track(run, "mlflow") == 14
    assert raymtl.track(run, "mlflow") == 0
    (run / "tracked" / "mlflow.json").unlink()  # the tracker itself knows what it has
    raymtl.track(run, "mlflow")
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("raymtl tests")
    assert experiment is not None
    runs = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["baselines/joint", "best", "digits", "trials/0000", "trials/0001"]
    best, whole = runs["best"], runs["digits"]
    assert best.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert (best.info.status, runs["trials/0000"].info.status) == ("FINISHED", "KILLED")
    assert best.data.params["train.lr"] == "0.01"
    assert best.data.metrics["test.left.accuracy"] == 0.9
    losses = client.get_metric_history(best.info.run_id, "loss.left")
    assert [(each.step, each.value) for each in losses] == [(n, 1 / n) for n in range(2, 7)]


def test_an_mlflow_server_that_is_away(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 .* cannot be written to"):
        raymtl.track(run, "mlflow")


def test_wandb_keeps_the_run_on_this_machine(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert raymtl.track(run, "wandb") == 6
    finish(run)
    assert raymtl.track(run, "wandb") == 14
    assert raymtl.track(run, "wandb") == 0
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.stem for file in files}) == 4  # trials, best and joint
    content = b"".join(file.read_bytes() for file in files)
    for word in (b"loss.left", b"test.left.accuracy", b"digits/best"):
        assert word in content
