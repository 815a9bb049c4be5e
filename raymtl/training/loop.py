"""The outer loop: the same in a notebook, a Tune trial and a Train worker."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl.config import Experiment, Part
from raymtl.data import Arrays
from raymtl.data.episodes import build_episodes, on_device, with_labels_of
from raymtl.evaluation.scores import validation_scores
from raymtl.learners.diverging import divergence
from raymtl.modes import Mode
from raymtl.step.algorithm import Algorithm
from raymtl.step.meta_gradient import (
    ExecutionConfig,
    MetaGradient,
    TaskAxis,
    meta_gradient,
    stacks,
    update_after_step,
)
from raymtl.step.workers import COMMUNICATION
from raymtl.storage.fence import Superseded
from raymtl.training import checkpoint
from raymtl.training.checkpoint import Progress, Saved
from raymtl.training.checkpointing import (
    ASK_S,
    Begin,
    CheckpointManager,
    Recorder,
    TrainContext,
    begin,
)
from raymtl.training.heartbeat import Heartbeat, beating
from raymtl.types import DivergedError, MetaBatch, Params, UserError

Batches = Callable[[int], Iterator[tuple[int, int, MetaBatch]]]
"""First step -> (step, share, this worker's episodes) of every step from there on."""


def local_batches(experiment: Experiment, arrays: Arrays) -> Batches:
    """All episodes of each step, built in this process."""

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for part in experiment.parts():
            own = part.experiment
            indices = range(own.train.meta_batch)
            for step in range(max(first_step, part.start), part.stop):
                built, _ = build_episodes(
                    own.data, arrays, seed=own.seed, split="train", step=step, indices=indices
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
    begun = begin(folder, context)
    done, unwritten = checkpoint.steps_done(begun.saved) if begun.saved else (0, [])
    recorder = Recorder(begun.attempt, done, unwritten, context)
    keeper = CheckpointManager(experiment, begun, context, recorder)
    context.rescued_by(keeper.rescue)
    with beating(recorder.heartbeat):
        _train_parts(
            experiment, arrays, _agreed(batches(done), context, recorder.heartbeat), begun, keeper
        )


def _train_parts(
    experiment: Experiment,
    arrays: Arrays,
    stream: Iterator["_StepInput"],
    begun: Begin,
    keeper: CheckpointManager,
) -> None:
    """Trains what is left of the parts, one after the other."""
    done = keeper.recorder.heartbeat.done
    parts = experiment.parts()
    params: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        if (
            part.stop >= done
        ):  # that which ends where the checkpoint stands, too: the next one goes on from it
            if number:
                lasting = _lasting(parts[number - 1].experiment, part.experiment)
            else:
                lasting = ()
            carried = {name: value for name, value in params.items() if name.startswith(lasting)}
            first_step = max(done, part.start)
            if part.start < done:
                saved = begun.saved
            else:
                saved = None
            here = StagePlan(
                part, number, first_step, islice(stream, part.stop - first_step), carried, saved
            )
            try:
                params = _train_part(here, arrays, keeper, keeper.context)
            except (DivergedError, UserError, Superseded):
                raise  # of all workers alike, or there is nothing to keep
            except Exception:
                keeper.rescue_in_turn()
                raise


class StagePlan(NamedTuple):
    """What is left to do of a part: its batches from a step on, from the parameters of the part
    before it.
    """

    part: Part
    number: int
    first_step: int
    batches: Iterator["_StepInput"]
    carried: Mapping[str, Tensor]
    resume_from: Saved | None


def _train_part(
    here: StagePlan, arrays: Arrays, keeper: CheckpointManager, context: TrainContext
) -> dict[str, Tensor]:
    """Trains to the end of the part; returns the parameters."""
    experiment = here.part.experiment
    settings = experiment.train
    algorithm = experiment.build()
    params = algorithm.init_params(context.device)
    _carry_over(here.carried, params)
    optimizer = _optimizer(experiment, algorithm, params)
    mode, sizes = experiment.mode, experiment.data.sizes(arrays)
    task_axis = settings.task_axis
    anchor: dict[str, Tensor] = {}
    if here.resume_from:
        restored = checkpoint.restore(here.resume_from, algorithm, params, optimizer)
        anchor = restored.anchor
        if restored.task_axis in ("vmap", "loop"):
            task_axis = restored.task_axis  # type: ignore[assignment]
    micro_batches = mode.micro_batches * (2 if keeper.short_of_memory else 1)
    start = time.perf_counter()
    COMMUNICATION.taken()  # what was before the first step
    for done_before, raw, waited, ask in here.batches:
        step = done_before - here.part.start  # of this part, by which everything in it is scheduled
        arrived, counted = (
            mode.arrived(step, tuple(sizes)),
            mode.counted(step, experiment.seed, sizes),
        )
        episodes = with_labels_of(on_device(raw, context.device), arrived, counted)
        if mode.anchors(step):
            anchor = {
                name: value.detach().clone()
                for name, value in params.items()
                if name.startswith("model.")
            }
        try:
            if task_axis == "auto":
                task_axis = _faster_axis(experiment, algorithm, params, episodes, context)
            execution = ExecutionConfig(
                task_axis, settings.chunk, settings.precision, micro_batches
            )
            meta = meta_gradient(algorithm, params, episodes, context.workers, execution, step)
            for name, value in anchor.items():
                meta.grads[name] += 2 * mode.anchor_strength * (params[name].detach() - value)
            moving = _moving(algorithm, params, mode, step, meta)
            keeper.moving()
            norm = _move(optimizer, moving, meta, _schedule(experiment, step), settings.clip_norm)
            if experiment.weighting.needs_post_step_losses:
                update_after_step(
                    algorithm, params, episodes, meta, context.workers, execution, step
                )
        except torch.OutOfMemoryError as error:
            keeper.out_of_memory(error, done_before + 1)
        except DivergedError as error:
            keeper.recorder.flush()
            why = _inner_divergence(algorithm, params, episodes)
            if why:
                advice = f" ({why}). Lower learner.inner_lr."
            else:
                advice = ". Lower learner.inner_lr or train.lr."
            raise DivergedError(f"{error} at step {done_before + 1}{advice}") from None
        done = done_before + 1
        scored = _is_scored(here.part, done)
        scores: dict[str, float | None] = {}
        if scored:
            if keeper.short_of_memory:
                scoring = execution._replace(chunk=1)
            else:
                scoring = execution
            try:
                with torch.no_grad():
                    scores = validation_scores(
                        experiment, algorithm, params, arrays, scoring, context.workers
                    )
            except torch.OutOfMemoryError as error:
                keeper.out_of_memory(error, done)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        keeper.recorder.add(
            {
                "step": done,
                **({"stage": here.number} if keeper.experiment.stages else {}),
                "workers": context.workers.size,
                "lr": _schedule(experiment, step),
                "grad_norm": norm,
                "seconds": seconds,
                "data_wait_pct": 100 * waited / seconds,
                "communication_pct": 100 * COMMUNICATION.taken() / seconds,
                **_by_task(algorithm, meta),
                **scores,
            }
        )
        progress = Progress(done, params, str(task_axis), anchor)
        leaving = keeper.keep(
            algorithm, optimizer, progress, scored, _is_scored(here.part, done + 1), ask
        )
        if scored:
            count = sum(value.numel() for value in params.values())
            known: dict[str, float] = {
                name: value for name, value in scores.items() if value is not None
            }
            context.report(
                {**known, "step": done, "num_parameters": count, "seconds": keeper.recorder.seconds}
            )
        if leaving:
            context.kept()
    return params


def _is_scored(part: Part, done: int) -> bool:
    """Whether the validation split is scored after so many steps."""
    return done == part.stop or done % part.experiment.train.eval_every == 0


def _moving(
    algorithm: Algorithm, params: Mapping[str, Tensor], mode: Mode, step: int, meta: MetaGradient
) -> dict[str, Tensor]:
    """The parameters that this step moves."""
    still = _heads_at_rest(algorithm, meta)
    return {
        name: value
        for name, value in params.items()
        if mode.moves(step, name) and algorithm.learner.moves(step, name) and name not in still
    }


def _inner_divergence(algorithm: Algorithm, params: Params, episodes: MetaBatch) -> str | None:
    """What the first of these episodes in which the inner loop diverges has to say; None where it
    does in none.
    """
    for stack in stacks(episodes):
        for index in range(len(next(iter(stack.query.targets.values())))):
            support = tree_map(lambda leaf, i=index: leaf[i], stack.support)
            found = divergence(
                algorithm.learner, algorithm.model, params, support, algorithm.objective
            )
            if found:
                return str(found)
    return None


def _lasting(one: Experiment, other: Experiment) -> tuple[str, ...]:
    """Beginnings of the names of the parameters that mean the same in both."""
    same = {
        "weighting.": one.weighting.name == other.weighting.name,
        "learner.": one.learner.name == other.learner.name,
    }
    return ("model.", *(start for start, equal in same.items() if equal))


def _carry_over(carried: Mapping[str, Tensor], params: Mapping[str, Tensor]) -> None:
    """Puts what has the same name and shape into `params`."""
    with torch.no_grad():
        for name, value in params.items():
            if name in carried and carried[name].shape == value.shape:
                value.copy_(carried[name])


def _by_task(algorithm: Algorithm, meta: MetaGradient) -> dict[str, float | None]:
    """Columns `loss.TASK`, None where the task had no label, and `weight.TASK`."""
    losses = [None if math.isnan(loss) else loss for loss in meta.losses.tolist()]
    values = {"loss": losses, "weight": meta.weights.tolist()}
    return {
        f"{key}.{task.name}": row[i]
        for key, row in values.items()
        for i, task in enumerate(algorithm.tasks)
    }


def _optimizer(
    experiment: Experiment, algorithm: Algorithm, params: Mapping[str, Tensor]
) -> torch.optim.Optimizer:
    groups = []
    for name, value in params.items():
        parts = name.split(".")
        if parts[0] == "model":
            scale = algorithm.model.lr_scale.get(parts[1], 1.0)
        else:
            scale = 1.0
        if parts[0] == "model" and value.ndim > 1:
            decay = experiment.train.weight_decay
        else:
            decay = 0.0
        groups.append({"params": [value], "lr_scale": scale, "weight_decay": decay})
    # Without momentum, as here, the decay of SGD is decoupled too.
    kinds = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[experiment.train.optimizer](groups, lr=experiment.train.lr)


def _schedule(experiment: Experiment, step: int) -> float:
    done = step / experiment.train.steps
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return experiment.train.lr * factor[experiment.train.schedule]


def _heads_at_rest(algorithm: Algorithm, meta: MetaGradient) -> set[str]:
    """Parameters of heads whose task had no label and which nothing else reached: momentum must not
    move them.
    """
    absent = [task.name for i, task in enumerate(algorithm.tasks) if i not in meta.tasks.tolist()]
    starts = tuple(f"model.heads.{name}." for name in absent)
    return {
        name
        for name, gradient in meta.grads.items()
        if name.startswith(starts) and not gradient.any()
    }


def _move(
    optimizer: torch.optim.Optimizer,
    params: Mapping[str, Tensor],
    meta: MetaGradient,
    lr: float,
    clip: float | None,
) -> float:
    """One step of the optimiser along the meta-gradient of these parameters; returns its norm
    before clipping.
    """
    optimizer.zero_grad()
    for name, value in params.items():
        value.grad = meta.grads[name]
    norm = float(torch.nn.utils.clip_grad_norm_(list(params.values()), clip or math.inf))
    if not math.isfinite(norm):
        raise DivergedError(f"the norm of the meta-gradient is {norm}")
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    optimizer.step()
    return norm


def _faster_axis(
    experiment: Experiment,
    algorithm: Algorithm,
    params: Mapping[str, Tensor],
    episodes: MetaBatch,
    context: TrainContext,
) -> TaskAxis:
    """Times both ways of running the episodes on these very ones; the workers agree on the sum of
    their times.
    """
    state = algorithm.weighting.state()
    ways: tuple[TaskAxis, ...] = ("vmap", "loop")
    seconds = []
    for axis in ways:
        for _ in range(2):  # the first run of each pays for warming up
            start = time.perf_counter()
            meta_gradient(
                algorithm,
                params,
                episodes,
                context.workers,
                ExecutionConfig(
                    axis,
                    experiment.train.chunk,
                    experiment.train.precision,
                    experiment.mode.micro_batches,
                ),
            )
            if context.device.type == "cuda":
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
        seconds.append(taken)
    algorithm.weighting.restore(state)
    return ways[int(context.workers.sum(torch.tensor(seconds, device=context.device)).argmin())]


class _StepInput(NamedTuple):
    """A step, this worker's episodes of it, the seconds that they kept it waiting, and whether all
    ask their host now if a machine is leaving.
    """

    step: int
    episodes: MetaBatch
    waited: float
    ask: bool


def _agreed(
    batches: Iterator[tuple[int, int, MetaBatch]], context: TrainContext, heartbeat: Heartbeat
) -> Iterator[_StepInput]:
    """Passes the episodes on; makes sure that the workers are at the same step and hold all of its
    shares.
    """
    start = asked = time.perf_counter()
    heartbeat.wants_episodes = True
    for step, share, episodes in batches:
        heartbeat.wants_episodes = False
        waited = time.perf_counter() - start
        held = torch.zeros(context.workers.size + 2, dtype=torch.int64, device=context.device)
        held[share] = 1
        held[-2] = step
        # Clocks differ, and all must ask at the same step: that of the first worker counts.
        held[-1] = context.workers.rank == 0 and time.perf_counter() - asked > ASK_S
        *total, ask = context.workers.sum(held).tolist()
        if ask:
            asked = time.perf_counter()
        if total != [1] * context.workers.size + [step * context.workers.size]:
            raise RuntimeError(
                f"step {step}: the workers do not hold one share each of the same step: {total}"
            )
        yield _StepInput(step, episodes, waited, bool(ask))
        start = time.perf_counter()  # not of what the step took
        heartbeat.wants_episodes = True
