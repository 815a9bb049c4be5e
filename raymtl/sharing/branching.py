"""Branching: a tree over the encoder's stages (Vandenhende et al., 2019, arXiv:1904.02920).

x_t^s = f_{o(t, s)}^s(x_t^(s-1)), where o(t, s) = o(follows(t), s) if s < stages(t) else t says
whose copy of stage s task t passes through.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import NonNegativeInt
from torch import Tensor, nn

from raymtl.encoders import Encoder
from raymtl.sharing.base import SharingArchitecture, SharingSpecBase
from raymtl.sharing.hard import apply_to_each
from raymtl.types import Spec, Task


def _stage_of(parameter: str) -> str:
    """`trunks.OWNER.stages.S` of a parameter below it."""
    return ".".join(parameter.split(".")[:4])


class Branch(Spec):
    """Where a task branches off: it shares the first `stages` stages with the task `follows`."""

    follows: str
    stages: NonNegativeInt


class Branching(SharingArchitecture):
    """The tasks share the first stages of the encoder and branch off from each other as a tree.

    `owners[t][s]` names the task whose copy of stage s task t passes through. Stages that no task
    passes through do not exist: there is one copy for each branch of the tree, named
    `trunks.OWNER.stages.S`. Deviation from the paper: the tree is given, by hand or by the search,
    and not found by the affinity of single-task networks.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        encoders: Sequence[Encoder],
        owners: Mapping[str, tuple[str, ...]],
        isolate_task_graphs: bool = False,
    ) -> None:
        super().__init__(tasks, encoders[0].shapes[-1])
        self.isolate_task_graphs = isolate_task_graphs
        self.owners = owners
        fresh = iter(encoders)
        self.trunks = nn.ModuleDict()
        for name in self.task_names:
            depths = [depth for depth, owner in enumerate(owners[name]) if owner == name]
            if depths:
                stages = next(fresh).stages
                self.trunks[name] = nn.ModuleDict(
                    {"stages": nn.ModuleDict({str(depth): stages[depth] for depth in depths})}
                )

    @property
    def shared(self) -> frozenset[str]:
        users = Counter(
            (owner, depth) for owners in self.owners.values() for depth, owner in enumerate(owners)
        )
        several = {
            f"trunks.{owner}.stages.{depth}"
            for (owner, depth), number in users.items()
            if number > 1
        }
        names = (name for name, _ in self.trunks.named_parameters(prefix="trunks"))
        return frozenset(name for name in names if _stage_of(name) in several)

    def features(self, inputs: Tensor, tasks: Sequence[str]) -> Mapping[str, Tensor]:
        x = dict.fromkeys(tasks, inputs)
        for depth, companies in enumerate(self._companies(tasks)):
            for owner, company in companies.items():
                x |= dict.fromkeys(company, self._stage(owner, depth)(x[company[0]]))
        return {name: x[name].flatten(1) for name in tasks}

    def features_by_task(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        x = dict(inputs)
        for depth, companies in enumerate(self._companies(tuple(inputs))):
            for owner, company in companies.items():
                joined = {name: x[name] for name in company}
                stage = self._stage(owner, depth)
                x |= apply_to_each(stage, joined, self.isolate_task_graphs)
        return {name: x[name].flatten(1) for name in inputs}

    def _companies(self, tasks: Sequence[str]) -> list[dict[str, list[str]]]:
        """For each stage: the owner of each copy -> those of `tasks` that pass through this copy.

        Tasks that pass through one copy have passed through the same copies of all earlier stages.
        """
        companies: list[dict[str, list[str]]] = [{} for _ in self.owners[self.task_names[0]]]
        for name in tasks:
            for depth, owner in enumerate(self.owners[name]):
                companies[depth].setdefault(owner, []).append(name)
        return companies

    def _stage(self, owner: str, depth: int) -> nn.Module:
        return self.trunks.get_submodule(f"{owner}.stages.{depth}")


class BranchingSpec(SharingSpecBase):
    """A tree of tasks over the stages of the encoder: each branches off an earlier one.

    `sharing.tree.TASK.follows` is the earlier task, in the order of the data, and
    `sharing.tree.TASK.stages` the number of first stages that the two share; with 0 the task has a
    separate network. A task that `tree` does not name shares all stages with the first task, so
    that the empty tree is hard sharing.

    Example: `sharing: {name: branching, tree: {right: {follows: left, stages: 1}}}`
    """

    name: Literal["branching"] = "branching"
    helps: ClassVar[str] = "some tasks belong together and others do not: the tree can be searched"
    needs_stages: ClassVar[bool] = True
    tree: Mapping[str, Branch] = {}

    def check(self, tasks: Sequence[Task], encoder: Encoder) -> tuple[str, str] | None:
        names, num_stages = [task.name for task in tasks], len(encoder.stages)
        for name, branch in self.tree.items():
            key = f"tree.{name}"
            if name not in names:
                return key, f"expected one of the tasks {names}, got '{name}'."
            earlier = names[: names.index(name)]
            if not earlier:
                return (
                    key,
                    f"expected no branch of '{name}', the first of the tasks {names}, got one. "
                    "Remove it.",
                )
            if branch.follows not in earlier:
                close = difflib.get_close_matches(branch.follows, earlier, n=1)
                if close:
                    did_you_mean = f" Did you mean {close[0]}?"
                else:
                    did_you_mean = ""
                return (
                    f"{key}.follows",
                    f"expected a task before '{name}', one of {earlier}, got "
                    f"'{branch.follows}'.{did_you_mean}",
                )
            if branch.stages > num_stages:
                return (
                    f"{key}.stages",
                    f"expected at most the {num_stages} stages of the encoder, got "
                    f"{branch.stages}. Lower it or deepen the encoder.",
                )
        return super().check(tasks, encoder)

    def num_encoders(self, num_tasks: int) -> int:
        return 1 + len(self.tree)

    def build(
        self, tasks: Sequence[Task], encoders: Sequence[Encoder], isolate_task_graphs: bool = False
    ) -> Branching:
        owners = self.owners([task.name for task in tasks], len(encoders[0].stages))
        return Branching(tasks, encoders, owners, isolate_task_graphs)

    def owners(self, names: Sequence[str], num_stages: int) -> dict[str, tuple[str, ...]]:
        """Whose copy of each stage each task passes through."""
        first = names[0]
        owners = {first: (first,) * num_stages}
        for name in names[1:]:
            branch = self.tree.get(name, Branch(follows=first, stages=num_stages))
            owners[name] = owners[branch.follows][: branch.stages] + (name,) * (
                num_stages - branch.stages
            )
        return owners
