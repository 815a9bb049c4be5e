"""Transfer as plain torch: laws of its three ways on data that nothing else here has; no runs, no files."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.adaptation.transfer import (
    Anchor,
    CrossEntropy,
    Examples,
    FeatureTransfer,
    Huber,
    ModelTransfer,
    NewTask,
    Optimiser,
    Squared,
    TargetTransfer,
    Teacher,
    descend,
    distillation,
    parse_transfer,
    split,
)
from raymtl.adaptation.transfer.base import Transfer
from raymtl.adaptation.transfer.descent import Objective
from raymtl.encoders import MLPSpec
from raymtl.types import DivergedError, UserError

DIM, WIDTH = 4, 6
ROUGH = Optimiser(name="sgd", lr=0.1, schedule="constant", steps=12, batch_size=1000, look_every=4)


def body() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(DIM, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())


def teacher(predict: Callable[[Tensor], Tensor] | None = None) -> Teacher:
    return Teacher(body(), (DIM,), predict)


def blobs(number: int = 60, classes: int = 3) -> Examples:
    """A Gaussian cloud for each class."""
    generator = torch.Generator().manual_seed(2)
    centres = 2 * torch.randn(classes, DIM, generator=generator)
    targets = torch.arange(number) % classes
    return Examples(centres[targets] + 0.5 * torch.randn(number, DIM, generator=generator), targets)


def curve(number: int = 60) -> Examples:
    """Numbers far from 0 and of a spread far from 1."""
    inputs = torch.randn(number, DIM, generator=torch.Generator().manual_seed(3))
    return Examples(inputs, 100 + 7 * (inputs[:, 0] - inputs[:, 1].square()))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def test_feature_transfer_leaves_the_body_bit_identical() -> None:
    source = teacher()
    before = state(source.body)
    result = FeatureTransfer(optimiser=ROUGH).fit(source, blobs())
    body_params = dict(result.network.body.named_parameters())
    assert all(value.grad is None and not value.requires_grad for value in body_params.values())
    assert all(torch.equal(value, before[name]) for name, value in body_params.items())
    assert all(value.grad is not None for value in result.network.head.parameters())
    assert all(
        value.requires_grad for value in source.body.parameters()
    )  # the caller's own module is not touched


@pytest.mark.usefixtures("float64")
def test_feature_transfer_tends_to_least_squares() -> None:
    source, examples = teacher(), curve()
    settings = Optimiser(lr=0.05, steps=1500, batch_size=1000)
    way = FeatureTransfer(optimiser=settings, held_out=0, task=NewTask(kind="regression"))
    result = way.fit(source, examples)
    with torch.no_grad():
        features = torch.cat([source.body(examples.inputs), torch.ones(len(examples.inputs), 1)], 1)
        best = features @ torch.linalg.lstsq(features, examples.targets[:, None]).solution
        fitted = result.task.decode(result.network(examples.inputs))
    least, reached = (
        (values - examples.targets).square().mean() for values in (best[:, 0], fitted)
    )
    assert least < 0.8 * examples.targets.var()
    assert least <= reached < 1.01 * least


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_infinite_l2_sp_trains_the_head_alone(
    name: str,
) -> None:
    """The body stays the same to the bit."""
    source = teacher()
    settings = ROUGH.model_copy(update={"name": name})
    result = ModelTransfer(l2_sp=1e30, optimiser=settings).fit(source, blobs())
    start = ModelTransfer(optimiser=settings).network(source, result.task)
    assert all(
        torch.equal(value, state(source.body)[k])
        for k, value in result.network.body.named_parameters()
    )
    assert not torch.equal(
        result.network.get_parameter("head.weight"), start.get_parameter("head.weight")
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.1), ("adam", 0.01)])
def test_without_l2_sp_it_is_plain_fine_tuning(name: str, lr: float) -> None:
    """Against a loop written down once more."""
    source, examples = teacher(), blobs()
    settings = Optimiser(name=name, lr=lr, schedule="constant", steps=15, batch_size=1000)
    way = ModelTransfer(l2_sp=0, held_out=0, optimiser=settings)
    result = way.fit(source, examples)
    network = way.network(source, result.task)
    optimizer = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name](
        network.parameters(), lr=lr
    )
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(network(examples.inputs), examples.targets).backward()
        optimizer.step()
    for key, value in network.named_parameters():
        assert torch.equal(dict(result.network.named_parameters())[key], value), key


@pytest.mark.usefixtures("float64")
def test_the_penaltys_gradient_is_the_papers() -> None:
    """Twice lambda times the distance."""
    start, value = torch.randn(5), torch.randn(5).requires_grad_()
    (gradient,) = torch.autograd.grad(Anchor(start, 0.3).penalty(value), value)
    torch.testing.assert_close(gradient, 0.6 * (value.detach() - start), rtol=1e-14, atol=0)


class Point(nn.Module):
    """A point w; its loss is 1/2 (w - a)' A (w - a)."""

    def __init__(self) -> None:
        super().__init__()
        root = torch.randn(3, 3)
        self.A, self.a, self.start = root @ root.T + torch.eye(3), torch.randn(3), torch.randn(3)
        self.w = nn.Parameter(self.start.clone())

    def loss(self, rows: Tensor) -> Tensor:
        apart = self.w - self.a
        return (0.5 * apart @ self.A @ apart).expand(len(rows))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.05), ("adam", 0.02)])
