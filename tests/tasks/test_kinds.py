"""Laws of every kind of task: what is missing has no say, sums add up, vmap is the loop, gradients are right."""

import itertools
from typing import get_args

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map

from raymtl.schema.components import registered_kinds
from raymtl.tasks import (
    binary,
    classification,
    depth,
    detection,
    kinds,
    label_counts,
    loss_sums,
    metric_names,
    metric_sums,
    metric_values,
    multilabel,
    normals,
    regression,
    segmentation,
)
from raymtl.types import Batch, Counts, LabelForm, LabelStatistics, Metric, Task

pytestmark = pytest.mark.usefixtures("float64")

SIZE = (10, 12)
KINDS: dict[str, Task] = {
    task.name: task
    for task in (
        classification("classification", 3),
        binary("binary"),
        multilabel("multilabel", 4),
        regression("squared", 1.0, 2.0),
        regression("absolute", 1.0, 2.0, loss="absolute"),
        regression("huber", 1.0, 0.5, loss="huber"),
        regression("vector", (1.0, -1.0, 0.0), (2.0, 1.0, 0.5)),
        segmentation("segmentation", 3, SIZE, width=4),
        depth("depth", SIZE, mean=1.0, std=0.7, width=4),
        normals("normals", SIZE, width=4),
        detection("detection", 2, SIZE, stride=3, width=4),
    )
}
if "own_kind" in registered_kinds():
    own = kinds.kind_named("own_kind")
    KINDS["own_kind"] = own.make("own_kind", LabelStatistics(), SIZE)
MAPS = (3, 4, 5)
LABEL_FORMS = get_args(LabelForm)
over_the_kinds = pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
over_those_with_parts = pytest.mark.parametrize(
    "task",
    [t for t in KINDS.values() if t.label_mask is not None],
    ids=[k for k, t in KINDS.items() if t.label_mask],
)


def random_target(task: Task, number: int, seed: int = 0) -> Tensor:
    """Labels of the kind, with some parts of each missing where it knows of such."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    hole = rand(number, *SIZE) < 0.3
    if task.kind.name in ("classification", "binary"):
        return torch.randint(max(task.out_features, 2), (number,), generator=generator)
    if task.kind.predicts_numbers and task.out_features == 1:
        return 4 * rand(number) - 2
    if task.kind.name == "regression":
        return torch.where(
            rand(number, task.out_features) < 0.3,
            torch.nan,
            4 * rand(number, task.out_features) - 2,
        )
    if task.kind.name == "multilabel":
        values = torch.randint(2, (number, task.out_features), generator=generator).double()
        return torch.where(rand(number, task.out_features) < 0.3, torch.nan, values)
    if task.kind.name == "segmentation":
        return torch.where(hole, -1, torch.randint(3, (number, *SIZE), generator=generator))
    if task.kind.name == "depth":
        return torch.where(hole, 0.0, 0.2 + 3 * rand(number, *SIZE))
    if task.kind.name == "normals":
        return torch.where(hole[:, None], 0.0, 2 * rand(number, 3, *SIZE) - 1)
    corner, extent = rand(number, 5, 2) * 7, 2 + 4 * rand(number, 5, 2)
    label = torch.randint(-1, 2, (number, 5, 1), generator=generator).double()
    return torch.cat([label, corner, corner + extent], -1)


def random_prediction(task: Task, number: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return 2 * torch.randn(
        number, *head_of(task)(torch.zeros(1, 60)).shape[1:], generator=generator
    )


def head_of(task: Task) -> nn.Module:
    return task.head(MAPS)


def sums_of(
    task: Task, prediction: Tensor, target: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss sum, metric sums and count of a batch."""
    batch = Batch(
        torch.zeros(len(target)), {task.name: target}, {} if mask is None else {task.name: mask}
    )
    found = {task.name: prediction}
    return (
        loss_sums([task], found, batch),
        metric_sums([task], found, batch),
        label_counts([task], batch),
    )


def nonsense(target: Tensor) -> Tensor:
    return torch.full_like(target, torch.nan if target.is_floating_point() else -77)


def test_every_kind_is_tested_here() -> None:
    names = [kind.name for kind in kinds.KINDS]
    name_of_a_kind: TypeAdapter[str] = TypeAdapter(kinds.KindName)
    assert name_of_a_kind.json_schema()["enum"] == names and len(set(names)) == len(names)
    assert [name_of_a_kind.validate_python(name) for name in names] == names
    assert [kinds.kind_named(name) for name in names] == list(kinds.KINDS)
    assert {task.kind for task in KINDS.values()} >= set(kinds.KINDS)


def test_every_form_of_label_has_columns_in_predictions() -> None:
    from raymtl.evaluation.prediction_columns import COLUMNS

    assert set(COLUMNS) == set(LABEL_FORMS) == {kind.label_form for kind in kinds.KINDS}


