"""Branching: trees over the encoder's stages."""

import itertools
import random
from typing import Any

import pytest
import torch

from raymtl.encoders import ConvSpec, MLPSpec
from raymtl.encoders.norm import NormedSpec
from raymtl.sharing import BranchingSpec, SoftSpec
from raymtl.tasks import classification, regression
from raymtl.types import UserError
from tests.conftest import experiment
from tests.narrowing import checked
from tests.sharing.laws import assert_predicts_as_hard_sharing, assert_vmap_is_a_loop, moved

pytestmark = pytest.mark.usefixtures("float64")

TASKS = (
    classification("a", 4),
    classification("b", 3),
    regression("c", 0.0, 1.0),
    regression("d", 0.0, 1.0),
)
NAMES = tuple(task.name for task in TASKS)
SHAPE = (1, 6, 6)
ENCODERS = {"mlp": MLPSpec(hidden=(5, 4)), "conv": ConvSpec(channels=(4, 4))}
over_the_encoders = pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)


def build(tree: Any, encoder: Any = ENCODERS["mlp"], num_tasks: int = 4) -> Any:
    spec, tasks = BranchingSpec(tree=tree), TASKS[:num_tasks]
    assert spec.check(tasks, encoder.build(SHAPE)) is None
    return spec.build(tasks, [encoder.build(SHAPE) for _ in range(spec.num_encoders(num_tasks))])


def tree_of(*branches: Any) -> Any:
    """(follows, stages) of the second task, the third and so on."""
    return {
        name: {"follows": follows, "stages": stages}
        for name, (follows, stages) in zip(NAMES[1:], branches, strict=False)
    }


def stages_reached(model: Any, encoder: Any) -> dict[str, dict[int, set[str]]]:
    """Task -> stage -> the trunks' parameters that autograd finds in its prediction."""
    named = {name: value for name, value in model.named_parameters() if name.startswith("trunks.")}
    predictions = model(torch.randn(3, *SHAPE))
    reached = {}
    for task, prediction in predictions.items():
        grads = torch.autograd.grad(
            prediction.sum(), tuple(named.values()), allow_unused=True, retain_graph=True
        )
        mine = [name for name, gradient in zip(named, grads, strict=True) if gradient is not None]
        depths = range(len(encoder.build(SHAPE).stages))
        reached[task] = {
            depth: {name for name in mine if name.split(".")[3] == str(depth)} for depth in depths
        }
    return reached


@over_the_encoders
def test_the_empty_tree_is_hard_sharing(encoder: NormedSpec) -> None:
    model, trunk = build({}, encoder), encoder.build(SHAPE)
    trunk.stages.load_state_dict(model.trunks["a"]["stages"].state_dict())
    assert_predicts_as_hard_sharing(model, trunk, TASKS, SHAPE, exactly=True)
    assert BranchingSpec().num_encoders(4) == 1


@over_the_encoders
def test_parting_before_the_first_stage_is_independent_networks(encoder: NormedSpec) -> None:
    model = build(tree_of(("a", 0), ("b", 0), ("a", 0)), encoder)
    towers = [encoder.build(SHAPE) for _ in TASKS]
    for name, tower in zip(NAMES, towers, strict=True):
        tower.stages.load_state_dict(model.trunks[name]["stages"].state_dict())
    independent = SoftSpec(strength=0.0).build(TASKS, towers)
    independent.heads = model.heads
    inputs = torch.randn(3, *SHAPE)
    for task, prediction in model(inputs).items():
        torch.testing.assert_close(prediction, independent(inputs)[task], rtol=0, atol=0)
    assert not model.shared


@over_the_encoders
def test_trees_share_the_stages_of_common_ancestry(encoder: NormedSpec) -> None:
    """Ancestry is walked here link by link, from each stage down to whoever does not follow at it."""
    generator = random.Random(0)
    for _ in range(6):
        tree = tree_of(
            *((generator.choice(NAMES[:i]), generator.randint(0, 2)) for i in range(1, 4))
        )
        model = build(tree, encoder)
        reached = stages_reached(model, encoder)

        def ancestor(task: str, depth: int, tree: Any = tree) -> str:
            while task in tree and depth < tree[task]["stages"]:
                task = tree[task]["follows"]
            return task

        for one, other in itertools.combinations(NAMES, 2):
            for depth in range(2):
                together = ancestor(one, depth) == ancestor(other, depth)
                assert reached[one][depth] and reached[other][depth]
                common = reached[one][depth] & reached[other][depth]
                assert common == (reached[one][depth] if together else set())
        everything = set().union(
            *(part for of_task in reached.values() for part in of_task.values())
        )
        assert everything == {
            name for name, _ in model.named_parameters() if name.startswith("trunks.")
        }


def set_partitions(items: Any) -> Any:
    if not items:
        return [[]]
    first, rest = items[0], items[1:]
    found = []
    for partition in set_partitions(rest):
        found.append([[first], *partition])
        found += [
            [*partition[:i], [first, *block], *partition[i + 1 :]]
            for i, block in enumerate(partition)
        ]
    return found


