"""One stage of a training: its algorithm, its parameters and its optimiser, step by step."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.config import StageConfig
from raymtl.data import Arrays
from raymtl.data.episodes import on_device, with_labels_of
from raymtl.evaluation.kept import is_last
from raymtl.evaluation.scores import validation_scores
from raymtl.learners.diverging import divergence
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, stacks
from raymtl.step.meta_gradient import meta_gradient, update_after_step
from raymtl.step.traced import Tracer, tracer_of
from raymtl.step.workers import COMMUNICATION
from raymtl.training import checkpoint
from raymtl.training.average import MovingAverage
from raymtl.training.best import BestTracker, Scores
from raymtl.training.checkpoint import Progress, Saved
from raymtl.training.checkpointing import CheckpointManager, StepFlags
from raymtl.training.fastest import Way, way_of_rows
from raymtl.training.outer_step import learning_rate, make_optimizer, move, select_moving
from raymtl.training.step_record import StepInput, StepResult, columns_by_task
from raymtl.training.trials import Trials
from raymtl.types import DivergedError, MetaBatch, Params


class Stage:
    """One stage of a training on one worker.

    Call `setup` once, then for each step `step`, `score` and `record`, in this order.
    """

    def __init__(
        self, config: StageConfig, number: int, arrays: Arrays, manager: CheckpointManager
    ) -> None:
        self.config, self.number, self.arrays = config, number, arrays
        self.manager, self.context = manager, manager.context
        self.experiment = config.experiment
        self.algorithm: Algorithm = self.experiment.build()
        self.params = self.algorithm.init_params(self.context.device)
        settings = self.experiment.train
        self.way: Way | None = way_of_rows(self.algorithm, settings.chunk)
        """How episodes are run; None until the first step has timed the ways."""
        if self.way is None and settings.task_axis != "auto":
            self.way = Way(settings.task_axis, settings.chunk)
        self.tracer: Tracer | None = tracer_of(settings.graph)
        """The graphs by which steps are run, where they are."""
        self.must_choose_graph = settings.graph == "auto"
        self.anchor: dict[str, Tensor] = {}
        """The model at the last anchor step of a mode that draws the parameters back to it."""
        self.average: MovingAverage | None = None
        if settings.ema is not None:
            self.average = MovingAverage(settings.ema, self.params)
        self.best: BestTracker | None = None
        if config.stop == manager.experiment.train.steps:
            self.best = BestTracker(manager.experiment)
        self.task_sizes = self.experiment.data.sizes(arrays)
        self.started = time.perf_counter()

    def setup(self, carried: Mapping[str, Tensor], resume_from: Saved | None) -> None:
        """Starts from parameters of the stage before, or from a checkpoint within this stage."""
        with torch.no_grad():
            for name, value in self.params.items():
                if name in carried and carried[name].shape == value.shape:
                    value.copy_(carried[name])
        if self.average is not None:
            self.average.restore(self.params)
        self.optimizer = make_optimizer(self.experiment, self.algorithm, self.params)
        if resume_from:
            restored = checkpoint.restore(resume_from, self.algorithm, self.params, self.optimizer)
            self.anchor = restored.anchor
            if self.average is not None:
                self.average.restore(restored.average or self.params)
            if self.best is not None:
                self.best.best = restored.best
            if self.way is None:
                self.way = Way.parsed(restored.task_axis)
            if self.must_choose_graph:
                self.tracer, self.must_choose_graph = tracer_of(restored.graph), False
        self.started = time.perf_counter()
        COMMUNICATION.taken()  # leaves out what was communicated before the first step

    def step(self, inputs: StepInput) -> StepResult:
        """Computes the meta-gradient of the episodes and moves the parameters along it.

        Raises DivergedError with the step and what to change where a loss is not finite.
        """
        step = self._own_step(inputs)
        episodes = self._visible(inputs.episodes, step)
        if self.experiment.mode.is_anchor_step(step):
            self.anchor = self._copy_of_model()
        with self._failures_explained(inputs.step + 1, episodes):
            self._choose_execution(episodes, step)
            return self._move(step, episodes)

    def _choose_execution(self, episodes: MetaBatch, step: int) -> None:
        """Times what the configuration leaves open, before the first step."""
        settings, context = self.experiment.train, self.context
        trials = Trials(self.algorithm, self.params, settings, context, self._execution_by)
        if self.way is None:
            self.way = trials.fastest_way(episodes)
        if self.must_choose_graph:
            self.tracer = trials.fastest_graph(episodes, self.way, step)
            self.must_choose_graph = False
        trials.write(self.manager.folder, self.manager.attempt)

    def _move(self, step: int, episodes: MetaBatch) -> StepResult:
        settings, workers = self.experiment.train, self.context.workers
        execution = self._execution()
        meta = meta_gradient(self.algorithm, self.params, episodes, workers, execution, step)
        for name, value in self.anchor.items():
            pull = 2 * self.experiment.mode.anchor_strength
            meta.grads[name] += pull * (self.params[name].detach() - value)
        moving = select_moving(self.algorithm, self.params, self.experiment.mode, step, meta)
        rate = learning_rate(self.experiment, step)
        self.manager.emergency.before_move()
        norm = move(self.optimizer, moving, meta, rate, settings.clip_norm)
        if self.average is not None:
            self.average.update(self.params, step + 1)
        if self.experiment.weighting.needs_post_step_losses:
            update_after_step(self.algorithm, self.params, episodes, meta, workers, execution)
        return StepResult(meta, norm, rate)

    def score(self, done: int) -> Scores:
        """The scores of the validation split after `done` steps; empty where it is not scored."""
        if not self.is_scored(done):
            return {}
        execution = self._execution()
        if execution.task_axis == "rows":
            execution = execution._replace(task_axis="vmap")
        if self.manager.short_of_memory:
            execution = execution._replace(chunk=1)
        with self._failures_explained(done), torch.no_grad():
            return validation_scores(
                self.experiment,
                self.algorithm,
                self.scored_params,
                self.arrays,
                execution,
                self.context.workers,
            )

    @property
    def scored_params(self) -> Mapping[str, Tensor]:
        """The parameters that are scored and kept: those of the steps, or their average."""
        if self.average is None:
            return self.params
        return self.average.params

    def is_scored(self, done: int) -> bool:
        """Whether the validation split is scored after so many steps."""
        return done == self.config.stop or done % self.experiment.train.eval_every == 0

    def has_ended(self, done: int) -> bool:
        """Whether the stage makes no further step after `done` of them."""
        if self.best is None:
            return done >= self.config.stop
        return is_last(self.manager.experiment.train, done, self.best.best_step)

    def record(self, inputs: StepInput, result: StepResult, scores: Scores) -> None:
        """Records the step, writes a checkpoint where one is due, and reports the scores."""
        done, best = inputs.step + 1, None
        if self.best is not None:
            scores = self.best.update(done, scores, self.scored_params)
            best = self.best.best
        self.manager.recorder.add(self._row(inputs, result, scores))
        graph = "none"
        if self.tracer is not None:
            graph = self.tracer.graph
        way, average = str(self.way), {}
        if self.average is not None:
            average = self.average.params
        progress = Progress(
            done, self.params, way, self.anchor, graph=graph, best=best, average=average
        )
        is_end = self.best is not None and self.has_ended(done)
        scored = self.is_scored(done), self.is_scored(done + 1)
        flags = StepFlags(*scored, is_end, inputs.ask_preempted)
        preempted = self.manager.after_step(self.algorithm, self.optimizer, progress, flags)
        if self.is_scored(done):
            self._report(done, scores)
        if preempted:
            self.context.confirm_saved()

    def _row(self, inputs: StepInput, result: StepResult, scores: Scores) -> dict[str, Any]:
        now = time.perf_counter()
        seconds = now - self.started
        self.started = now
        row: dict[str, Any] = {"step": inputs.step + 1}
        if self.manager.experiment.stages:
            row["stage"] = self.number
        return {
            **row,
            **inputs.columns(seconds, is_streamed=self.experiment.data.is_streamed),
            "workers": self.context.workers.size,
            "lr": result.learning_rate,
            "grad_norm": result.grad_norm,
            "seconds": seconds,
            "communication_pct": 100 * COMMUNICATION.taken() / seconds,
            **columns_by_task(self.algorithm, result.meta),
            **scores,
        }

    def _report(self, done: int, scores: Scores) -> None:
        finite = {name: value for name, value in scores.items() if value is not None}
        num_parameters = sum(value.numel() for value in self.params.values())
        seconds = self.manager.recorder.seconds
        self.context.report(
            {**finite, "step": done, "num_parameters": num_parameters, "seconds": seconds}
        )

    def _own_step(self, inputs: StepInput) -> int:
        """The step counted from the start of this stage, by which everything is scheduled."""
        return inputs.step - self.config.start

    def _visible(self, episodes: MetaBatch, step: int) -> MetaBatch:
        """The episodes on this worker's device, with the labels that the mode lets the step see."""
        mode, sizes = self.experiment.mode, self.task_sizes
        support_tasks = mode.support_tasks(step, tuple(sizes))
        query_tasks = mode.query_tasks(step, self.experiment.seed, sizes)
        return with_labels_of(on_device(episodes, self.context.device), support_tasks, query_tasks)

    def _copy_of_model(self) -> dict[str, Tensor]:
        return {
            name: value.detach().clone()
            for name, value in self.params.items()
            if name.startswith("model.")
        }

    def _execution(self) -> ExecutionConfig:
        assert self.way is not None  # the first step has chosen it
        return self._execution_by(self.way)._replace(tracer=self.tracer)

    def _execution_by(self, way: Way) -> ExecutionConfig:
        settings, micro_batches = self.experiment.train, self.experiment.mode.micro_batches
        if self.manager.short_of_memory:
            micro_batches *= 2
        memory = micro_batches, settings.graph_mb
        return ExecutionConfig(way.task_axis, way.chunk, settings.precision, *memory)

    @contextmanager
    def _failures_explained(self, done: int, episodes: MetaBatch | None = None) -> Iterator[None]:
        """Within it a failure tells what to change.

        Where memory runs out, the next attempt runs half of the episodes at a time. Where a step
        on these episodes diverges, the error names the step and the rate to lower.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            self.manager.out_of_memory(error, done)
        except DivergedError as error:
            if episodes is None:
                raise
            self.manager.recorder.flush()
            reason = self._inner_divergence(episodes)
            if reason:
                advice = f" ({reason}). Lower learner.inner_lr."
            else:
                advice = ". Lower learner.inner_lr or train.lr."
            raise DivergedError(f"{error} at step {done}{advice}") from None

    def _inner_divergence(self, episodes: MetaBatch) -> str | None:
        """How the inner loop diverges in the first of the episodes in which it does; else None."""
        algorithm = self.algorithm
        for stack in stacks(episodes):
            for index in range(len(next(iter(stack.query.targets.values())))):
                support = tree_map(lambda leaf, i=index: leaf[i], stack.support)
                params: Params = self.params
                reason = divergence(
                    algorithm.learner, algorithm.model, params, support, algorithm.objective
                )
                if reason:
                    return str(reason)
        return None
