"""Measures on the episodes of the first step how the steps of a training run fastest."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raymtl.config.sections import Train
from raymtl.encoders.dropout import dropouts
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, pieces_at_once, split_episodes, stacks
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.traced import Tracer
from raymtl.storage import formats
from raymtl.storage.fence import Attempt
from raymtl.storage.notes import Note
from raymtl.training.context import TrainContext
from raymtl.training.fastest import Way, WayTimer, likely_way
from raymtl.training.fastest_graph import GraphTimer
from raymtl.types import MetaBatch, Params

logger = logging.getLogger("raymtl")

FILE = "task_axis.json"
COMPILERS = ("c++", "g++", "clang++")


class Trials:
    """Runs steps in several ways, and notes which was the fastest.

    The parameters stay where they are, and so does the weighting. All workers choose alike.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        params: Params,
        settings: Train,
        context: TrainContext,
        execution_by: Callable[[Way], ExecutionConfig],
    ) -> None:
        self.algorithm, self.params, self.settings = algorithm, params, settings
        self.context, self.execution_by = context, execution_by
        self.about: dict[str, Any] = {}
        """What is written to the run folder."""

    def fastest_way(self, episodes: MetaBatch) -> Way:
        """The fastest way of running episodes."""
        state = self.algorithm.weighting.state()
        chunk, workers = self.settings.chunk, self.context.workers

        def seconds(way: Way, some: MetaBatch) -> float:
            return self._seconds(self.execution_by(way), some, 0)

        timer = WayTimer(seconds, episodes, workers, self.settings.steps)
        way = timer.fastest(likely_way(self.params, chunk), chunk)
        self.algorithm.weighting.restore(state)
        text = f"run by {way}, chosen from {len(timer.seconds)} ways that were timed"
        note = self._note("episodes", text, "train.task_axis")
        milliseconds = {str(each): 1000 * s for each, s in timer.seconds.items()}
        self.about |= {"task_axis": str(way), "note": note, "episode_ms": milliseconds}
        return way

    def fastest_graph(self, episodes: MetaBatch, way: Way, step: int) -> Tracer | None:
        """The graphs by which steps run fastest; None where they do without."""
        learner = self.algorithm.learner
        if not learner.uses_query_gradient or learner.graph_key(step) is None:
            return None
        state = self.algorithm.weighting.state()
        execution = self.execution_by(way)
        shards = split_episodes(stacks(episodes), execution.micro_batches)
        pieces = [piece for shard in shards for piece in pieces_at_once(shard, execution)]
        runs = int(self._mean(float(len(pieces)))) * (self.settings.steps - step)

        def seconds(tracer: Tracer | None) -> float:
            some = execution._replace(tracer=tracer, micro_batches=1)
            return self._mean(self._seconds(some, pieces[0], step))

        def refused(tracer: Tracer) -> bool:
            return self._mean(float(tracer.refusal is not None)) > 0

        convolves = any(value.ndim == 4 for value in self.params.values())
        timer = GraphTimer(seconds, runs, refused, convolves)
        has_compiler = any(shutil.which(name) for name in COMPILERS)
        drops = bool(dropouts(self.algorithm.model.prediction_modules()))
        compiles = self.context.device.type == "cpu" and has_compiler and not drops
        tracer = timer.fastest(self._mean(float(compiles)) == 1)
        self.algorithm.weighting.restore(state)
        if timer.seconds:
            graph = "none"
            if tracer is not None:
                graph = tracer.graph
            text = f"graph: {graph}, the fastest of {len(timer.seconds)} ways that were timed"
            note = self._note("steps", text, "train.graph")
            milliseconds = {name: 1000 * s for name, s in timer.seconds.items()}
            self.about |= {"graph": graph, "graph_note": note, "graph_ms": milliseconds}
        return tracer

    def write(self, folder: Path, attempt: Attempt) -> None:
        """Writes what was chosen, on the first worker, where anything was timed."""
        if self.about and self.context.workers.rank == 0:
            formats.write_json(folder / FILE, self.about, attempt.publish)

    def _note(self, place: str, text: str, key: str) -> str:
        note = str(Note(place=place, text=text, key=key))
        if self.context.workers.rank == 0:
            logger.info("%s", note)
        return note

    def _seconds(self, execution: ExecutionConfig, episodes: MetaBatch, step: int) -> float:
        start = time.perf_counter()
        workers = self.context.workers
        meta_gradient(self.algorithm, self.params, episodes, workers, execution, step)
        if self.context.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _mean(self, value: float) -> float:
        """The mean over the workers, the same on all of them."""
        workers = self.context.workers
        local = torch.tensor([value], dtype=torch.float64, device=self.context.device)
        return float(workers.sum(local)) / workers.size