@over_the_kinds
def test_masked_examples_have_no_say_whatever_they_hold(task: Task) -> None:
    target, prediction = random_target(task, 9), random_prediction(task, 9).requires_grad_()
    mask = torch.arange(9) % 3 > 0
    held = torch.where(mask.reshape(-1, *[1] * (target.ndim - 1)), target, nonsense(target))
    hidden = sums_of(task, prediction, held, mask)
    for one, other in zip(hidden, sums_of(task, prediction[mask], target[mask]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(hidden[0].sum(), prediction)
    assert (
        (gradient[~mask] == 0).all() and (gradient[mask] != 0).any() and gradient.isfinite().all()
    )


@over_those_with_parts
def test_missing_parts_of_a_label_have_no_say(task: Task) -> None:
    """Another prediction there changes neither loss nor score, nor does nan in place of the mark of what is missing."""
    target, prediction = random_target(task, 6), random_prediction(task, 6)
    gone = {
        "multilabel": lambda: target.isnan(),
        "regression": lambda: target.isnan(),
        "segmentation": lambda: (target < 0)[:, None],
        "depth": lambda: (target == 0)[:, None],
        "normals": lambda: (target == 0).all(1, keepdim=True),
    }[task.kind.name]().expand_as(prediction)
    assert gone.any() and not gone.all()
    other = torch.where(gone, random_prediction(task, 6, seed=1), prediction).requires_grad_()
    marked = target
    if task.kind.name in ("depth", "normals"):
        marked = torch.where(target == 0, torch.nan, target)
    own, moved = sums_of(task, prediction, target), sums_of(task, other, marked)
    for one, two in zip(own, moved, strict=True):
        assert torch.equal(one, two)
    (gradient,) = torch.autograd.grad(moved[0].sum(), other)
    assert (gradient[gone] == 0).all() and (gradient[~gone] != 0).any()


@over_those_with_parts
def test_all_parts_missing_is_no_label(task: Task) -> None:
    target, prediction = random_target(task, 5), random_prediction(task, 5)
    missing = torch.full_like(target, torch.nan if target.is_floating_point() else -1)
    held = torch.where(
        torch.tensor([True, False, True, True, False]).reshape(-1, *[1] * (target.ndim - 1)),
        target,
        missing,
    )
    rows = torch.tensor([0, 2, 3])
    for one, other in zip(
        sums_of(task, prediction, held), sums_of(task, prediction[rows], target[rows]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    losses = task.loss(prediction, missing)
    assert (losses == 0).all()


@over_the_kinds
def test_filler_labels_leave_no_gradient(
    task: Task,
) -> None:
    """They have the shape of the labels."""
    target = torch.zeros(4, *task.target_shape, dtype=torch.int64)
    assert task.kind.name == "detection" or target.shape == random_target(task, 4).shape
    prediction = random_prediction(task, 4).requires_grad_()
    losses, sums, counts = sums_of(task, prediction, target, torch.zeros(4, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(losses.sum(), prediction, create_graph=True)
    assert losses == 0 and counts == 0 and not sums.any() and (gradient == 0).all()
    if gradient.requires_grad:
        (second,) = torch.autograd.grad(gradient.sum(), prediction)
        assert (second == 0).all()


@over_the_kinds
def test_vmap_equals_the_loop(task: Task) -> None:
    head = head_of(task)
    params: dict[str, Tensor] = dict(head.named_parameters())
    features = torch.randn(3, 4, 60)
    targets = torch.stack([random_target(task, 4, seed) for seed in range(3)])

    def of_one(x: Tensor, y: Tensor) -> tuple[Tensor | Counts, ...]:
        prediction = functional_call(head, params, (x,))
        return task.loss(prediction, y), *(
            metric.update(prediction, y) for metric in task.metrics.values()
        )

    together = vmap(of_one)(features, targets)
    apart = tree_map(lambda *leaves: torch.stack(leaves), *map(of_one, features, targets))
    for one, other in zip(tree_leaves(together), tree_leaves(apart), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@over_the_kinds
@pytest.mark.parametrize("seed", range(3))
def test_scores_do_not_depend_on_the_shards(task: Task, seed: int) -> None:
    number = 11
    target, prediction = random_target(task, number, seed), random_prediction(task, number, seed)
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.randperm(number + 1, generator=generator)[:3].sort().values.tolist()
    order = torch.randperm(number, generator=generator)
    shards = [order[start:stop] for start, stop in itertools.pairwise([0, *cuts, number])]
    totals = [
        sum(parts)
        for parts in zip(*(sums_of(task, prediction[s], target[s]) for s in shards), strict=True)
    ]
    whole = sums_of(task, prediction, target)
    torch.testing.assert_close(totals[0], whole[0], rtol=1e-12, atol=1e-12)
    assert totals[2] == whole[2]
    shared, alone = (metric_values([task], sums, counts) for _, sums, counts in (totals, whole))
    assert list(alone) == metric_names([task])
    for name, value in alone.items():
        assert value.isfinite() and value.ndim == 0, name
        torch.testing.assert_close(shared[name], value, rtol=1e-12, atol=1e-12)


@over_the_kinds
def test_scores_of_nothing_are_no_numbers(task: Task) -> None:
    none = metric_values(
        [task], torch.zeros(sum(m.state_size for m in task.metrics.values())), torch.zeros(1)
    )
    assert all(value.isnan() for value in none.values())


@over_the_kinds
def test_scores_are_computed_in_batches(task: Task) -> None:
    batches = [
        sums_of(task, random_prediction(task, 3, seed), random_target(task, 3, seed))
        for seed in range(4)
    ]
    sums, counts = (torch.stack([batch[i] for batch in batches]).reshape(2, 2, -1) for i in (1, 2))
    for name, together in metric_values([task], sums, counts).items():
        apart = torch.stack([metric_values([task], s, c)[name] for _, s, c in batches]).reshape(
            2, 2
        )
        torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12, equal_nan=True)


@over_the_kinds
def test_losses_pass_gradgradcheck(task: Task) -> None:
    """And gradcheck."""
    target, prediction = random_target(task, 2), random_prediction(task, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: task.loss(p, target), prediction)
    # Along one direction: the whole of the second order is the square of many pixels.
    direction = torch.randn_like(prediction)

    def slope(step: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(
            task.loss(prediction + step * direction, target).sum(), step, create_graph=True
        )
        return gradient

    at = torch.zeros((), requires_grad=True)
    own = slope(at)
    (curvature,) = torch.autograd.grad(own, at, allow_unused=True) if own.requires_grad else (None,)
    numeric = (
        slope(torch.tensor(1e-6, requires_grad=True))
        - slope(torch.tensor(-1e-6, requires_grad=True))
    ) / 2e-6
    torch.testing.assert_close(
        curvature if curvature is not None else torch.zeros(()),
        numeric.detach(),
        rtol=1e-5,
        atol=1e-6,
    )


@over_the_kinds
def test_heads_fit_loss_and_decoder(task: Task) -> None:
    prediction = head_of(task)(torch.randn(2, 60))
    assert prediction.shape[1] == task.out_features
    assert task.loss(prediction, random_target(task, 2)).shape == (2,)
    assert len(task.decode(prediction)) == 2
    if task.encode_target is not None:
        encoded = task.encode_target(random_target(task, 5))
        assert encoded.shape == (5, task.out_features) and encoded.isfinite().all()


@over_the_kinds
def test_gradient_steps_lower_the_loss(
    task: Task,
) -> None:
    """In either precision."""
    for dtype in (torch.float64, torch.float32):
        target = random_target(task, 4)
        target = target.to(dtype) if target.is_floating_point() else target
        prediction = random_prediction(task, 4).to(dtype)
        before = task.loss(prediction, target)
        assert before.dtype == dtype and (before >= 0).all()
        for _ in range(30):
            prediction = prediction.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(task.loss(prediction, target).sum(), prediction)
            prediction = prediction - 0.1 * gradient / gradient.norm() * prediction.detach().norm()
        assert task.loss(prediction, target).sum() < before.sum()


@pytest.mark.parametrize(
    "task",
    [t for t in KINDS.values() if t.quadratic],
    ids=[k for k, t in KINDS.items() if t.quadratic],
)
def test_newton_steps_minimise_quadratic_losses(task: Task) -> None:
    target, prediction = random_target(task, 3), random_prediction(task, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(
        task.loss(prediction, target).sum(), prediction, create_graph=True
    )
    (curvature,) = torch.autograd.grad(gradient.sum(), prediction)
    best = prediction - torch.where(curvature != 0, gradient / curvature, 0.0)
    torch.testing.assert_close(task.loss(best, target), torch.zeros(3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
def test_metric_sums_count_beyond_float32(sparse: bool) -> None:
    """2^24 + 1 is no number of float32."""

    def update(prediction: Tensor, target: Tensor) -> Tensor | Counts:
        if sparse:
            return Counts(torch.zeros(len(prediction), 1, dtype=torch.int64), prediction[:, None])
        return prediction

    task = regression("a", 0.0, 1.0)._replace(metrics={"sum": Metric(update, True)})
    prediction = torch.tensor([2.0**24, 1.0], dtype=torch.float32)
    batch = Batch(torch.zeros(2), {"a": torch.zeros(2)}, {})
    assert metric_sums([task], {"a": prediction}, batch).tolist() == [2**24 + 1]
