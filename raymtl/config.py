"""The Experiment: one YAML file, validated once; load, override, save."""

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

import torch
import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from raymtl.data import Digits, SourceSpec
from raymtl.encoders import ConvSpec, Encoder, EncoderSpec
from raymtl.encoders.norm import BatchStatistics
from raymtl.learners import MAML, LearnerSpec
from raymtl.modes import ModeSpec, Weighted
from raymtl.search import Domain, representatives
from raymtl.sharing import HardSpec, SharingSpec
from raymtl.step import Precision, Problem
from raymtl.types import Spec, UserError
from raymtl.weighting import StaticSpec, WeightingSpec


class Train(Spec):
    """The outer loop. One step is one meta-batch over all workers and one move of the optimiser."""

    steps: PositiveInt = 1000
    meta_batch: PositiveInt = 8
    """Episodes a step, over all workers."""
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: PositiveFloat = 0.003
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How the learning rate falls to 0 at the last step."""
    clip_norm: PositiveFloat | None = 10.0
    """Longest meta-gradient that is followed as it is; longer ones are shortened to it."""
    weight_decay: NonNegativeFloat = 0.0
    """What a weight of the model loses in a step is lr * weight_decay of itself, beside its gradient's share.

    That is decoupled as in AdamW (arXiv:1711.05101). Biases and scales, which have one dimension, lose nothing.
    """
    workers: PositiveInt = 1
    min_workers: PositiveInt | None = None
    """Fewest workers to train on, where machines come and go: as many train as fit, `workers` of them at most."""
    cpus_per_worker: PositiveFloat = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU for each worker where the cluster has them."""
    precision: Precision = "float32"
    task_axis: Literal["auto", "vmap", "loop"] = "auto"
    """How the episodes of a step are run; `auto` measures both on the first one and keeps the faster."""
    chunk: PositiveInt | None = None
    """Episodes that vmap takes at once; fewer need less memory."""
    eval_every: PositiveInt = 100
    """Steps between scores on the validation split, each with a checkpoint."""
    checkpoint_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Largest share of its time that training spends on more checkpoints, between the scores."""
    wait_for_nodes_s: NonNegativeInt = 0
    """How long to wait for machines that an autoscaling cluster does not have yet; they are asked for first."""
    max_failures: NonNegativeInt = 3
    """How often a lost worker or trial is started again from its last checkpoint."""

    @property
    def fewest(self) -> int:
        """How many workers there must be room for."""
        return self.min_workers or self.workers


class Evaluate(Spec):
    """How many held-out episodes a score is a mean of."""

    val_episodes: Annotated[int, Field(ge=2)] = 32
    test_episodes: Annotated[int, Field(ge=2)] = 200


class ASHA(Spec):
    """Asynchronous successive halving (arXiv:1810.05934): stops a trial that is behind at a rung.

    The rungs are at `grace` steps and its multiples by `reduction`; the best 1 / `reduction` of a rung go on.
    """

    grace: PositiveInt = 100
    reduction: Annotated[float, Field(gt=1)] = 3.0
    metric: str | None = None
    """What ASHA compares; `tune.metric` unless given, and to be given where there are several."""


class TPE(Spec):
    """Tree-structured Parzen estimator (Optuna): `startup_trials` random trials come first."""

    startup_trials: PositiveInt = 6
    candidates: PositiveInt = 24
    multivariate: bool = True
    """Model the parameters jointly, in groups that occur together where `when` makes them conditional."""


class Tune(Spec):
    """The search. `metric` and `mode` are lists where several objectives are searched."""

    trials: PositiveInt = 20
    metric: str | Annotated[tuple[str, ...], Field(min_length=1)] = "val.score"
    mode: Literal["max", "min"] | Annotated[tuple[Literal["max", "min"], ...], Field(min_length=1)] = "max"
    default_first: bool = True
    """Whether the first trial is the configuration's own values, where they lie inside the domains."""
    concurrency: PositiveInt | Literal["auto"] = "auto"
    """Trials at a time, never more than fit; `auto` is as many as fit when the search starts."""
    workers_per_trial: PositiveInt = 1
    """Ray Train workers of each trial; 1 runs the trial as a plain function."""
    cpus_per_trial: PositiveFloat = 1.0
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs of each worker of a trial; `auto` is one where the cluster has any and `train.device` allows it."""
    sampler: TPE = TPE()
    asha: ASHA | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The objectives."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def modes(self) -> tuple[Literal["max", "min"], ...]:
        """One for each objective."""
        return self.mode if isinstance(self.mode, tuple) else (self.mode,) * len(self.metrics)

    @property
    def asha_metric(self) -> str:
        """What ASHA compares."""
        return (self.asha.metric if self.asha else None) or self.metrics[0]


class Stage(Spec):
    """A training that comes before that of the configuration itself, such as multi-task pre-training.

    `set` holds the dotted values in which it differs from the configuration: of the learner, the weighting, the mode,
    the outer optimiser, and how many examples an episode has. What the model is made of is the same in all stages.
    """

    steps: PositiveInt
    """Of train.steps, which are those of all stages together."""
    set: Mapping[str, Any] = {}


class Part(NamedTuple):
    """One of the trainings that a training consists of, as a configuration of its own, and the step it begins at."""

    start: int
    experiment: "Experiment"

    @property
    def stop(self) -> int:
        """The step after its last one."""
        return self.start + self.experiment.train.steps


class Experiment(Spec):
    """Everything a run depends on. The dotted path of a field is its name in YAML, `--set`, the search and reports."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output: str = "runs"
    """Folder of the run folders."""
    data: SourceSpec = Digits()
    encoder: EncoderSpec = ConvSpec()
    sharing: SharingSpec = HardSpec()
    weighting: WeightingSpec = StaticSpec()
    learner: LearnerSpec = MAML()
    mode: ModeSpec = Weighted()
    train: Train = Train()
    stages: tuple[Stage, ...] = ()
    """What comes first, in this order; the configuration itself is the last stage and has the rest of the steps."""
    evaluate: Evaluate = Evaluate()
    tune: Tune = Tune()
    search: Mapping[str, Domain] = {}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self._check_axes()
        self._check_numbers()
        self._check_stages()
        return self

    def _check_axes(self) -> None:
        names, weighting, learner = self.data.task_names, self.weighting, self.learner
        reason = learner.check(self.data.make_tasks())
        if reason:
            raise UserError(
                f"learner.name: {learner.name} cannot learn data.tasks: {list(names)}, since {reason}. "
                "Choose another learner or other tasks."
            )
        if weighting.needs_gradients and not learner.follows_query_gradient:
            raise UserError(
                f"weighting.name: {weighting.name} weighs gradients of the query losses, and learner.name: "
                f"{learner.name} has none to weigh. Choose a weighting of losses such as static, or another learner."
            )
        if weighting.needs_gradients and len(names) == 1:
            raise UserError(
                f"weighting.name: {weighting.name} needs the gradients of several tasks, got data.tasks: "
                f"{list(names)}. Choose weighting.name: static or add a task."
            )
        if weighting.needs_gradients and self.mode.one_task_a_step:
            raise UserError(
                f"weighting.name: {weighting.name} needs the gradients of several tasks, and mode.name: "
                f"{self.mode.name} lets one task count in each step. Choose weighting.name: static or another mode."
            )
        if self.mode.divides_gradient and not learner.follows_query_gradient:
            raise UserError(
                f"mode.name: {self.mode.name} divides the gradient of the query losses, and learner.name: "
                f"{learner.name} has none to divide. Choose mode.name: weighted or another learner."
            )
        if self.encoder.tells_steps_apart and not learner.tells_steps_apart:
            raise UserError(
                f"encoder.norm: {self.encoder.norm} has scales for every inner step, and learner.name: {learner.name}, "
                "as it is set, has no steps to tell apart. Choose encoder.norm: batch or another learner."
            )
        with torch.device("meta"):
            encoder = self._encoder()
        for section, problem in (
            ("learner", learner.check_parameters(self._parameter_names)),
            ("weighting", weighting.check(names)),
            ("mode", self.mode.check(names)),
            ("sharing", self.sharing.check(self.data.make_tasks(), encoder)),
        ):
            if problem:
                named = set(problem[0].split("."))
                hint = "" if named & set(names) else _nearest(problem[0], names)
                raise UserError(f"{section}.{problem[0]}: {problem[1]}{hint}")

    def _encoder(self) -> Encoder:
        return self.encoder.build(self.data.input_shape, self.learner.num_steps)

    def _parameter_names(self) -> list[str]:
        """Of the model, which is not initialised for it."""
        tasks = self.data.make_tasks()
        with torch.device("meta"):
            number = self.sharing.num_encoders(len(tasks))
            encoders = [self._encoder() for _ in range(number)]
            return [name for name, _ in self.sharing.build(tasks, encoders).named_parameters()]

    def _check_numbers(self) -> None:
        train, tune = self.train, self.tune
        if train.meta_batch < train.workers:
            raise UserError(
                f"train.meta_batch: expected an episode for each of train.workers: {train.workers}, got "
                f"{train.meta_batch}. Raise it or take fewer workers."
            )
        if train.fewest > train.workers:
            raise UserError(
                f"train.min_workers: expected at most train.workers: {train.workers}, got {train.min_workers}. "
                "Lower it, or raise train.workers."
            )
        if tune.asha and tune.asha.grace > train.steps:
            raise UserError(
                f"tune.asha.grace: expected at most train.steps: {train.steps}, got {tune.asha.grace}. Lower it."
            )
        gpus = tune.gpus_per_trial
        if gpus != "auto" and ((train.device == "cuda" and not gpus) or (train.device == "cpu" and gpus)):
            raise UserError(
                f"tune.gpus_per_trial: expected what train.device: {train.device} needs, got {gpus:g}. "
                "Leave it at auto, or set train.device: auto."
            )
        if len(tune.modes) != len(tune.metrics):
            raise UserError(
                f"tune.mode: expected one for each of tune.metric: {list(tune.metrics)}, got {list(tune.modes)}."
            )
        known = self.metric_names()
        for key, metric in [("tune.metric", m) for m in tune.metrics] + [("tune.asha.metric", tune.asha_metric)]:
            if metric not in known:
                raise UserError(f"{key}: expected one of {', '.join(known)}, got '{metric}'.{_nearest(metric, known)}")

    def _check_stages(self) -> None:
        taken = sum(stage.steps for stage in self.stages)
        if taken >= self.train.steps:
            raise UserError(
                f"stages: expected fewer steps together than train.steps: {self.train.steps}, the rest of which is the "
                f"configuration's own, got {taken}. Raise train.steps or shorten the stages."
            )
        if self.stages and self.mode.comparisons(self.data.task_names, self.seed):
            raise UserError(
                f"stages: expected none with mode.name: {self.mode.name}, which compares whole trainings, got "
                f"{len(self.stages)}. Leave one of them away."
            )
        for number, stage in enumerate(self.stages):
            for key in stage.set:
                if not key.startswith(STAGED) and key not in STAGED_VALUES:
                    raise UserError(
                        f"stages.{number}.set: {key}: expected a value that stages may differ in ({', '.join(STAGED)}, "
                        f"{', '.join(STAGED_VALUES)}), got another. Set it for all stages alike."
                    )
        self.parts()

    def parts(self) -> tuple[Part, ...]:
        """The trainings that this one consists of, one after the other: the stages, then the configuration itself."""
        alone = self.model_copy(update={"stages": (), "tune": Tune(), "search": {}})
        parts: list[Part] = []
        start = 0
        for number, stage in enumerate(self.stages):
            try:
                own = alone.override({**stage.set, "train.steps": stage.steps})
            except UserError as error:
                raise UserError(f"stages.{number}.set: {error}") from None
            parts.append(Part(start, own))
            start += stage.steps
        rest = self.train.model_copy(update={"steps": self.train.steps - start})
        return (*parts, Part(start, alone.model_copy(update={"train": rest})))

    def metric_names(self) -> list[str]:
        """What a trial reports and a search can optimise."""
        return list(self.metric_directions())

    def metric_directions(self) -> dict[str, bool]:
        """What a trial reports -> whether higher is better."""
        own = {
            f"val.{task.name}.{name}": metric.higher_is_better
            for task in self.data.make_tasks()
            for name, metric in task.metrics.items()
        }
        return {"val.score": True, "val.loss": False, **own, "num_parameters": False, "seconds": False}

    def build(self) -> Problem:
        """The three axes on the tasks, initialised from `seed`; raises nothing that validation has not."""
        tasks = self.data.make_tasks()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoders = [self._encoder() for _ in range(self.sharing.num_encoders(len(tasks)))]
            model = self.sharing.build(tasks, encoders)
        # Batch norms are of the examples that pass together.
        normalises = any(isinstance(part, BatchStatistics) for part in model.parts())
        model.apart = self.weighting.needs_gradients and not normalises
        return Problem(tasks, model, self.weighting.build(tasks), self.learner, self.seed)

    def override(self, values: Mapping[str, Any]) -> "Experiment":
        """The experiment with these dotted values, validated.

        A changed `SECTION.name` keeps what was set of the old member, other than its defaults, and the new one has too.
        Raises UserError.
        """
        tree = self.model_dump(mode="json")
        for key, value in sorted(values.items(), key=lambda item: not item[0].endswith(".name")):
            *path, last = key.split(".")
            node: Any = tree
            for depth, part in enumerate(path):
                named_by_user = {".".join([*path[:depth], "*"]), ".".join([*path[: depth + 1], "*"])} & {*_open_names()}
                if isinstance(node, dict) and part not in node and named_by_user:
                    node[part] = {}
                if not isinstance(node, dict) or part not in node:
                    raise UserError(f"{key}: unknown key.{_nearest(key, dotted_names())}")
                if node[part] is None:  # an optional part, such as tune.asha, that this value begins
                    node[part] = {}
                node = node[part]
            if not isinstance(node, dict):
                raise UserError(f"{key}: unknown key.{_nearest(key, dotted_names())}")
            if last == "name" and len(path) == 1 and value != node.get("name"):
                members = _members(path[0])
                old, new = members[node["name"]]().model_dump(mode="json"), members.get(str(value))
                kept = {k: v for k, v in node.items() if new and k in new.model_fields and v != old[k]}
                tree[path[0]] = kept | {"name": value}
            else:
                node[last] = value
        return parse(tree)

    def flat(self) -> dict[str, Any]:
        """Dotted path -> value, for all that is not the search itself."""
        return dict(_flatten(self.model_dump(exclude={"search", "tune"})))

    def save(self, path: Path) -> None:
        """Writes the complete configuration, which `load` gives back unchanged."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Reads and validates a YAML file, then applies `--set` overrides.

    Raises UserError naming the file, the line and the dotted key. Every combination that the search could suggest is
    checked too.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give the path of a YAML configuration.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error}). Give the path of a YAML configuration.") from None
    try:
        lines = _lines(yaml.compose(text, yaml.SafeLoader), path)
        tree = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}. Correct the line.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of keys, got {type(tree).__name__}. Write `key: value` lines.")
    overrides = overrides or {}
    # What replaces a value of the file does so before that is validated: data.path may name files that are elsewhere.
    replaced = frozenset(key for key, value in overrides.items() if _replace(tree, key.split("."), value))
    experiment = _located(lambda: parse(tree), path, lines, replaced)
    if overrides:
        try:
            experiment = experiment.override(overrides)
        except UserError as error:
            raise UserError(f"--set: {error}") from None
    _located(lambda: check_space(experiment), path, lines)
    return experiment


def parse(tree: Mapping[str, Any]) -> Experiment:
    """Validates a plain tree; raises UserError that begins with the dotted key."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, tree)) from None


