"""The outer loop: the same in a notebook, a Tune trial and a Train worker."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.data.episodes import build_meta_batch
from raymtl.data.meters import BUILDER_CPU, READ
from raymtl.storage.fence import Superseded
from raymtl.training import checkpoint
from raymtl.training.checkpointing import CheckpointManager
from raymtl.training.context import TrainContext
from raymtl.training.heartbeat import Heartbeat, beating
from raymtl.training.recorder import Recorder
from raymtl.training.resume import StartingPoint, start_attempt
from raymtl.training.stage import Stage
from raymtl.training.step_record import StepInput
from raymtl.types import DivergedError, MetaBatch, UserError

ASK_S = 1.0
"""How often all workers ask if one of them is about to be taken away, in seconds."""

Batches = Callable[[int], Iterator[tuple[int, int, MetaBatch]]]
"""First step -> (step, share, this worker's episodes) of every step from there on."""


def local_batches(experiment: Experiment, arrays: Arrays) -> Batches:
    """All episodes of each step, built in this process."""

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for stage in experiment.stage_configs():
            stage_config = stage.experiment
            indices = range(stage_config.train.num_episodes)
            for step in range(max(first_step, stage.start), stage.stop):
                built = build_meta_batch(
                    stage_config.training_data,
                    arrays,
                    seed=stage_config.seed,
                    step=step,
                    indices=indices,
                    meta_batch=len(indices),
                )
                yield step, 0, built

    return batches


def train_loop(
    experiment: Experiment, arrays: Arrays, batches: Batches, context: TrainContext, folder: Path
) -> None:
    """Meta-trains, from the newest checkpoint in `folder` if there is one; the first worker writes
    the model folder.

    Stages follow each other: a parameter goes on where the one of the same name and shape ended, a
    learner's and a weighting's own only where the next stage has the same learner or weighting. The
    optimiser, the weighting's state and the schedules start anew. Every worker makes the same move
    from the same summed meta-gradient, so parameters need no broadcast. Raises DivergedError,
    naming task and step, where a loss is not finite, and Superseded where another attempt at the
    same folder took the place of this one.

    Where the memory does not suffice, it goes on from the last checkpoint with half of the episodes
    at a time, once; of several workers all must be started again for that, so there the error is
    raised.
    """
    try:
        _train(experiment, arrays, batches, context, folder)
        return
    except torch.OutOfMemoryError:
        if context.workers.size > 1:
            raise
    # Outside of the handler, whose traceback holds what filled the memory.
    torch.cuda.empty_cache()
    _train(experiment, arrays, batches, context, folder)


def _train(
    experiment: Experiment, arrays: Arrays, batches: Batches, context: TrainContext, folder: Path
) -> None:
    begun = start_attempt(folder, context)
    if begun.saved:
        done, unwritten = checkpoint.steps_done(begun.saved)
    else:
        done, unwritten = 0, []
    recorder = Recorder(begun.attempt, done, unwritten, context)
    manager = CheckpointManager(experiment, begun, context, recorder)
    context.register_emergency_hook(manager.emergency.write)
    with beating(recorder.heartbeat):
        inputs = _step_inputs(batches(done), context, recorder.heartbeat)
        _train_stages(arrays, inputs, begun, manager)


def _train_stages(
    arrays: Arrays, inputs: Iterator[StepInput], begun: StartingPoint, manager: CheckpointManager
) -> None:
    """Trains what is left of the stages, one after the other."""
    done = manager.recorder.heartbeat.done
    configs = manager.experiment.stage_configs()
    params: dict[str, Tensor] = {}
    for number, config in enumerate(configs):
        # A stage that ends where the checkpoint stands is set up too: the next one goes on from it.
        if config.stop < done:
            continue
        prefixes: tuple[str, ...] = ()
        if number:
            prefixes = _lasting_prefixes(configs[number - 1].experiment, config.experiment)
        carried = {name: value for name, value in params.items() if name.startswith(prefixes)}
        resume_from = None
        if config.start < done:
            resume_from = begun.saved
        try:
            stage = Stage(config, number, arrays, manager)
            stage.setup(carried, resume_from)
            first = max(done, config.start)
            params = _train_stage(stage, islice(inputs, config.stop - first), first)
        except (DivergedError, UserError, Superseded):
            raise  # on all workers alike, or nothing may be written
        except Exception:
            manager.emergency.write_in_turn(manager.context.workers.rank)
            raise


def _train_stage(stage: Stage, inputs: Iterator[StepInput], done: int) -> dict[str, Tensor]:
    """Makes the steps of the stage, of which `done` are made; returns the last parameters."""
    if stage.has_ended(done):  # a checkpoint of a training that ended early
        return stage.params
    for step_input in inputs:
        result = stage.step(step_input)
        scores = stage.score(step_input.step + 1)
        stage.record(step_input, result, scores)
        if stage.has_ended(step_input.step + 1):
            break
    return stage.params


def _lasting_prefixes(one: Experiment, other: Experiment) -> tuple[str, ...]:
    """Beginnings of the names of parameters that mean the same in two stages."""
    prefixes = ["model."]
    if one.weighting.name == other.weighting.name:
        prefixes.append("weighting.")
    if one.learner.name == other.learner.name:
        prefixes.append("learner.")
    return tuple(prefixes)


def _step_inputs(
    batches: Iterator[tuple[int, int, MetaBatch]], context: TrainContext, heartbeat: Heartbeat
) -> Iterator[StepInput]:
    """Passes the episodes on; makes sure that the workers are at the same step and hold all of its
    shares.
    """
    start = requested_at = time.perf_counter()
    heartbeat.wants_episodes = True
    for step, share, episodes in batches:
        heartbeat.wants_episodes = False
        waited = time.perf_counter() - start
        # Clocks differ, and all must ask at the same step: that of the first worker counts.
        asks = context.workers.rank == 0 and time.perf_counter() - requested_at > ASK_S
        shares = [int(other == share) for other in range(context.workers.size)]
        spent = round(READ.taken()), round(1e6 * BUILDER_CPU.taken())
        held = torch.tensor([*shares, step, int(asks), *spent], device=context.device)
        *total, ask, read_bytes, cpu_us = context.workers.sum(held).tolist()
        if ask:
            requested_at = time.perf_counter()
        if total != [1] * context.workers.size + [step * context.workers.size]:
            raise RuntimeError(
                f"step {step}: the workers do not hold one share each of the same step: {total}"
            )
        costs = read_bytes, cpu_us / 1e6, BUILDER_CPU.sources
        yield StepInput(step, episodes, waited, bool(ask), *costs)
        start = time.perf_counter()  # not of what the step took
        heartbeat.wants_episodes = True
