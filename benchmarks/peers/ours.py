"""raymtl's own step, driven as a training drives it: configuration, episodes, meta-gradient."""

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.peers.timing import Way as Timed
from raymtl.config import Experiment, load
from raymtl.data import Arrays
from raymtl.data.episodes import build_meta_batch, on_device
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, count_episodes, stacks
from raymtl.step.meta_gradient import MetaGradient, meta_gradient
from raymtl.step.traced import Graph, Tracer
from raymtl.step.workers import Workers
from raymtl.training.fastest import Way, WayTimer, likely_way
from raymtl.types import MetaBatch

LONG = 1_000_000
"""Steps of a training that affords every timing."""


def experiment(text: str) -> Experiment:
    """The configuration that a file with this text holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "subject.yaml"
        path.write_text(text)
        return load(path)


def meta_batch(config: Experiment, arrays: Arrays, step: int) -> MetaBatch:
    """The episodes of a step of training."""
    size = config.train.meta_batch
    return build_meta_batch(
        config.data,
        arrays,
        seed=config.seed,
        step=step,
        indices=range(size),
        meta_batch=size,
    )


class Ours:
    """An algorithm with its parameters and the episodes of a step."""

    def __init__(self, algorithm: Algorithm, episodes: MetaBatch, device: str) -> None:
        self.algorithm = algorithm
        self.device = device
        self.params = algorithm.init_params(device)
        self.episodes: MetaBatch = on_device(episodes, device)
        self.num_episodes = count_episodes(stacks(self.episodes))

    @classmethod
    def of_text(cls, text: str, device: str, arrays: Arrays | None = None) -> "Ours":
        """The algorithm of a configuration, and the episodes of its first step."""
        config = experiment(text)
        if arrays is None:
            arrays = config.data.load()
        return cls(config.build(), meta_batch(config, arrays, 0), device)

    def first(self, num_episodes: int) -> "Ours":
        """The same algorithm on the first episodes of every stack."""
        few: MetaBatch = [
            tree_map(lambda leaf: leaf[:num_episodes], stack) for stack in stacks(self.episodes)
        ]
        return Ours(self.algorithm, few, self.device)

    def step(self, execution: ExecutionConfig) -> MetaGradient:
        """The meta-gradient of the episodes."""
        return meta_gradient(self.algorithm, self.params, self.episodes, execution=execution)

    def way(self, way: Way, graph: Graph | None = None) -> Timed:
        """The step in this way, to be timed."""
        execution = ExecutionConfig(way.task_axis, way.chunk)
        if graph is not None:
            execution = execution._replace(tracer=Tracer(graph))
        return Timed(lambda: self.step(execution), self.num_episodes)

    def auto(self) -> Way:
        """The way that `train.task_axis: auto` takes."""
        timer = WayTimer(self._seconds, self.episodes, Workers(), LONG)
        state = self.algorithm.weighting.state()
        way = timer.fastest(likely_way(self.params, None), None)
        self.algorithm.weighting.restore(state)
        return way

    def gradients(self) -> list[Tensor]:
        """The meta-gradient of the model, that of the heads last."""
        grads = self.step(ExecutionConfig("loop")).grads
        return [grads[name] for name in self.model()]

    def model(self) -> dict[str, Tensor]:
        """The parameters of the model, those of the heads last."""
        own = {name: value for name, value in self.params.items() if name.startswith("model.")}
        return dict(sorted(own.items(), key=lambda item: ".heads." in item[0]))

    def tensors(self, num_tasks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Inputs and targets of the first task in support and query, of some episodes [E, N, ...].

        Numbers are standardised as the loss of the task takes them.
        """
        task = self.algorithm.tasks[0]
        found = []
        for batch in stacks(self.episodes)[0]:
            assert isinstance(batch.inputs, Tensor)
            targets = batch.targets[task.name]
            if targets.is_floating_point():
                assert task.encode_target is not None
                targets = task.encode_target(targets.flatten()).view(len(targets), -1, 1)
            found += [batch.inputs[:num_tasks], targets[:num_tasks]]
        support, support_targets, query, query_targets = found
        return support, support_targets, query, query_targets

    def _seconds(self, way: Way, episodes: MetaBatch) -> float:
        execution = ExecutionConfig(way.task_axis, way.chunk)
        start = time.perf_counter()
        meta_gradient(self.algorithm, self.params, episodes, execution=execution)
        if next(iter(self.params.values())).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start
