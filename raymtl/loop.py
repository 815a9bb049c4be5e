"""The outer loop: the same in a notebook, a Tune trial and a Train worker."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl import checkpoint, runs
from raymtl.checkpoint import Progress
from raymtl.collective import Workers
from raymtl.config import Experiment, Part
from raymtl.data import Arrays
from raymtl.data.episodes import build_episodes, on_device, with_labels_of
from raymtl.evaluate import validation_scores
from raymtl.learners.diverging import divergence
from raymtl.step import HowToRun, MetaGradient, Problem, TaskAxis, look_back, meta_gradient, stacks
from raymtl.types import DivergedError, MetaBatch, Params

Batches = Callable[[int], Iterator[tuple[int, int, MetaBatch]]]
"""First step -> (step, share, this worker's episodes) of every step from there on."""


class Host(NamedTuple):
    """What differs between a notebook, a Tune trial and a Train worker."""

    report: Callable[[dict[str, float], Path | None], None]
    """Takes the scores of a step and, on the first worker, a checkpoint folder that it is to keep."""
    observe: Callable[[Mapping[str, float | None]], None]
    """Takes the numbers of every step, on the first worker; the loss of a task without labels is None."""
    resume_from: Path | None = None
    workers: Workers = Workers()
    device: torch.device = torch.device("cpu")


def local_batches(experiment: Experiment, arrays: Arrays) -> Batches:
    """All episodes of each step, built in this process."""

    def batches(first_step: int) -> Iterator[tuple[int, int, MetaBatch]]:
        for part in experiment.parts():
            own = part.experiment
            indices = range(own.train.meta_batch)
            for step in range(max(first_step, part.start), part.stop):
                built, _ = build_episodes(own.data, arrays, seed=own.seed, split="train", step=step, indices=indices)
                yield step, 0, built

    return batches


def train_loop(experiment: Experiment, arrays: Arrays, batches: Batches, host: Host, folder: Path) -> None:
    """Meta-trains from scratch or from `host.resume_from`; the first worker writes the model folder.

    Stages follow each other: a parameter goes on where the one of the same name and shape ended, a learner's and a
    weighting's own only where the next stage has the same learner or weighting. The optimiser, the weighting's state
    and the schedules start anew. Every worker makes the same move from the same summed meta-gradient, so parameters
    need no broadcast. Raises DivergedError, naming task and step, where a loss is not finite.
    """
    done = checkpoint.steps_done(host.resume_from) if host.resume_from else 0
    recorder = _Recorder(folder, done, host)
    stream = _agreed(batches(done), host)
    parts = experiment.parts()
    params: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        if part.stop >= done:  # that which ends where the checkpoint stands, too: the next one goes on from it
            lasting = _lasting(parts[number - 1].experiment, part.experiment) if number else ()
            carried = {name: value for name, value in params.items() if name.startswith(lasting)}
            first_step = max(done, part.start)
            resume_from = host.resume_from if part.start < done else None
            here = _Stretch(part, number, first_step, islice(stream, part.stop - first_step), carried, resume_from)
            params = _train_part(experiment, here, arrays, recorder, host, folder)


class _Stretch(NamedTuple):
    """What is left to do of a part: its batches from a step on, from the parameters of the part before it."""

    part: Part
    number: int
    first_step: int
    batches: Iterator[tuple[int, MetaBatch, float]]
    carried: Mapping[str, Tensor]
    resume_from: Path | None


def _train_part(
    whole: Experiment, here: _Stretch, arrays: Arrays, recorder: "_Recorder", host: Host, folder: Path
) -> dict[str, Tensor]:
    """Trains to the end of the part; returns the parameters."""
    experiment = here.part.experiment
    settings = experiment.train
    problem = experiment.build()
    params = problem.init_params(host.device)
    _carry_over(here.carried, params)
    optimizer = _optimizer(experiment, problem, params)
    mode, sizes = experiment.mode, experiment.data.sizes(arrays)
    task_axis = settings.task_axis
    anchor: dict[str, Tensor] = {}
    if here.resume_from:
        _, _, saved_axis, anchor = checkpoint.restore(here.resume_from, problem, params, optimizer)
        task_axis = saved_axis if saved_axis in ("vmap", "loop") else task_axis  # type: ignore[assignment]
    start = time.perf_counter()
    for done_before, raw, waited in here.batches:
        step = done_before - here.part.start  # of this part, by which everything in it is scheduled
        arrived, counted = mode.arrived(step, tuple(sizes)), mode.counted(step, experiment.seed, sizes)
        episodes = with_labels_of(on_device(raw, host.device), arrived, counted)
        if mode.anchors(step):
            anchor = {name: value.detach().clone() for name, value in params.items() if name.startswith("model.")}
        try:
            if task_axis == "auto":
                task_axis = _faster_axis(experiment, problem, params, episodes, host)
            how = HowToRun(task_axis, settings.chunk, settings.precision, mode.passes)
            meta = meta_gradient(problem, params, episodes, host.workers, how, step)
            for name, value in anchor.items():
                meta.grads[name] += 2 * mode.anchor_strength * (params[name].detach() - value)
            still = _heads_at_rest(problem, meta)
            moving = {
                name: value
                for name, value in params.items()
                if mode.moves(step, name) and problem.learner.moves(step, name) and name not in still
            }
            norm = _move(optimizer, moving, meta, _schedule(experiment, step), settings.clip_norm)
            if experiment.weighting.looks_back:
                look_back(problem, params, episodes, meta, host.workers, how, step)
        except DivergedError as error:
            recorder.flush()
            why = _inner_divergence(problem, params, episodes)
            advice = f" ({why}). Lower learner.inner_lr." if why else ". Lower learner.inner_lr or train.lr."
            raise DivergedError(f"{error} at step {done_before + 1}{advice}") from None
        done = done_before + 1
        scored = done == here.part.stop or done % settings.eval_every == 0
        scores: dict[str, float] = {}
        if scored:
            with torch.no_grad():
                scores = validation_scores(experiment, problem, params, arrays, how, host.workers)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        pace = {"lr": _schedule(experiment, step), "grad_norm": norm, "seconds": seconds}
        stage = {"stage": here.number} if whole.stages else {}
        recorder.add(
            {
                "step": done,
                **stage,
                **pace,
                "data_wait_pct": 100 * waited / seconds,
                **_by_task(problem, meta),
                **scores,
            }
        )
        if scored:
            recorder.flush()  # before the checkpoint: what is recorded too much is cut off on resume
            progress = Progress(done, params, str(task_axis), anchor)
            kept = _keep(whole, problem, optimizer, progress, folder) if host.workers.rank == 0 else None
            count = sum(value.numel() for value in params.values())
            host.report({**scores, "step": done, "num_parameters": count, "seconds": recorder.seconds}, kept)
    return params


def _inner_divergence(problem: Problem, params: Params, episodes: MetaBatch) -> str | None:
    """What the first of these episodes in which the inner loop diverges has to say; None where it does in none."""
    for stack in stacks(episodes):
        for index in range(len(next(iter(stack.query.targets.values())))):
            support = tree_map(lambda leaf, i=index: leaf[i], stack.support)
            found = divergence(problem.learner, problem.model, params, support, problem.objective)
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


def _by_task(problem: Problem, meta: MetaGradient) -> dict[str, float | None]:
    """Columns `loss.TASK`, None where the task had no label, and `weight.TASK`."""
    losses = [None if math.isnan(loss) else loss for loss in meta.losses.tolist()]
    values = {"loss": losses, "weight": meta.weights.tolist()}
    return {f"{key}.{task.name}": row[i] for key, row in values.items() for i, task in enumerate(problem.tasks)}


def _keep(
    experiment: Experiment, problem: Problem, optimizer: torch.optim.Optimizer, progress: Progress, folder: Path
) -> Path:
    """Writes the checkpoint, and at the last step the model before it, for after it nothing is left to do."""
    if progress.step == experiment.train.steps:
        runs.publish(folder / "config.yaml", experiment.model_copy(update={"search": {}}).save)
        runs.save_params(folder / "model.safetensors", progress.params)
    checkpoint.save(folder / "checkpoint", problem, optimizer, progress)
    return folder / "checkpoint"


def _optimizer(experiment: Experiment, problem: Problem, params: Mapping[str, Tensor]) -> torch.optim.Optimizer:
    groups = []
    for name, value in params.items():
        parts = name.split(".")
        scale = problem.model.lr_scale.get(parts[1], 1.0) if parts[0] == "model" else 1.0
        decay = experiment.train.weight_decay if parts[0] == "model" and value.ndim > 1 else 0.0
        groups.append({"params": [value], "lr_scale": scale, "weight_decay": decay})
    # Without momentum, as here, the decay of SGD is decoupled too.
    kinds = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[experiment.train.optimizer](groups, lr=experiment.train.lr)


def _schedule(experiment: Experiment, step: int) -> float:
    done = step / experiment.train.steps
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return experiment.train.lr * factor[experiment.train.schedule]


def _heads_at_rest(problem: Problem, meta: MetaGradient) -> set[str]:
    """Parameters of heads whose task had no label and which nothing else reached: momentum must not move them."""
    absent = [task.name for i, task in enumerate(problem.tasks) if i not in meta.tasks.tolist()]
    starts = tuple(f"model.heads.{name}." for name in absent)
    return {name for name, gradient in meta.grads.items() if name.startswith(starts) and not gradient.any()}


def _move(
    optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor], meta: MetaGradient, lr: float, clip: float | None
) -> float:
    """One step of the optimiser along the meta-gradient of these parameters; returns its norm before clipping."""
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
    experiment: Experiment, problem: Problem, params: Mapping[str, Tensor], episodes: MetaBatch, host: Host
) -> TaskAxis:
    """Times both ways of running the episodes on these very ones; the workers agree on the sum of their times."""
    state = problem.weighting.state()
    ways: tuple[TaskAxis, ...] = ("vmap", "loop")
    seconds = []
    for axis in ways:
        for _ in range(2):  # the first run of each pays for warming up
            start = time.perf_counter()
            meta_gradient(
                problem,
                params,
                episodes,
                host.workers,
                HowToRun(axis, experiment.train.chunk, experiment.train.precision, experiment.mode.passes),
            )
            if host.device.type == "cuda":
                torch.cuda.synchronize()
            taken = time.perf_counter() - start
        seconds.append(taken)
    problem.weighting.restore(state)
    return ways[int(host.workers.sum(torch.tensor(seconds, device=host.device)).argmin())]