def test_all_trees_of_three_tasks_are_built() -> None:
    """A tree is a chain of partitions of the tasks, stage by stage, each a refinement of the one before."""
    partitions = [
        frozenset(map(frozenset, partition)) for partition in set_partitions(list(NAMES[:3]))
    ]
    assert len(set(partitions)) == 5
    chains = {
        (first, second)
        for first, second in itertools.product(partitions, repeat=2)
        if all(any(block <= larger for larger in first) for block in second)
    }
    assert len(chains) == 12

    expressed = set()
    for b, follows, c in itertools.product(range(3), "ab", range(3)):
        reached = stages_reached(
            build(tree_of(("a", b), (follows, c)), num_tasks=3), ENCODERS["mlp"]
        )
        expressed.add(
            tuple(
                frozenset(
                    frozenset(
                        other for other in NAMES[:3] if reached[other][depth] & reached[task][depth]
                    )
                    for task in NAMES[:3]
                )
                for depth in range(2)
            )
        )
    assert expressed == chains


def test_a_parameter_tells_its_owner_and_its_stage() -> None:
    model = build({"b": {"follows": "a", "stages": 1}, "c": {"follows": "b", "stages": 2}})
    trunks = {
        name.rpartition(".")[0] for name, _ in model.named_parameters() if name.startswith("trunks")
    }
    assert trunks == {"trunks.a.stages.0.1", "trunks.a.stages.1.1", "trunks.b.stages.1.1"}
    assert {name.rpartition(".")[0] for name in model.shared} == trunks  # a and d; all; b and c


def test_every_copy_runs_once_where_needed() -> None:
    model = build({"b": {"follows": "a", "stages": 1}, "c": {"follows": "b", "stages": 2}})
    calls: list[str] = []
    for name in ("a.stages.0", "a.stages.1", "b.stages.1"):
        model.trunks.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.append(name)
        )
    inputs = torch.randn(2, *SHAPE)
    model.features(inputs, ("c",))
    assert calls == ["a.stages.0", "b.stages.1"]
    calls.clear()
    model(inputs)
    assert sorted(calls) == ["a.stages.0", "a.stages.1", "b.stages.1"]
    calls.clear()
    model(dict.fromkeys(NAMES, inputs))
    assert sorted(calls) == ["a.stages.0", "a.stages.1", "b.stages.1"]


@pytest.mark.parametrize(
    "tree, says",
    [
        (
            {"sun": ("left", 1)},
            r"tree\.sun: expected one of the tasks .*'left', 'right', 'sum'.* Did you mean sum",
        ),
        (
            {"sum": ("lefd", 1)},
            r"tree\.sum\.follows: expected a task before 'sum', .*'left', 'right'.* Did you mean left",
        ),
        (
            {"right": ("sum", 1)},
            r"tree\.right\.follows: expected a task before 'right', one of \['left'\], got 'sum'",
        ),
        (
            {"right": ("right", 1)},
            r"tree\.right\.follows: expected a task before 'right', one of \['left'\]",
        ),
        (
            {"left": ("right", 1)},
            r"tree\.left: expected no branch of 'left', the first of the tasks .*Remove it",
        ),
        (
            {"sum": ("right", 3)},
            r"tree\.sum\.stages: expected at most the 2 stages of the encoder, got 3",
        ),
    ],
)
def test_what_is_no_tree_is_refused_by_name(tree: dict[str, Any], says: str) -> None:
    nodes = {
        name: {"follows": follows, "stages": stages} for name, (follows, stages) in tree.items()
    }
    with pytest.raises(UserError, match=says):
        experiment(sharing={"name": "branching", "tree": nodes})


def test_plain_dotted_names_grow_the_tree() -> None:
    grown = experiment(sharing__name="branching").override(
        {"sharing.tree.sum.follows": "right", "sharing.tree.sum.stages": 1}
    )
    assert checked(grown.sharing, BranchingSpec).owners(("left", "right", "sum"), 2)["sum"] == (
        "left",
        "sum",
    )
    assert grown.flat()["sharing.tree.sum.stages"] == 1


@over_the_encoders
def test_inputs_join_as_far_as_their_tasks(encoder: NormedSpec) -> None:
    model = build(tree_of(("a", 1), ("b", 2), ("a", 0)), encoder)
    own = {task: torch.randn(1 + i, *SHAPE) for i, task in enumerate(NAMES)}
    together = model(own)
    for task in NAMES:
        torch.testing.assert_close(together[task], model(own[task])[task])


@over_the_encoders
def test_vmap_equals_a_loop_in_a_tree(encoder: NormedSpec) -> None:
    model = build(tree_of(("a", 1), ("b", 2), ("a", 0)), encoder)
    assert_vmap_is_a_loop(model, torch.randn(2, 3, *SHAPE), moved(model))
