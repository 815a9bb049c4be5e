"""How fast a service answers, and what adapting to several support sets at once saves.

    python -m benchmarks.serve [--rate 200] [--seconds 20] [--json FILE]

The run is an MLP on 40 numbers with two tasks, made for the purpose. Requests of single rows arrive
at a constant rate, whether or not those before have been answered, so that waiting counts. Then one
of two processes is killed under the same load. At last support sets of 16 rows are adapted to, one
request after the other and eight requests at a time, over HTTP and in the model's own process.
Client, gateway and model share the cores of this machine.
"""

import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.util
import torch
import typer
from rich.console import Console
from rich.table import Table

import raymtl
from raymtl.api.service import Service
from raymtl.config import Experiment
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.serving.request_body import support_of
from raymtl.serving.served_model import ServedModel
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop

COLUMNS = 40
SUPPORT = 16
AT_ONCE = 8
ROUNDS = 12
Rows = list[dict[str, Any]]


def made_run(folder: Path) -> tuple[Path, Rows]:
    """A run folder with a trained model, and rows with labels that it never saw."""
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(3000, COLUMNS)).round(4)
    columns: dict[str, Any] = {f"x{column}": numbers[:, column] for column in range(COLUMNS)}
    columns["price"] = numbers[:, 0] * 3 + numbers[:, 1]
    columns["good"] = np.where(numbers[:, 2] > 0, "yes", "no")
    table = pa.table(columns)
    pq.write_table(table.slice(0, 2000), folder / "rows.parquet")
    chosen = Experiment.model_validate(
        {
            "data": {
                "name": "files",
                "path": str(folder / "rows.parquet"),
                "tasks": {"price": {}, "good": {}},
            },
            "encoder": {"name": "mlp", "hidden": [64, 64]},
            "learner": {"name": "maml", "inner_steps": 5},
            "train": {"steps": 20, "eval_every": 10},
        }
    ).resolve()
    run = folder / "run"
    (run / "best").mkdir(parents=True)
    chosen.save(run / "config.yaml")
    arrays = chosen.data.load()
    context = TrainContext(lambda _: None, lambda _: None)
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, run / "best")
    evaluate_folder(run / "best", arrays, chosen.data)
    return run, table.slice(2000).to_pylist()


class Client:
    """Asks a service, and keeps how long each answer took."""

    def __init__(self, service: Service, session: aiohttp.ClientSession) -> None:
        self.service, self.session = service, session
        self.seconds: list[float] = []
        self.failed = 0

    async def ask(self, path: str, content: Any) -> Any:
        """The JSON of the answer."""
        start = time.perf_counter()
        headers = {"Authorization": f"Bearer {self.service.token}"}
        url = f"{self.service.url}{path}"
        async with self.session.post(url, json=content, headers=headers) as answer:
            told = await answer.json()
        self.seconds.append(time.perf_counter() - start)
        self.failed += answer.status != 200
        return told

    def percentile(self, share: int) -> float:
        """In milliseconds."""
        return 1000 * statistics.quantiles(self.seconds, n=100)[share - 1]


async def load(client: Client, rows: Rows, rate: float, seconds: float, kill_at: float) -> float:
    """Requests of single rows at a rate; returns how many were answered a second."""
    asked = []
    start = time.perf_counter()
    killed = False
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        row = random.choice(rows)
        asked.append(asyncio.create_task(client.ask("/predict", {"rows": [row]})))
        if not killed and time.perf_counter() - start > kill_at:
            kill_one()
            killed = True
    await asyncio.gather(*asked)
    return len(asked) / (time.perf_counter() - start)


def kill_one() -> None:
    """Kills one of the processes that hold the model."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    replica = "SERVE_REPLICA::raymtl#ModelProcess#"
    name = next(each["name"] for each in actors if each["name"].startswith(replica))
    ray.kill(ray.get_actor(name, namespace="serve"))


def supports(rows: Rows, number: int) -> list[dict[str, Any]]:
    """Bodies of requests to adapt, no two alike."""
    return [{"rows": random.sample(rows, SUPPORT)} for _ in range(number)]


async def adaptations(client: Client, rows: Rows) -> tuple[float, float]:
    """Seconds for eight support sets, one after the other and together: the medians."""
    alone, together = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for body in supports(rows, AT_ONCE):
            await client.ask("/adapt", body)
        middle = time.perf_counter()
        await asyncio.gather(*(client.ask("/adapt", body) for body in supports(rows, AT_ONCE)))
        alone.append(middle - start)
        together.append(time.perf_counter() - middle)
    return statistics.median(alone), statistics.median(together)


def adaptations_inside(run: Path, rows: Rows) -> tuple[float, float]:
    """The same in the process of the model, without HTTP and Ray."""
    served = ServedModel(run, 1e9)
    alone, together = [], []
    for _ in range(ROUNDS):
        first, second = (
            [support_of(body, SUPPORT) for body in supports(rows, AT_ONCE)] for _ in range(2)
        )
        start = time.perf_counter()
        for support in first:
            served.adapt([support])
        middle = time.perf_counter()
        served.adapt(second)
        alone.append(middle - start)
        together.append(time.perf_counter() - middle)
    return statistics.median(alone), statistics.median(together)


async def measure(service: Service, rows: Rows, rate: float, seconds: float) -> dict[str, Any]:
    """The figures of one service."""
    bare = [{name: row[name] for name in row if name.startswith("x")} for row in rows]
    connector = aiohttp.TCPConnector(limit=64)
    async with aiohttp.ClientSession(connector=connector) as session:
        warm = Client(service, session)
        await load(warm, bare, rate / 4, 3, float("inf"))
        client = Client(service, session)
        answered = await load(client, bare, rate, seconds, float("inf"))
        alone, together = await adaptations(Client(service, session), rows)
        killed = Client(service, session)
        await load(killed, bare, rate / 4, seconds, seconds / 3)
    return {
        "rate": rate,
        "answered a second": answered,
        "p50 ms": client.percentile(50),
        "p99 ms": client.percentile(99),
        "failed": client.failed,
        "8 adapted one by one s": alone,
        "8 adapted together s": together,
        "times as fast": alone / together,
        "requests while a process is killed": len(killed.seconds),
        "failed while a process is killed": killed.failed,
    }


def table_of(figures: dict[str, Any]) -> Table:
    """A line for each figure."""
    lines = Table("figure", "value")
    for name, value in figures.items():
        lines.add_row(name, f"{value:.4g}")
    return lines


def main(
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 200,
    seconds: Annotated[float, typer.Option(help="Of each load.")] = 20,
    save: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
) -> None:
    """Prints the figures."""
    torch.set_num_threads(1)
    random.seed(0)
    with tempfile.TemporaryDirectory() as name:
        run, rows = made_run(Path(name))
        with raymtl.serve(run, port=0, replicas=2, cpus=0.5) as service:
            figures = asyncio.run(measure(service, rows, rate, seconds))
        alone, together = adaptations_inside(run, rows)
    figures |= {"the same inside, times as fast": alone / together}
    if save:
        save.write_text(json.dumps(figures, indent=1))
    Console().print(table_of(figures))


if __name__ == "__main__":
    typer.run(main)
