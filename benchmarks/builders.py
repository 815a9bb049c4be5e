"""Steps per second where workers build their own episodes, and where builders do.

    python -m benchmarks.builders --measure           # processor time of a picture, without Ray
    python -m benchmarks.builders                     # one trainer, one builder, a core for each
    python -m benchmarks.builders --trainers 2 --builders 6 --decode-ms 8

JPEG pictures of 400 x 400 are decoded to 128 x 128, cropped, mirrored and coloured; a small network
learns their two labels. Ray has a node for each trainer and one for all builders, on this machine.
Trainers' nodes are bound to the first half of its cores and the builders' to the second.

With `--decode-ms` a picture is a small one, and whoever decodes it sleeps instead, one picture at a
time in each process. That stands in for the processors of machines that are not here: it shows what
the way through Ray costs, and not how fast pictures are decoded.
"""

import argparse
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from raymtl.config import Experiment, parse
from raymtl.data.episodes import build_meta_batch
from raymtl.storage import formats

SIDE, NUM_PICTURES, PICTURES_A_BLOCK = 400, 256, 16
OBJECT_STORE = 200 * 1024**2
"""Bytes of each node, which bound how far builders run ahead."""


class Settings(NamedTuple):
    """What is measured."""

    trainers: int
    builders: int
    steps: int
    decode_ms: float


def write_pictures(root: Path, side: int) -> None:
    """Smooth coloured pictures with some noise, and a table of two labels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = ["picture,bright,warm"]
    for number in range(NUM_PICTURES):
        coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((side, side)), np.int16)
        noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        name = f"{number:04d}.jpg"
        Image.fromarray(noisy).save(root / name, quality=90)
        red, _, blue = coarse.reshape(-1, 3).mean(0)
        rows.append(f"{name},{int(coarse.mean() > 127)},{(red - blue) / 40:.3f}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


def experiment(root: Path, settings: Settings) -> Experiment:
    """Two episodes of 8 pictures for each lane and step; as many lanes as builders."""
    lanes = max(settings.builders, settings.trainers)
    augment = {"crop": 0.5, "flip": True, "colour": 0.3}
    if settings.decode_ms:
        augment = {}  # takes processors, which the sleep stands in for
    tree: dict[str, Any] = {
        "name": "builders",
        "data": {
            "name": "files",
            "path": str(root),
            "tasks": {"bright": {"kind": "binary"}, "warm": {}},
            "size": 128,
            "in_memory_mb": 8,
            "hold_steps": 8,
            "held_out_rows": 16,
            "shots": 1,
            "queries": 7,
            "lanes": lanes,
            "augment": augment or None,
        },
        "encoder": {"name": "mlp", "hidden": [16]},
        "learner": {"name": "maml", "inner_steps": 0},
        "train": {"steps": settings.steps, "meta_batch": 2 * lanes, "task_axis": "vmap"},
        "evaluate": {"val_episodes": 2, "test_episodes": 2},
    }
    tree["train"] |= {"eval_every": settings.steps, "graph": "none", "checkpoint_share": 0}
    return parse(tree)


def small_blocks() -> None:
    """Blocks of few pictures, so that windows of few megabytes hold several."""
    from raymtl.data.tables import folders

    folders.PICTURES_A_BLOCK = PICTURES_A_BLOCK


def prepare_process(decode_s: float) -> None:
    """Runs in each process of Ray: computes with one thread, and sleeps for each picture."""
    import torch

    from raymtl.data.tables.pictures import measured

    small_blocks()
    torch.set_num_threads(1)
    mock.patch("torch.set_num_threads").start()
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

    every = sorted(os.sched_getaffinity(0))
    half = (len(every) + 1) // 2
    cluster = Cluster()
    try:
        sized = partial(cluster.add_node, object_store_memory=OBJECT_STORE)
        os.sched_setaffinity(0, every[:half])
        for _ in range(settings.trainers):
            sized(num_cpus=settings.builders + 1)
        os.sched_setaffinity(0, every[half:])
        if settings.builders:
            sized(num_cpus=settings.builders)
        os.sched_setaffinity(0, every)

        def hook() -> None:
            prepare_process(settings.decode_ms / 1000)

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

    chosen = experiment(root, settings)
    spec = TrainerSpec(
        name=folder.name,
        ray_folder=folder / ".ray",
        workers=settings.trainers,
        cpus=settings.builders + 1,
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
    side = SIDE
    if settings.decode_ms:
        side = 128
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "pictures"
        root.mkdir()
        write_pictures(root, side)
        small_blocks()
        experiment(root, settings)  # refuses mistakes before Ray starts
        with nodes(settings):
            return [
                trained(root, Path(temporary) / f"built-by-{builders}", settings, builders)
                for builders in (0, settings.builders)
            ]


def measured() -> dict[str, float]:
    """Seconds of processor time that a picture takes to be decoded, and to be changed."""
    import torch

    from raymtl.data.tables.pictures import decoded

    torch.set_num_threads(1)
    settings = Settings(trainers=1, builders=1, steps=1, decode_ms=0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_pictures(root, SIDE)
        small_blocks()
        contents = [path.read_bytes() for path in sorted(root.glob("*.jpg"))[:100]]
        decoded(contents[0], (128, 128), 3, "stretch")  # imports what it needs
        began = time.process_time()
        for content in contents:
            decoded(content, (128, 128), 3, "stretch")
        decode_s = (time.process_time() - began) / len(contents)
        chosen = experiment(root, settings)
        plain = chosen.override({"data.augment": None})
        arrays = chosen.data.load()
        build_s = [_build_s(each, arrays) for each in (chosen, plain)]
    return {"decode_s": decode_s, "augment_s": build_s[0] - build_s[1]}


def _build_s(chosen: Experiment, arrays: Any) -> float:
    """Seconds of processor time for each picture of episodes whose blocks are read already."""
    times = []
    for _ in range(5):
        began = time.process_time()
        for step in (0, 0, 0, 0):
            build_meta_batch(chosen.data, arrays, seed=0, step=step, indices=range(2), meta_batch=2)
        times.append((time.process_time() - began) / (4 * 2 * 8))
    return min(times)


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    for row in rows:
        lines.append(f"| {' | '.join(f'{value:.3g}' for value in row.values())} |")
    gain = rows[-1]["steps_per_s"] / rows[0]["steps_per_s"]
    return "\n".join([*lines, "", f"{gain:.2f} times as many steps per second with builders"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="the constants of the simulation")
    parser.add_argument("--trainers", type=int, default=1)
    parser.add_argument("--builders", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--decode-ms", type=float, default=0.0)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measured(), indent=2))
        return
    settings = Settings(given.trainers, given.builders, given.steps, given.decode_ms)
    print(printed(compared(settings)))


if __name__ == "__main__":
    main()
