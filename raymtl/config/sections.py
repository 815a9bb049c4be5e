"""The sections of a configuration that choose no method: how long, how wide, how often."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from raymtl.step.execution import Precision
from raymtl.storage.notes import Note
from raymtl.types import Spec, UserError

Beta = Annotated[float, Field(ge=0, lt=1)]


class Train(Spec):
    """The outer loop. One step is one meta-batch over all workers and one move of the optimiser.

    Example: `train: {steps: 100, meta_batch: 16, lr: 0.001, workers: 2}`

    Example: `train: {steps: 5000, eval_every: 50, keep: best, patience: 5}`
    """

    steps: PositiveInt = 1000
    meta_batch: PositiveInt = 8
    """The number of episodes in a step, over all workers."""
    batch_size: PositiveInt | None = None
    """In place of `meta_batch`, with `learner.name: none`: the number of rows in a step, over all
    workers; so many of each task where tasks have inputs of their own.
    """
    epochs: PositiveFloat | None = None
    """In place of `steps`, with `batch_size`: so many times as many rows as there are for training.
    The number of steps is rounded up, and a note says it.
    """
    epoch_rows: PositiveInt | None = None
    """How many rows there are for training: found where `epochs` is set."""
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: PositiveFloat = 0.003
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """In the first steps, up to this one, the learning rate rises linearly to what it would be."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Of Adam: how long the means of the gradient and of its square last."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The decay of an exponential moving average of all parameters, such as 0.999. The average is
    scored and kept in place of the parameters, which train on as without it.
    """
    clip_norm: PositiveFloat | None = 10.0
    """The largest norm of the meta-gradient; a longer one is scaled down to it."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay as in AdamW (arXiv:1711.05101): in each step a weight of the model
    loses lr * weight_decay of itself. Biases and scales, which have one dimension, lose nothing.
    """
    no_decay: tuple[str, ...] = ()
    """Patterns of names of the model's weights that lose nothing either, such as `heads.*`."""
    workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """The fewest workers to train on where machines come and go: as many train as there is room
    for, up to `workers`. All of `workers` are needed by default.
    """
    cpus_per_worker: PositiveFloat = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """The device to compute on; `auto` takes a GPU for each worker where the cluster has them."""
    precision: Precision = "float32"
    task_axis: Literal["auto", "vmap", "loop"] = "auto"
    """How the episodes of a step are run; `auto` measures both on the first step and takes the
    faster one.
    """
    chunk: PositiveInt | None = None
    """How many episodes vmap takes at once, all by default; fewer need less memory."""
    graph_mb: PositiveFloat | None = 512.0
    """The most memory, in MiB for each worker, of graphs that wait until the losses of all tasks
    are known. Where an estimate exceeds it, the losses are computed twice; none sets no limit.
    """
    graph: Literal["auto", "none", "replay", "compile"] = "auto"
    """Whether steps run a traced graph of their losses. `replay` computes the same numbers faster;
    tracing costs as much as some 80 steps. `compile` is faster still on small networks; its
    numbers are the same up to rounding, and it needs a C++ compiler and up to a minute. `auto`
    times them where the steps to come can repay that, and takes the fastest.
    """
    eval_every: PositiveInt = 100
    """The number of steps between two scores on the validation split, each with a checkpoint."""
    keep: Literal["last", "best"] = "last"
    """Which model is kept: that of the last step, or that with the best score by `metric`."""
    metric: str = "val.score"
    """The score by which `keep` and `patience` go."""
    patience: PositiveInt | None = None
    """Training ends early after so many scores in a row that were not better than the best one
    before; by default it makes all `steps`.
    """
    checkpoint_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """The largest share of its time that training spends on checkpoints between the scores."""
    wait_for_nodes_s: NonNegativeInt = 0
    """How many seconds to wait for machines that an autoscaling cluster still has to start."""
    max_failures: NonNegativeInt = 3
    """How many times a lost worker or trial is started again from its last checkpoint."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        """Refuses two keys that say the same thing, and counts the steps of the epochs."""
        given = self.model_fields_set
        if self.batch_size is not None and "meta_batch" in given:
            raise UserError(
                "train.batch_size: expected it or train.meta_batch, since both say how large a "
                f"step is, got {self.batch_size} and {self.meta_batch}. Leave one away."
            )
        if self.epochs is None:
            return self
        if "steps" in given:
            raise UserError(
                "train.epochs: expected it or train.steps, since both say how long the training "
                f"is, got {self.epochs:g} and {self.steps}. Leave one away."
            )
        if self.batch_size is None:
            raise UserError(
                "train.epochs: expected train.batch_size beside it, which says how many rows a "
                "step takes, got none. Set it, or set train.steps."
            )
        if self.epoch_rows is not None:
            # The object is frozen for others; here it is still being made.
            self.__dict__["steps"] = math.ceil(self.epochs * self.epoch_rows / self.batch_size)
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_replaced(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.batch_size is not None:
            values.pop("meta_batch", None)
        if self.epochs is not None:
            values.pop("steps", None)
        return values

    def notes(self) -> tuple[Note, ...]:
        """How many steps the epochs are."""
        if self.epochs is None or self.epoch_rows is None:
            return ()
        text = (
            f"{self.epochs:g} epochs of {self.epoch_rows} rows are {self.steps} steps of "
            f"{self.batch_size} rows"
        )
        return (Note(place="training", text=text, key="train.epochs"),)

    def notes_on_rare(self, labels: Mapping[str, float]) -> tuple[Note, ...]:
        """A note on each task with less than one label a step: task -> labels a step."""
        key = "train.meta_batch"
        if self.batch_size is not None:
            key = "train.batch_size"
        return tuple(
            Note(
                place=f"task '{name}'",
                text=f"a step has {number:.2g} of its labels on average, so most steps have none",
                key=key,
            )
            for name, number in labels.items()
            if number < 1
        )

    @property
    def num_episodes(self) -> int:
        """How many episodes the workers share in a step; one row is an episode by itself."""
        return self.batch_size or self.meta_batch

    @property
    def num_min_workers(self) -> int:
        """The number of workers that there must be room for."""
        return self.min_workers or self.workers


class Evaluate(Spec):
    """How many held-out episodes a score is the mean of.

    Example: `evaluate: {val_episodes: 64, test_episodes: 500}`
    """

    val_episodes: Annotated[int, Field(ge=2)] = 32
    test_episodes: Annotated[int, Field(ge=2)] = 200


class ASHA(Spec):
    """Asynchronous successive halving (arXiv:1810.05934): stops a trial that is behind at a rung.

    The first rung is at `grace` steps and each further one at `reduction` times as many; the best
    1 / `reduction` of a rung go on.

    Example: `tune: {asha: {grace: 100, reduction: 3}}`
    """

    grace: PositiveInt = 100
    reduction: Annotated[float, Field(gt=1)] = 3.0
    metric: str | None = None
    """The metric that ASHA compares, `tune.metric` by default; name one where there are several."""


class TPE(Spec):
    """Tree-structured Parzen estimator (Optuna): `startup_trials` random trials come first.

    Example: `tune: {sampler: {startup_trials: 10}}`
    """

    startup_trials: PositiveInt = 6
    candidates: PositiveInt = 24
    multivariate: bool = True
    """Whether to model the parameters jointly, in groups that occur together where `when` makes
    them conditional.
    """


Baseline = Literal["default", "joint", "single", "merged"]


class Tune(Spec):
    """The search for the best values of `search`.

    `metric` and `mode` are lists where there are several objectives.

    Example: `tune: {trials: 50, metric: val.score, asha: {grace: 100}}`
    """

    trials: PositiveInt = 20
    metric: str | Annotated[tuple[str, ...], Field(min_length=1)] = "val.score"
    mode: (
        Literal["max", "min"] | Annotated[tuple[Literal["max", "min"], ...], Field(min_length=1)]
    ) = "max"
    default_first: bool = True
    """Whether the first trial takes the configuration's own values, if the search allows them."""
    concurrency: PositiveInt | Literal["auto"] = "auto"
    """The number of trials at a time, never more than there is room for; `auto` is as many as there
    is room for when the search starts.
    """
    workers_per_trial: PositiveInt = 1
    """The number of Ray Train workers of a trial; 1 runs the trial as a plain function."""
    cpus_per_trial: PositiveFloat = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """The number of GPUs of each worker of a trial; `auto` is one where the cluster has any and
    `train.device` allows it.
    """
    sampler: TPE = TPE()
    asha: ASHA | None = None
    baselines: (
        Literal["all", "none", "default", "joint", "single", "merged"] | tuple[Baseline, ...]
    ) = "all"
    """What the winner is compared with, each trained for as many steps as it. `merged` takes no
    training of its own: it merges the models of `single`, which it includes.
    """

    @property
    def chosen_baselines(self) -> tuple[Baseline, ...]:
        """The kinds of baselines that the winner is compared with."""
        if self.baselines == "all":
            return ("default", "joint", "single", "merged")
        if self.baselines == "none":
            return ()
        chosen: tuple[Baseline, ...]
        if isinstance(self.baselines, tuple):
            chosen = self.baselines
        else:
            chosen = (self.baselines,)
        if "merged" in chosen and "single" not in chosen:
            chosen = (*chosen, "single")
        return chosen

    @property
    def metrics(self) -> tuple[str, ...]:
        """The objectives."""
        if isinstance(self.metric, str):
            return (self.metric,)
        return self.metric

    @property
    def modes(self) -> tuple[Literal["max", "min"], ...]:
        """One for each objective."""
        if isinstance(self.mode, tuple):
            return self.mode
        return (self.mode,) * len(self.metrics)

    @property
    def asha_metric(self) -> str:
        """The metric that ASHA compares."""
        if self.asha and self.asha.metric:
            return self.asha.metric
        return self.metrics[0]
