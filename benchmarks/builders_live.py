"""Steps per second where workers build their own episodes, and where builders do, through Ray.

    python -m benchmarks.builders_live --trainers 2 --builders 6 --decode-ms 40

JPEG pictures are decoded to 128 x 128 and a small network learns their two labels. Ray has a node
for each trainer, and one more for builders alone; all are on this machine.

Whoever decodes a picture sleeps `--decode-ms`, one picture at a time in each process. That stands
in for the processors of machines that are not here: it shows what the way through Ray costs, and
not how fast pictures are decoded. With 0 pictures are decoded and nobody sleeps; that says
something only where each process has a processor of its own.
"""

import argparse
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.builders import experiment, small_blocks, write_pictures
from raymtl.config import Experiment
from raymtl.storage import formats

ROOT = str(Path(__file__).parent.parent)
OBJECT_STORE = 200 * 1024**2
"""Bytes of each node, which bound how far builders run ahead."""


class Settings(NamedTuple):
    """What is measured."""

    trainers: int
    builders: int
    steps: int
    decode_ms: float


def training(root: Path, settings: Settings) -> Experiment:
    """Two episodes of 8 pictures for each lane and step; as many lanes as builders."""
    lanes = max(settings.builders, settings.trainers)
    changed: dict[str, Any] = {
        "data.lanes": lanes,
        "data.hold_steps": 1,
        "train.steps": settings.steps,
        "train.eval_every": settings.steps,
        "train.meta_batch": 2 * lanes,
        "train.task_axis": "vmap",
        "train.graph": "none",
        "train.checkpoint_share": 0,
        "evaluate.val_episodes": 2,
        "evaluate.test_episodes": 2,
    }
    if settings.decode_ms:
        changed["data.augment"] = None  # takes processors, which the sleep stands in for
    return experiment(root).override(changed).resolve()


def slow_pictures(decode_s: float) -> None:
    """Runs in each process of Ray: sleeps for each picture, one at a time."""
    import torch

    from raymtl.data.tables.pictures import measured

    small_blocks()
    torch.set_num_threads(1)
    if not decode_s:
        return
    one_at_a_time = threading.Lock()

    def slow(*arguments: Any) -> Any:
        with one_at_a_time:
            time.sleep(decode_s)
        return measured(*arguments)

    mock.patch("raymtl.data.tables.encode.measured", slow).start()


@contextmanager
def nodes(settings: Settings) -> Iterator[None]:
    """A Ray cluster of a node for each trainer, and of one for builders, which has no room for a
    trainer.
    """
    import ray
    from ray.cluster_utils import Cluster

    few_processes = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
    os.environ.update({"PYTHONPATH": ROOT} | few_processes)  # else one for each CPU of a node
    cluster = Cluster()
    decode_s = settings.decode_ms / 1000

    def hook() -> None:
        slow_pictures(decode_s)

    try:
        for _ in range(settings.trainers):
            cluster.add_node(
                num_cpus=settings.builders + 1,
                object_store_memory=OBJECT_STORE,
                dashboard_port=None,
            )
        cluster.add_node(num_cpus=settings.builders, object_store_memory=OBJECT_STORE)
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"worker_process_setup_hook": hook},
        )
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def trained(root: Path, folder: Path, settings: Settings, builders: int) -> dict[str, Any]:
    """A training: steps per second and shares of time in the second half of its steps."""
    import ray

    from raymtl.distributed.trainer import TrainerSpec, train

    chosen = training(root, settings)
    spec = TrainerSpec(
        name=folder.name,
        ray_folder=folder / ".ray",
        workers=settings.trainers,
        cpus=settings.builders + 1,  # a node holds one worker and nothing else
        gpus=0,
        builders=builders,
    )
    folder.mkdir()
    train(chosen, ray.put(chosen.data.load()), folder, spec)
    history = formats.read_rows(folder / "history.parquet")
    late = history[len(history) // 2 : -1]  # the last step is scored
    seconds = sum(row["seconds"] for row in late)

    def mean(name: str) -> float:
        return float(sum(row["seconds"] * (row.get(name) or 0.0) for row in late) / seconds)

    return {
        "builders": builders,
        "steps_per_s": len(late) / seconds,
        "data_wait_pct": mean("data_wait_pct"),
        "builder_cpu_pct": mean("builder_cpu_pct"),
        "read_mb": sum(row["read_mb"] for row in late) / len(late),
    }


def compared(settings: Settings) -> list[dict[str, Any]]:
    """The same training without and with builders."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "pictures"
        root.mkdir()
        write_pictures(root)
        small_blocks()
        training(root, settings)  # refuses mistakes before Ray starts
        with nodes(settings):
            return [
                trained(root, Path(temporary) / f"built-by-{builders}", settings, builders)
                for builders in (0, settings.builders)
            ]


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    lines += [f"| {' | '.join(f'{value:.3g}' for value in row.values())} |" for row in rows]
    gain = rows[-1]["steps_per_s"] / rows[0]["steps_per_s"]
    return "\n".join([*lines, "", f"{gain:.2f} times as many steps per second with builders"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trainers", type=int, default=2)
    parser.add_argument("--builders", type=int, default=6)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--decode-ms", type=float, default=40.0)
    given = parser.parse_args()
    settings = Settings(given.trainers, given.builders, given.steps, given.decode_ms)
    print(printed(compared(settings)))


if __name__ == "__main__":
    main()