def _agreed(batches: Iterator[tuple[int, int, MetaBatch]], host: Host) -> Iterator[tuple[int, MetaBatch, float]]:
    """Passes the episodes on, with the seconds that they kept this worker waiting.

    Makes sure that the workers are at the same step and hold all of its shares.
    """
    start = time.perf_counter()
    for step, share, episodes in batches:
        waited = time.perf_counter() - start
        held = torch.zeros(host.workers.size + 1, dtype=torch.int64, device=host.device)
        held[share] = 1
        held[-1] = step
        total = host.workers.sum(held).tolist()
        if total != [1] * host.workers.size + [step * host.workers.size]:
            raise RuntimeError(f"step {step}: the workers do not hold one share each of the same step: {total}")
        yield step, episodes, waited
        start = time.perf_counter()  # not of what the step took


class _Recorder:
    """The first worker's record of every step: history.parquet, TensorBoard and the host's own metrics."""

    def __init__(self, folder: Path, first_step: int, host: Host) -> None:
        self.path = folder / "history.parquet"
        self.host = host
        self.rows: list[dict[str, Any]] = []
        self.writer: Any = None
        if host.workers.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            self.rows = [row for row in runs.read_rows(self.path) if row["step"] <= first_step]
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1, flush_secs=30)

    @property
    def seconds(self) -> float:
        """Training time so far, over all attempts."""
        return sum(row["seconds"] for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        if self.writer is None:
            return
        self.rows.append(row)
        for name, value in row.items():
            if name != "step" and value is not None:
                self.writer.add_scalar(name.replace(".", "/"), value, row["step"])
        self.host.observe(row)

    def flush(self) -> None:
        if self.writer is not None:
            runs.write_rows(self.path, self.rows)
            self.writer.flush()
