"""What trainings on Ray are compared with, and arrays that kill who builds episodes of them."""

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from raymtl.config import Experiment
from raymtl.distributed.share_builder import ShareBuilder
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import train_loop
from raymtl.types import MetaBatch
from tests.processes import run_on


def trained_without_ray(
    chosen: Experiment, arrays: Mapping[str, np.ndarray], folder: Path, workers: int
) -> dict[str, Tensor]:
    """The weights of a training whose workers are processes of this machine and nothing else."""
    folder.mkdir()
    run_on(workers, _work, workers, chosen, arrays, folder)
    return formats.load_params(folder / "model.safetensors")


def _work(
    rank: int, size: int, chosen: Experiment, arrays: Mapping[str, np.ndarray], folder: Path
) -> None:
    torch.set_num_threads(1)
    builder = ShareBuilder(chosen, arrays, size)

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for step in range(first_step, chosen.train.steps):
            yield step, rank, builder.build(step, rank)

    context = TrainContext(lambda scores: None, lambda row: None, Workers(rank, size))
    rendezvous = f"file://{folder}.rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size)
    train_loop(chosen, arrays, batches, context, folder)
    dist.destroy_process_group()


class Deadly(dict[str, np.ndarray]):
    """Arrays of digits that kill, by SIGKILL, a process that builds training episodes of them.

    Only processes whose title has the word `victims`: at the n-th share that these build, counted
    over all of them, for each n of `kills_at`. `folder` holds the count, and a file for each kill.
    """

    folder: Path
    victims: str
    kills_at: tuple[int, ...]

    def __getitem__(self, key: str) -> np.ndarray:
        if key == "train_members" and self.victims in Path("/proc/self/cmdline").read_text():
            with (self.folder / "count").open("ab") as file:
                file.write(b".")
            self._kill_if_due((self.folder / "count").stat().st_size)
        return super().__getitem__(key)

    def _kill_if_due(self, count: int) -> None:
        for number in self.kills_at:
            if count < number:
                continue
            try:
                (self.folder / f"killed at {number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def num_killed(self) -> int:
        """How many processes they have killed."""
        return len(list(self.folder.glob("killed at *")))


def deadly(
    arrays: Mapping[str, np.ndarray], folder: Path, victims: str, kills_at: tuple[int, ...]
) -> Deadly:
    """The same arrays, which kill."""
    folder.mkdir()
    made = Deadly(arrays)
    made.folder, made.victims, made.kills_at = folder, victims, kills_at
    return made