SEARCHABLE = ("encoder.", "sharing.", "weighting.", "learner.", "mode.")
SEARCHABLE_TRAIN = (
    "train.meta_batch",
    "train.optimizer",
    "train.lr",
    "train.schedule",
    "train.clip_norm",
    "train.weight_decay",
)
STAGED = ("learner.", "weighting.", "mode.")
STAGED_VALUES = (*SEARCHABLE_TRAIN, "data.shots", "data.queries", "data.ways")
COMBINATIONS = 2000  # checked at most; a search beyond them finds an impossible one as a failed trial


def check_space(experiment: Experiment) -> None:
    """Raises UserError if a domain names no value of the configuration, or some combination could not run."""
    space, defaults = experiment.search, experiment.flat()
    names = dotted_names()
    for name, domain in space.items():
        if not is_known(name):
            raise UserError(f"search.{name}: unknown key.{_nearest(name, names)}")
        if not name.startswith(SEARCHABLE) and name not in SEARCHABLE_TRAIN:
            raise UserError(
                f"search.{name}: expected a value that trials may differ in ({', '.join(SEARCHABLE)}, "
                f"{', '.join(SEARCHABLE_TRAIN)}), got one that they are compared by. Set it outside `search`."
            )
        for key in domain.when:
            if not is_known(key):
                raise UserError(f"search.{name}.when.{key}: unknown key.{_nearest(key, names)}")
    searched: set[str] = set()
    combinations = list(itertools.islice(representatives(space, defaults), COMBINATIONS))
    for values in combinations:
        searched |= {name for name in space if any(key == name or key.startswith(f"{name}.") for key in values)}
        try:
            experiment.override(values)
        except UserError as error:
            chosen = ", ".join(f"{key}={value}" for key, value in values.items())
            raise UserError(
                f"search: the search could suggest {chosen}, which cannot run ({error}) "
                "Exclude it with a `when:` on one of the keys."
            ) from None
    for name in set(space) - searched if len(combinations) < COMBINATIONS else ():
        conditions = dict(space[name].when)
        raise UserError(
            f"search.{name}.when: expected a condition that can hold, got {conditions}. Correct its values."
        )