@pytest.mark.parametrize("strength", [0.0, 0.3, 50.0])
def test_anchored_descent_ends_where_gradients_cancel(
    name: str, lr: float, strength: float
) -> None:
    """(A + 2 lambda I) w = A a + 2 lambda w_0, for both optimisers, at strengths that would make plain SGD diverge."""
    point = Point()
    settings = Optimiser(name=name, lr=lr, steps=1200)
    objective = Objective(point.loss, 1, {"w": Anchor(point.start, strength)})
    descend(settings, point, objective, lambda row: None)
    both = point.A + 2 * strength * torch.eye(3)
    expected = torch.linalg.solve(both, point.A @ point.a + 2 * strength * point.start)
    torch.testing.assert_close(point.w.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_an_anchored_sgd_step_is_proximal() -> None:
    point, lr, strength = Point(), 0.07, 2.0
    point.w.data += 0.5
    at = point.w.detach().clone()
    settings = Optimiser(name="sgd", lr=lr, schedule="constant", steps=1)
    objective = Objective(point.loss, 1, {"w": Anchor(point.start, strength)})
    descend(settings, point, objective, lambda row: None)
    moved = at - lr * point.A @ (at - point.a)
    torch.testing.assert_close(
        point.w.detach(),
        (moved + 2 * lr * strength * point.start) / (1 + 2 * lr * strength),
        rtol=1e-13,
        atol=0,
    )


def student(**values: Any) -> TargetTransfer:
    return TargetTransfer(student=MLPSpec(hidden=(5,)), optimiser=ROUGH, **values)


def constant_teacher(logits: Tensor) -> Teacher:
    """A teacher that says the same of every example with the same inputs."""
    return teacher(lambda inputs: logits[: len(inputs)])


@pytest.mark.usefixtures("float64")
def test_distillation_that_does_not_listen_is_cross_entropy() -> None:
    examples = blobs()
    fits = [
        student(alpha=0.0, temperature=t).fit(
            constant_teacher(scale * torch.randn(60, 3)), examples
        )
        for t, scale in ((1.0, 1.0), (4.0, 9.0))
    ]
    first, second = (state(fit.network) for fit in fits)
    assert all(torch.equal(first[name], second[name]) for name in first)
    made = fits[0]
    with torch.no_grad():
        expected = F.cross_entropy(made.network(made.trained_on.inputs), made.trained_on.targets)
        learned = student(alpha=0.0).learned(
            constant_teacher(torch.zeros(60, 3)), made.network, made.task, made.trained_on
        )
        rows = torch.arange(len(made.trained_on.targets))
        assert learned.loss(made.trained_on.inputs, rows).mean() == pytest.approx(
            float(expected), rel=1e-12
        )


@pytest.mark.usefixtures("float64")
def test_distillation_is_the_scaled_kl_divergence() -> None:
    """Times the square of the temperature."""
    s, t = torch.randn(2, 7, 4)
    for temperature in (0.5, 1.0, 3.0):
        p, q = (
            (x / temperature).exp() / (x / temperature).exp().sum(-1, keepdim=True) for x in (t, s)
        )
        expected = temperature**2 * (p * (p / q).log()).sum(-1)
        torch.testing.assert_close(
            distillation(s, t, temperature), expected, rtol=1e-10, atol=1e-12
        )
    torch.testing.assert_close(distillation(t, t, 2.0), torch.zeros(7), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_hot_distillation_matches_centred_logits() -> None:
    s, t = torch.randn(2, 5, 4)
    errors = []
    for temperature in (1.0, 10.0, 100.0, 1000.0):
        leaf = s.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(distillation(leaf, t, temperature).sum(), leaf)
        limit = ((s - s.mean(-1, keepdim=True)) - (t - t.mean(-1, keepdim=True))) / s.shape[-1]
        errors.append(float((gradient - limit).norm() / limit.norm()))
    assert errors[-1] < 2e-3
    assert all(later < 0.2 * earlier for earlier, later in itertools.pairwise(errors))


def test_distilled_students_ignore_the_labels() -> None:
    """Where they only listen to the teacher."""
    examples = blobs()
    wrong = (examples.targets + 1) % 3
    source = teacher(lambda inputs: 8 * F.one_hot((_nearest(inputs, examples) + 1) % 3, 3).float())
    settings = Optimiser(lr=0.02, steps=200)
    result = TargetTransfer(
        student=MLPSpec(hidden=(16,)), alpha=1.0, held_out=0, optimiser=settings
    ).fit(source, examples)
    with torch.no_grad():
        said = result.network(examples.inputs).argmax(-1)
    assert (said == wrong).float().mean() > 0.9


def _nearest(inputs: Tensor, examples: Examples) -> Tensor:
    return examples.targets[torch.cdist(inputs, examples.inputs).argmin(1)]


def test_regression_students_reach_their_teacher() -> None:
    """In the unit of the target."""
    examples = curve()
    source = teacher(lambda inputs: 100 + 7 * inputs[:, 2])
    way = TargetTransfer(
        student=MLPSpec(hidden=(32,)), alpha=1.0, held_out=0, task=NewTask(kind="regression"),
        optimiser=Optimiser(lr=0.02, steps=300),
    )  # fmt: skip
    result = way.fit(source, examples)
    with torch.no_grad():
        said = result.task.decode(result.network(examples.inputs))
    assert (said - 100 - 7 * examples.inputs[:, 2]).abs().mean() < 1.0


def test_matching_features_makes_teachers_predictable() -> None:
    """By how well a linear map of the student's features gives the teacher's, which another space cannot be read off."""
    examples = blobs(120)
    source = teacher()
    unexplained = {}
    for alpha in (0.0, 0.9):
        way = TargetTransfer(
            student=MLPSpec(hidden=(8,)), match="features", alpha=alpha, held_out=0,
            optimiser=Optimiser(lr=0.02, steps=400),
        )  # fmt: skip
        network = way.fit(source, examples).network
        with torch.no_grad():
            own = torch.cat([network.body(examples.inputs), torch.ones(120, 1)], 1)
            hints = source.body(examples.inputs)
            rest = hints - own @ torch.linalg.lstsq(own, hints, driver="gelsd").solution
        unexplained[alpha] = float(rest.square().sum() / (hints - hints.mean(0)).square().sum())
    assert unexplained[0.9] < 0.7 * unexplained[0.0]


def test_selection_takes_the_lowest_held_out_loss() -> None:
    seen: list[Mapping[str, float | None]] = []
    way = ModelTransfer(l2_sp=0, optimiser=Optimiser(lr=0.05, steps=60, look_every=7))
    result = way.fit(teacher(), blobs(30), seen.append)
    looks = {
        row["step"]: row["val.loss"] for row in result.course.rows if row["val.loss"] is not None
    }
    assert list(looks) == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert result.course.step == min(looks, key=looks.__getitem__)
    with torch.no_grad():
        loss = result.task.loss(
            result.network(result.held_out.inputs), result.held_out.targets
        ).mean()
    assert float(loss) == pytest.approx(min(looks.values()), rel=1e-6)
    assert [row["step"] for row in seen] == list(range(1, 61))


def test_a_transfer_ends_when_its_patience_does() -> None:
    """It is the whole descent up to there, with the same parameters."""
    settings = Optimiser(lr=0.3, schedule="constant", steps=200, look_every=5, patience=None)
    whole = ModelTransfer(l2_sp=0, optimiser=settings).fit(teacher(), blobs(30))
    patient = settings.model_copy(update={"patience": 4})
    ended = ModelTransfer(l2_sp=0, optimiser=patient).fit(teacher(), blobs(30))
    looks = [row["val.loss"] for row in whole.course.rows if row["val.loss"] is not None]
    waits = [number - looks.index(min(looks[: number + 1])) for number in range(len(looks))]
    end = 5 * (1 + waits.index(4))
    assert end < 200 and len(ended.course.rows) == end
    assert ended.course.step == end - 4 * 5
    losses = [row["loss"] for row in ended.course.rows]
    assert losses == [row["loss"] for row in whole.course.rows[:end]]


def test_held_out_examples_train_nothing() -> None:
    examples = blobs(40)
    way = FeatureTransfer(optimiser=ROUGH)
    first = way.fit(teacher(), examples)
    without = way.model_copy(update={"held_out": 0.0}).fit(teacher(), first.trained_on)
    assert len(first.held_out.targets) == 10
    assert [row["loss"] for row in without.course.rows] == [
        row["loss"] for row in first.course.rows
    ]


def test_the_split_leaves_every_class() -> None:
    """It depends on the seed alone."""
    examples = blobs(20, 9)
    train, held = split(examples, 0.4, 3, NewTask().task_kind)
    assert set(train.targets.tolist()) == set(range(9))
    assert len(held.targets) == 8
    both = torch.cat([train.inputs, held.inputs])
    assert len(both.unique(dim=0)) == 20
    assert torch.equal(split(examples, 0.4, 3, NewTask().task_kind)[1].inputs, held.inputs)
    assert not torch.equal(split(examples, 0.4, 4, NewTask().task_kind)[1].inputs, held.inputs)


@pytest.mark.usefixtures("float64")
def test_losses_are_what_they_say() -> None:
    p, t = torch.randn(6, 1), torch.randn(6)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(Squared()(p, t), (p[:, 0] - t) ** 2)
    small = (p[:, 0] - t).abs() < 0.7
    huber = torch.where(small, (p[:, 0] - t) ** 2 / 2, 0.7 * ((p[:, 0] - t).abs() - 0.35))
    torch.testing.assert_close(Huber(delta=0.7)(p, t), huber)
    spread = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    torch.testing.assert_close(
        CrossEntropy(label_smoothing=0.2)(logits, labels),
        -(spread * logits.log_softmax(-1)).sum(-1),
    )


def test_the_seed_decides_the_network() -> None:
    fits = [
        FeatureTransfer(optimiser=ROUGH.model_copy(update={"seed": seed})).fit(teacher(), blobs())
        for seed in (0, 0, 1)
    ]
    weights = [fit.network.get_parameter("head.weight") for fit in fits]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_transfer_that_diverges_names_its_step() -> None:
    wild = ModelTransfer(
        task=NewTask(kind="regression"),
        optimiser=Optimiser(name="sgd", lr=1e6, steps=50),
        held_out=0,
    )
    with pytest.raises(DivergedError, match=r"the loss is .* at step \d+\. Lower optimiser\.lr"):
        wild.fit(teacher(), curve())


X = torch.zeros(6, DIM)


@pytest.mark.parametrize(
    ("way", "source", "examples", "says"),
    [
        (FeatureTransfer(), teacher(), Examples(X, torch.tensor([0.5, 1, 0, 1, 0, 1])), "task.kind: classification takes"),
        (FeatureTransfer(), teacher(), Examples(X, torch.tensor([-1, 1, 0, 1, 0, 1])), "got the label -1"),
        (FeatureTransfer(), teacher(), Examples(X, torch.ones(6).long()), "at least two classes, got 1 alone"),
        (FeatureTransfer(), teacher(), Examples(X, torch.tensor([0, 1, 2, 3, 4, 9])), "each of the 10 classes at least, got 6"),
        (
            FeatureTransfer(task=NewTask(num_classes=2)), teacher(), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])),
            "task.num_classes: expected more than the largest class 2, got 2",
        ),
        (FeatureTransfer(), teacher(), Examples(X[:0], torch.zeros(0).long()), "expected examples with a label, got none"),
        (FeatureTransfer(task=NewTask(kind="regression")), teacher(), Examples(X, torch.ones(6)), "at least two values"),
        (
            FeatureTransfer(task=NewTask(kind="regression")), teacher(), Examples(X, torch.tensor([math.nan, 1, 2, 3, 4, 5])),
            "expected finite labels",
        ),
        (
            FeatureTransfer(task=NewTask(loss=Squared())), teacher(), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])),
            "task.loss.name: squared is a loss of regression, got task.kind: classification",
        ),
        (
            FeatureTransfer(held_out=0.5, task=NewTask(kind="regression")), teacher(),
            Examples(X, torch.tensor([5.0, 5.0, 1.0, 5.0, 5.0, 5.0])),
            "held_out: expected different values among the 3 examples that are trained on, got 5 alone",
        ),
        (FeatureTransfer(held_out=0.1), teacher(), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])), "held_out: expected two"),
        (
            FeatureTransfer(), teacher(), Examples(torch.zeros(6, 9), torch.tensor([0, 1, 2, 0, 1, 2])),
            "input: expected the shape that the trained model reads, [4], got [9]",
        ),
        (TargetTransfer(), constant_teacher(torch.zeros(6, 3)), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])), "student.name: expected"),
        (student(), teacher(), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])), "a trained model that has the task 'new' too"),
        (
            student(), constant_teacher(torch.zeros(6, 5)), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])),
            "takes as many classes as the trained model has, 5, got task.num_classes: 3",
        ),
        (
            student(adapt_teacher=True), constant_teacher(torch.zeros(6, 3)), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])),
            "adapt_teacher: expected false, since the trained model predicts only before adapting, got true",
        ),
        (
            TargetTransfer(student={"name": "conv"}), constant_teacher(torch.zeros(6, 3)), Examples(X, torch.tensor([0, 1, 2, 0, 1, 2])),
            "student: encoder.name: conv takes pictures",
        ),
    ],
)  # fmt: skip
def test_unfit_examples_are_refused_with_the_reason(
    way: Transfer, source: Teacher, examples: Examples, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        way.fit(source, examples)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("way", "values", "says"),
    [
        ("featur", {}, "--transfer: expected one of feature, model, target, got 'featur'"),
        ("model", {"l2_sp": -1}, "--set l2_sp: expected greater than or equal to 0, got -1"),
        ("target", {"temperature": 0}, "--set temperature: expected greater than 0, got 0"),
        ("target", {"alpha": 1.5}, "--set alpha: expected less than or equal to 1"),
        ("target", {"student.name": "mlpp"}, "--set student.name: expected one of"),
        ("target", {"student.hidden": [3]}, "--set student.name: expected one of"),
        (
            "target",
            {"student.name": "mlp", "student.hidden": [0]},
            "--set student.hidden.0: expected greater than 0",
        ),
        (
            "feature",
            {"task.los": 1},
            "--set task.los: unknown key. Did you mean task.loss?",
        ),
        ("feature", {"lr": 1}, "Did you mean optimiser.lr?"),
        (
            "feature",
            {"task.num_classes": 1},
            "--set task.num_classes: expected greater than or equal to 2",
        ),
        (
            "feature",
            {"task.loss.name": "huber", "task.loss.delta": 0},
            "--set task.loss.delta: expected greater than 0",
        ),
        ("feature", {"held_out": 1}, "--set held_out: expected less than 1"),
        (
            "feature",
            {"task": 3, "task.kind": "regression"},
            "expected nothing set above it, got a value of 'task'",
        ),
        ("feature", {"optimiser.lr": float("inf")}, "--set optimiser.lr: expected a finite number"),
    ],
)
def test_impossible_values_name_their_key(way: str, values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_transfer(way, values)
    assert says in str(caught.value)
