"""Computes the features of pictures by actors of Ray Data, on GPUs where there are any."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray.data
import torch

from raymtl.features.compute import Driver, LoadNetwork, in_this_process
from raymtl.features.network import FrozenNetwork
from raymtl.types import UserError


def on_ray(device: str) -> Driver:
    """The driver for a cluster, as `train.device` says. Ray must have been started."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "cpu":
        gpus = 0
    return partial(_compute, gpus)


def _compute(
    gpus: int, load: LoadNetwork, blocks: Sequence[np.ndarray]
) -> Iterator[tuple[int, np.ndarray]]:
    """Every block as a call of an actor; a single one in this process."""
    if len(blocks) == 1 and not gpus:
        yield from in_this_process(load, blocks)
        return
    network, pictures = ray.put(load()), [ray.put(block) for block in blocks]
    run: Any = _run  # for the types, it returns once
    for made in run.options(num_returns="streaming").remote(gpus, [network], pictures):
        number, features, error = ray.get(made)
        if error:
            raise UserError(error)
        yield number, features


@ray.remote(num_cpus=0)
def _run(
    gpus: int,
    network: "Sequence[ray.ObjectRef[FrozenNetwork]]",
    blocks: "Sequence[ray.ObjectRef[np.ndarray]]",
) -> Iterator[tuple[int, np.ndarray, str]]:
    """Drives Ray Data in a process of Ray's, whose messages about actors go to Ray's own files."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources: dict[str, Any] = {"num_cpus": 1}
    actors = int(ray.cluster_resources().get("CPU", 1))
    if gpus:
        resources, actors = {"num_gpus": 1}, gpus
    numbers = ray.data.range(len(blocks), override_num_blocks=len(blocks))
    made = numbers.map_batches(
        _Embedder,
        fn_constructor_args=(network, blocks),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, len(blocks)))),
        **resources,
    )
    for row in made.iter_rows():
        features = np.frombuffer(row["features"], np.float32)
        yield int(row["number"]), features.reshape(row["rows"], -1), row["error"]


class _Embedder:
    """An actor with the network, on the GPU that it was given if any."""

    def __init__(
        self,
        network: "Sequence[ray.ObjectRef[FrozenNetwork]]",
        blocks: "Sequence[ray.ObjectRef[np.ndarray]]",
    ) -> None:
        device = "cpu"
        if ray.get_gpu_ids():
            device = "cuda"
            torch.backends.cudnn.allow_tf32 = False  # whose features have three digits
        torch.set_num_threads(1)
        self.network, self.blocks = ray.get(network[0]).to(device), blocks

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The features of the block with this number as bytes, or the sentence on a mistake."""
        number = int(batch["id"][0])
        rows = ray.get(self.blocks[number])
        content, error = b"", ""
        try:
            content = self.network.of_rows(rows).tobytes()
        except UserError as mistake:
            error = str(mistake)
        return {
            "number": np.array([number]),
            "rows": np.array([len(rows)]),
            "features": np.array([content], dtype=object),
            "error": np.array([error], dtype=object),
        }