def is_known(name: str) -> bool:
    """Whether a configuration can have the dotted name, the user's own in it included: `weighting.weights.left`."""
    parts = name.split(".")
    patterns = {name} | {".".join([*parts[:i], "*", *parts[i + 1 :]]) for i in range(2, len(parts))}
    return bool(patterns & {*dotted_names(), *_open_names()})


@cache
def _open_names() -> list[str]:
    """The dotted names below which the user names the keys, such as tasks, with `*` in their place."""
    names = []
    for section in Experiment.model_fields:
        for member in _members(section).values():
            for key, field in member.model_fields.items():
                if get_origin(field.annotation) is Mapping:
                    names.append(f"{section}.{key}.*")
                    value = get_args(field.annotation)[1]
                    if isinstance(value, type) and issubclass(value, Spec):
                        names += [f"{section}.{key}.*.{inner}" for inner in value.model_fields]
    return names


def dotted_names() -> list[str]:
    """Every dotted name that a configuration can have, over all members of every union."""
    names: list[str] = []
    for section, field in Experiment.model_fields.items():
        members = list(_members(section).values())
        if not members and isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
            members = [field.annotation]
        names.append(section)
        for member in members:
            for key, inner in member.model_fields.items():
                names.append(f"{section}.{key}")
                specs = [a for a in (inner.annotation, *get_args(inner.annotation)) if isinstance(a, type)]
                names += [f"{section}.{key}.{k}" for s in specs if issubclass(s, Spec) for k in s.model_fields]
    return list(dict.fromkeys(names))


