"""The Experiment: everything a run depends on."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import torch
from pydantic import Field, ValidationError, model_validator

from raymtl.config import checks
from raymtl.config.distributions import Distribution
from raymtl.config.explain import explain
from raymtl.config.names import as_values, dotted_names, members, nearest, open_names
from raymtl.config.sections import Evaluate, StageSection, Train, Tune
from raymtl.data import Digits, SourceSpec
from raymtl.encoders import ConvSpec, Encoder, EncoderSpec
from raymtl.encoders.norm import BatchStatistics
from raymtl.learners import MAML, LearnerSpec
from raymtl.modes import ModeSpec, Weighted
from raymtl.sharing import HardSpec, SharingSpec
from raymtl.step.algorithm import Algorithm
from raymtl.storage.yaml_text import write_yaml
from raymtl.types import Spec, UserError, matching
from raymtl.weighting import StaticSpec, WeightingSpec

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


class StageConfig(NamedTuple):
    """One stage of a training as a complete configuration, and the step that it begins at."""

    start: int
    experiment: "Experiment"

    @property
    def stop(self) -> int:
        """The step after its last one."""
        return self.start + self.experiment.train.steps


class Experiment(Spec):
    """Everything a run depends on. The dotted path of a field is its name in YAML, `--set`, the
    search and reports.
    """

    name: Annotated[
        str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "ASCII letters, digits, and _ . - within")
    ] = "run"
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
    stages: tuple[StageSection, ...] = ()
    """What comes first, in this order; the configuration itself is the last stage and has the rest
    of the steps.
    """
    evaluate: Evaluate = Evaluate()
    tune: Tune = Tune()
    search: Mapping[str, Distribution] = {}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        checks.check_learner(self.learner, self.data)
        checks.check_weighting(self.weighting, self.learner, self.mode, self.data.task_names)
        checks.check_mode(self.mode, self.learner)
        checks.check_encoder(self.encoder, self.learner)
        self._check_methods()
        checks.check_workers(self.train)
        checks.check_search(self.tune, self.train)
        checks.check_objectives(self.tune, self.metric_names())
        self._check_stages()
        return self

    def _check_methods(self) -> None:
        """Asks each method what it cannot do with these tasks, as a key of it and the reason."""
        names = self.data.task_names
        encoder = _shapes_of(self.encoder, self.data.input_shape, self.learner.num_steps)
        refusals = (
            ("learner", self.learner.check_parameters(self._parameter_names)),
            ("weighting", self.weighting.check(names)),
            ("mode", self.mode.check(names)),
            ("sharing", self.sharing.check(self.data.make_tasks(), encoder)),
        )
        for section, refusal in refusals:
            if not refusal:
                continue
            key, reason = refusal
            hint = ""
            if not set(key.split(".")) & set(names):
                hint = nearest(key, names)
            raise UserError(f"{section}.{key}: {reason}{hint}")

    def _encoder(self) -> Encoder:
        return self.encoder.build(self.data.input_shape, self.learner.num_steps)

    def _parameter_names(self) -> list[str]:
        """Of the model, which is not initialised for it."""
        tasks = self.data.make_tasks()
        with torch.device("meta"):
            number = self.sharing.num_encoders(len(tasks))
            encoders = [self._encoder() for _ in range(number)]
            return [name for name, _ in self.sharing.build(tasks, encoders).named_parameters()]

    def _check_stages(self) -> None:
        taken = sum(stage.steps for stage in self.stages)
        if taken >= self.train.steps:
            raise UserError(
                f"stages: expected fewer steps together than train.steps: {self.train.steps}, the "
                f"rest of which is the configuration's own, got {taken}. Raise train.steps or "
                "shorten the stages."
            )
        if self.stages and self.mode.comparisons(self.data.task_names, self.seed):
            raise UserError(
                f"stages: expected none with mode.name: {self.mode.name}, which compares whole "
                f"trainings, got {len(self.stages)}. Leave one of them away."
            )
        for number, stage in enumerate(self.stages):
            for key in stage.set:
                if not key.startswith(STAGED) and key not in STAGED_VALUES:
                    raise UserError(
                        f"stages.{number}.set: {key}: expected a value that stages may differ in "
                        f"({', '.join(STAGED)}, {', '.join(STAGED_VALUES)}), got another. Set it "
                        "for all stages alike."
                    )
        self.stage_configs()

    def stage_configs(self) -> tuple[StageConfig, ...]:
        """All stages of the training in their order; the last one is the configuration itself."""
        alone = self.model_copy(update={"stages": (), "tune": Tune(), "search": {}})
        configs: list[StageConfig] = []
        start = 0
        for number, stage in enumerate(self.stages):
            try:
                own = alone.override({**stage.set, "train.steps": stage.steps})
            except UserError as error:
                raise UserError(f"stages.{number}.set: {error}") from None
            configs.append(StageConfig(start, own))
            start += stage.steps
        rest = self.train.model_copy(update={"steps": self.train.steps - start})
        return (*configs, StageConfig(start, alone.model_copy(update={"train": rest})))

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
        means = {f"val.{name.rpartition('.')[2]}": higher for name, higher in own.items()}
        return {
            "val.score": True,
            "val.loss": False,
            **own,
            **means,
            "num_parameters": False,
            "seconds": False,
        }

    def build(self) -> Algorithm:
        """The three axes on the tasks, initialised from `seed`; raises nothing that validation has
        not.
        """
        tasks = self.data.make_tasks()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            encoders = [self._encoder() for _ in range(self.sharing.num_encoders(len(tasks)))]
            # Batch norms take the statistics of all examples that pass together.
            normalises = any(isinstance(part, BatchStatistics) for part in encoders[0].modules())
            isolate_task_graphs = self.weighting.needs_gradients and not normalises
            model = self.sharing.build(tasks, encoders, isolate_task_graphs)
        return Algorithm(tasks, model, self.weighting.build(tasks), self.learner, self.seed)

    def override(self, values: Mapping[str, Any]) -> "Experiment":
        """The experiment with these dotted values, validated.

        A changed `SECTION.name` keeps what was set of the old member, other than its defaults, and
        the new one has too. Raises UserError.
        """
        changes_data = any(key.partition(".")[0] == "data" for key in values)
        excluded = {"data"}
        if changes_data:
            excluded = set()
        tree = self.model_dump(mode="json", exclude=excluded)
        for key, value in sorted(values.items(), key=lambda item: not item[0].endswith(".name")):
            *path, last = key.split(".")
            node = _at(tree, path, key)
            if last == "name" and len(path) == 1 and value != node.get("name"):
                tree[path[0]] = _renamed(path[0], node, value)
            else:
                node[last] = value
        if not changes_data:  # then the data need not be read, or validated, again
            tree["data"] = self.data
        return parse(tree)

    def flat(self) -> dict[str, Any]:
        """Dotted path -> value, for all that is not the search itself."""
        return dict(as_values(self.model_dump(exclude={"search", "tune"})))

    def save(self, path: Path) -> None:
        """Writes the complete configuration, which `load` gives back unchanged."""
        path.write_text(write_yaml(self.model_dump(mode="json")), encoding="utf8")


@lru_cache(maxsize=64)
def _shapes_of(spec: EncoderSpec, input_shape: tuple[int, ...], inner_steps: int) -> Encoder:
    """An encoder without numbers, whose shapes are asked for; a search has few and asks often."""
    with torch.device("meta"):
        return spec.build(input_shape, inner_steps)


def _renamed(section: str, values: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """The values of a section for another member of its union: those that were set and that it has
    too.
    """
    known = members(section, Experiment)
    defaults = known[values["name"]]().model_dump(mode="json")
    member = known.get(str(name))
    new_values = {}
    if member is not None:
        for key, value in values.items():
            if key in member.model_fields and value != defaults[key]:
                new_values[key] = value
    return new_values | {"name": name}


def parse(tree: Mapping[str, Any]) -> Experiment:
    """Validates a plain tree; raises UserError that begins with the dotted key."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        raise UserError(explain(error, tree, Experiment)) from None


def _at(tree: dict[str, Any], path: Sequence[str], key: str) -> dict[str, Any]:
    """The mapping at the path, begun where the user names what is in it; raises UserError if there
    can be none.
    """
    node: Any = tree
    for depth, part in enumerate(path):
        named_by_user = {f"{'.'.join(path[:end])}.*" for end in (depth, depth + 1)} & {
            *open_names(Experiment)
        }
        if isinstance(node, dict) and part not in node and named_by_user:
            node[part] = {}
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"{key}: unknown key.{nearest(key, dotted_names(Experiment))}")
        if node[part] is None:  # an optional part, such as tune.asha, that a value in it begins
            node[part] = {}
        node = node[part]
    if not isinstance(node, dict):
        raise UserError(f"{key}: unknown key.{nearest(key, dotted_names(Experiment))}")
    return node