def _members(section: str) -> dict[str, type[Spec]]:
    """The union of a section by `name`; empty for a section that is none."""
    field = Experiment.model_fields.get(section)
    if field is None:
        return {}
    kinds = [field.annotation, *get_args(field.annotation)]
    specs = [
        kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Spec) and "name" in kind.model_fields
    ]
    return {kind.model_fields["name"].default: kind for kind in specs}


def _flatten(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _nearest(key: str, names: Any) -> str:
    close = difflib.get_close_matches(key, list(names), n=1, cutoff=0.6)
    if not close and "." in key:
        close = difflib.get_close_matches(key.rpartition(".")[2], list(names), n=1, cutoff=0.6)
        close = close or [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    return f" Did you mean {close[0]}?" if close else ""


def _replace(tree: Any, path: Sequence[str], value: Any) -> bool:
    """Whether the plain tree has a value there, other than a mapping or the name of a member, which is now this one."""
    *parents, last = path
    for part in parents:
        tree = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or last == "name" or last not in tree or isinstance(tree[last], dict):
        return False
    tree[last] = value
    return True


def _located(action: Any, path: Path, lines: Mapping[str, int], given: frozenset[str] = frozenset()) -> Any:
    """Runs `action`; puts the file, and the line of the key that a UserError begins with, before its message.

    Instead of both it says `--set` where the key is one of those `given` there.
    """
    try:
        return action()
    except UserError as error:
        key = str(error).partition(":")[0]
        if key in given:
            raise UserError(f"--set: {error}") from None
        while key and key not in lines:
            key = key.rpartition(".")[0]
        raise UserError(f"{path}{f':{lines[key]}' if key else ''}: {error}") from None


def _lines(node: yaml.Node | None, path: Path, before: str = "") -> dict[str, int]:
    """Dotted key -> line in the file. Raises UserError for a key that stands twice."""
    lines: dict[str, int] = {}
    if before.count(".") > 20:
        raise UserError(f"{path}: expected a few levels of keys, got over 20. Remove the alias that contains itself.")
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), value, value) for index, value in enumerate(node.value)]
    for name, key, value in children:
        line = key.start_mark.line + 1
        if before + name in lines:
            raise UserError(f"{path}:{line}: {before}{name}: the key stands twice. Remove one of them.")
        lines |= {before + name: line} | _lines(value, path, f"{before}{name}.")
    return lines


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> str:
    """The first problem in one sentence that begins with the dotted key."""
    first = error.errors()[0]
    kind, got = first["type"], first.get("input")
    key, section = _dotted(first["loc"], tree)
    context = first.get("ctx", {})
    if kind == "extra_forbidden":
        if len(first["loc"]) == 1 and key in dotted_names():
            section, _, last = key.partition(".")
            return f"{key}: expected nested keys, got a dotted one. Write `{section}: {{{last}: ...}}`."
        parent = key.rpartition(".")[0]
        member = section.get("name") if isinstance(section, Mapping) else None
        belongs = [m for m, spec in _members(parent).items() if key.rpartition(".")[2] in spec.model_fields]
        if belongs:
            return f"{key}: {parent}.name: {member} has no such key, only {' and '.join(belongs)}. Remove it."
        siblings = _members(parent).get(str(member))
        names = [f"{parent}.{k}" for k in siblings.model_fields] if siblings else dotted_names()
        return f"{key}: unknown key.{_nearest(key, names) or _nearest(key, dotted_names())}"
    if kind == "union_tag_invalid":
        tag, expected = context["tag"], [name.strip(" '") for name in context["expected_tags"].split(",")]
        return f"{key}.name: expected one of {', '.join(expected)}, got '{tag}'.{_nearest(tag, expected)}"
    if kind == "union_tag_not_found":
        return f"{key}.name: expected one of {', '.join(_members(key))}, got none. Add the name."
    if kind == "missing":
        return f"{key}: expected a value, got none. Add it."
    if kind == "literal_error":
        return f"{key}: expected {context['expected']}, got {got!r}.{_nearest(str(got), _quoted(context['expected']))}"
    says = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    says = says[0].lower() + says[1:]
    says = says if says.startswith("expected") else f"expected {says}"
    return f"{key}: {says}." if ", got " in says else f"{key}: {says}, got {got!r}."


def _quoted(text: str) -> list[str]:
    return text.split("'")[1::2]


def _dotted(loc: tuple[int | str, ...], tree: Any) -> tuple[str, Any]:
    """The path as the user wrote it, without pydantic's union tags; and the mapping that holds its last key."""
    parts, node, parent = [], tree, tree
    for position, part in enumerate(loc):
        inside = (isinstance(node, Mapping) and part in node) or (
            isinstance(node, list | tuple) and isinstance(part, int) and part < len(node)
        )
        if inside:
            parts.append(str(part))
            parent, node = node, node[part]
        elif position == len(loc) - 1 and isinstance(node, Mapping) and isinstance(part, str) and "[" not in part:
            parts.append(part)
            parent = node
    return ".".join(parts), parent
