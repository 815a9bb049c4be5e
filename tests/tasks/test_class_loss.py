"""Losses that weigh classes, smooth labels and leave easy examples to themselves, against torch and scikit-learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.func import vmap
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from raymtl.config import Experiment
from raymtl.data import Files
from raymtl.data.episodes import build_meta_batch, on_device
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.workers import Workers
from raymtl.tasks import binary, classification, multilabel, task_groups
from raymtl.tasks.sums import loss_sums
from raymtl.types import Batch, ClassLoss, UserError
from tests.data.own import write_csv

WEIGHTS = (0.5, 2.0, 1.25)
float64 = pytest.mark.usefixtures("float64")


@float64
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_classes_have_torchs_loss(smoothing: float, weights: tuple[float, ...]) -> None:
    logits, target = torch.randn(40, 3), torch.randint(0, 3, (40,))
    task = classification("y", 3, options=ClassLoss(weights, smoothing))
    weight = torch.tensor(weights) if weights else None
    wanted = F.cross_entropy(
        logits, target, weight=weight, label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(task.loss(logits, target), wanted)


@float64
def test_a_binary_task_is_one_of_two_classes() -> None:
    logits, target = torch.randn(40), torch.randint(0, 2, (40,))
    options = ClassLoss((0.5, 2.0), 0.1, 1.5)
    pairs = torch.stack([torch.zeros(40), logits], 1)
    torch.testing.assert_close(
        binary("y", options).loss(logits[:, None], target),
        classification("y", 2, options=options).loss(pairs, target),
    )


@float64
def test_focal_loss_is_torchvisions() -> None:
    logits, target = 3 * torch.randn(40, 1), torch.randint(0, 2, (40,))
    wanted = sigmoid_focal_loss(logits[:, 0], target.double(), alpha=-1, gamma=2.0)
    torch.testing.assert_close(binary("y", ClassLoss(focal=2.0)).loss(logits, target), wanted)


@float64
def test_the_yes_of_labels_has_torchs_weight() -> None:
    logits, target = torch.randn(40, 3), torch.randint(0, 2, (40, 3)).double()
    wanted = F.binary_cross_entropy_with_logits(
        logits, target, pos_weight=torch.tensor(WEIGHTS), reduction="none"
    ).mean(1)
    task = multilabel("y", 3, ClassLoss(WEIGHTS))
    torch.testing.assert_close(task.loss(logits, target), wanted)
    target[:, 1] = torch.nan
    kept = multilabel("y", 2, ClassLoss((WEIGHTS[0], WEIGHTS[2])))
    torch.testing.assert_close(task.loss(logits, target), kept.loss(logits[:, ::2], target[:, ::2]))


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_plain_losses_are_torchs(kind: str) -> None:
    task = {"binary": binary, "multilabel": lambda name: multilabel(name, 1)}[kind]("y")
    logits, target = 5 * torch.randn(200, 1), torch.randint(0, 2, (200, 1)).float()
    found = task.loss(logits, target if kind == "multilabel" else target[:, 0])
    wanted = F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, 0]
    torch.testing.assert_close(found, wanted)


def test_extreme_logits_have_finite_losses_and_gradients() -> None:
    options = ClassLoss(WEIGHTS, 0.1, 2.0)
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = classification("y", 3, options=options).loss(logits, torch.tensor([0, 0])).sum()
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all()
    single = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = binary("y", ClassLoss((1.0, 2.0), 0.1, 2.0)).loss(single, torch.tensor([0, 1])).sum()
    (grad,) = torch.autograd.grad(loss, single)
    assert loss.isfinite() and grad.isfinite().all()


def test_losses_run_under_vmap() -> None:
    logits, target = torch.randn(4, 10, 3), torch.randint(0, 3, (4, 10))
    loss = classification("y", 3, options=ClassLoss(WEIGHTS, 0.1, 2.0)).loss
    wanted = torch.stack([loss(*own) for own in zip(logits, target, strict=True)])
    torch.testing.assert_close(vmap(loss)(logits, target), wanted)


def table(path: Path, number: int = 400) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=number)
    rare = np.where(x > 1.2, "yes", "no")
    grade = np.digitize(x, [-1.5, 1])
    tags = [
        ";".join(t for t, on in (("high", v > 0.8), ("low", v < 0), ("any", True)) if on) for v in x
    ]
    columns: dict[str, list[Any]] = {
        "a": (x + 0.3 * rng.normal(size=number)).tolist(), "b": rng.normal(size=number).tolist(),
        "rare": rare.tolist(), "grade": [f"g{n}" for n in grade], "tags": tags, "size": x.tolist(),
    }  # fmt: skip
    return write_csv(path, columns)


def source(path: Path, tasks: dict[str, Any], **values: Any) -> Files:
    return Files(
        path=str(path), inputs=("a", "b"), tasks=tasks, shots=4, queries=12, **values
    ).resolve()


def trained_labels(own: Files, task: str) -> np.ndarray:
    arrays = own.load()
    labels: np.ndarray = arrays[f"target/{task}"][arrays["rows/train"]]
    return labels


def test_balanced_weights_are_scikit_learns(tmp_path: Path) -> None:
    tasks = {"rare": {"class_weights": "balanced"}, "grade": {"class_weights": "balanced"}}
    own = source(table(tmp_path / "t.csv"), tasks)
    for name in tasks:
        labels = trained_labels(own, name)
        wanted = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
        np.testing.assert_allclose(own.found.tasks[name].class_weights, wanted)


def test_given_weights_have_a_mean_of_one(tmp_path: Path) -> None:
    own = source(table(tmp_path / "t.csv"), {"grade": {"class_weights": {"g2": 7}}})
    weights = np.array(own.found.tasks["grade"].class_weights)
    np.testing.assert_allclose(weights[2] / weights[:2], 7)
    np.testing.assert_allclose(weights[trained_labels(own, "grade")].mean(), 1)


def test_the_balanced_yes_of_a_label_is_its_noes(tmp_path: Path) -> None:
    task = {"kind": "multilabel", "class_weights": "balanced"}
    own = source(table(tmp_path / "t.csv"), {"tags": task})
    labels = trained_labels(own, "tags")
    for number, label in enumerate(own.found.tasks["tags"].classes):
        yes = labels[:, number].sum()
        wanted = (len(labels) - yes) / yes if label != "any" else 1.0
        np.testing.assert_allclose(own.found.tasks["tags"].class_weights[number], wanted)


def test_a_balanced_pos_weight_is_the_noes_for_each_yes(tmp_path: Path) -> None:
    tasks = {
        "rare": {"pos_weight": "balanced"},
        "tags": {"kind": "multilabel", "pos_weight": "balanced"},
    }
    own = source(table(tmp_path / "t.csv"), tasks)
    rare = trained_labels(own, "rare")
    wanted = (1.0, (rare == 0).sum() / (rare == 1).sum())
    np.testing.assert_allclose(own.found.tasks["rare"].class_weights, wanted)
    labels = trained_labels(own, "tags")
    yes = labels.sum(0)
    by_label = dict(zip(own.found.tasks["tags"].classes, (len(labels) - yes) / yes, strict=True))
    by_label["any"] = 1.0  # it has no no
    found = own.found.tasks["tags"].class_weights
    np.testing.assert_allclose(found, list(by_label.values()))


@float64
def test_given_pos_weights_are_torchs(tmp_path: Path) -> None:
    own = source(
        table(tmp_path / "t.csv"),
        {
            "rare": {"pos_weight": 7},
            "tags": {"kind": "multilabel", "pos_weight": {"low": 3, "high": 0.5}},
            "alike": {"column": "tags", "kind": "multilabel", "pos_weight": 2.5},
        },
    )
    rare, tags, alike = own.make_tasks()
    logits, target = torch.randn(40), torch.randint(0, 2, (40,))
    wanted = F.binary_cross_entropy_with_logits(
        logits, target.double(), pos_weight=torch.tensor(7.0), reduction="none"
    )
    torch.testing.assert_close(rare.loss(logits[:, None], target), wanted)
    many, labels = torch.randn(40, 3), torch.randint(0, 2, (40, 3)).double()
    assert own.found.tasks["tags"].classes == ("any", "high", "low")
    for task, weights in ((tags, [1.0, 0.5, 3.0]), (alike, [2.5] * 3)):
        wanted = F.binary_cross_entropy_with_logits(
            many, labels, pos_weight=torch.tensor(weights), reduction="none"
        ).mean(1)
        torch.testing.assert_close(task.loss(many, labels), wanted)


@float64
def test_weighted_steps_are_the_same_on_workers_and_by_vmap(tmp_path: Path) -> None:
    tasks = {
        "rare": {"class_weights": "balanced", "focal": 2.0},
        "grade": {"class_weights": {"g0": 3}, "label_smoothing": 0.1},
        "tags": {"kind": "multilabel", "class_weights": "balanced"},
        "yes": {"column": "rare", "pos_weight": "balanced"},
        "more": {"column": "tags", "kind": "multilabel", "pos_weight": "balanced"},
    }
    own = source(table(tmp_path / "t.csv"), tasks)
    experiment = Experiment.model_validate(
        {"data": own, "encoder": {"name": "mlp", "hidden": [8]}}
    ).resolve()
    algorithm = experiment.build()
    params = algorithm.init_params()
    arrays = own.load()

    def step(execution: ExecutionConfig, indices: range) -> dict[str, torch.Tensor]:
        episodes = build_meta_batch(own, arrays, seed=0, step=0, indices=indices, meta_batch=4)
        meta = meta_gradient(algorithm, params, on_device(episodes, "cpu"), Workers(), execution)
        return dict(meta.grads)

    whole = step(ExecutionConfig("loop"), range(4))
    for name, grad in step(ExecutionConfig("vmap"), range(4)).items():
        torch.testing.assert_close(grad, whole[name])
    # All rows are labelled, so that the gradient of all is the mean of those of two halves.
    halves = [step(ExecutionConfig("loop"), indices) for indices in (range(2), range(2, 4))]
    for name, grad in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, grad)


@pytest.mark.parametrize(
    ("task", "values", "sentence"),
    [
        ("size", {"class_weights": "balanced"}, r"size\.class_weights: .* of kind regression"),
        ("size", {"focal": 2.0}, r"size\.focal: .* of kind regression"),
        ("size", {"pos_weight": 2}, r"size\.pos_weight: .* of kind regression"),
        ("grade", {"pos_weight": 2}, r"grade\.pos_weight: .*has no yes"),
        ("rare", {"pos_weight": {"yes": 2}}, r"rare\.pos_weight: expected balanced or one number"),
        (
            "rare",
            {"pos_weight": 2, "class_weights": "balanced"},
            r"rare\.pos_weight: expected none beside class_weights",
        ),
        (
            "tags",
            {"kind": "multilabel", "pos_weight": {"g9": 2}},
            r"tags\.pos_weight: .*got 'g9'",
        ),
        ("grade", {"class_weights": {"g9": 2}}, r"grade\.class_weights: .*got 'g9'"),
    ],
)
def test_what_has_no_classes_is_refused(
    tmp_path: Path, task: str, values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=rf"data\.tasks\.{sentence}"):
        source(table(tmp_path / "t.csv"), {task: values})


def test_classes_of_episodes_have_no_weights(tmp_path: Path) -> None:
    few = {"episodes": "classes", "ways": 2, "split": {"fractions": [1, 1, 1]}}
    with pytest.raises(UserError, match="numbered anew in every episode"):
        source(table(tmp_path / "t.csv"), {"grade": {"class_weights": "balanced"}}, **few)


@float64
def test_many_weighted_tasks_are_as_each_alone() -> None:
    """Tasks that are computed together have weights of their own."""
    options = [ClassLoss((0.5 + i, 1.0, 2.0), 0.1) for i in range(9)]
    tasks = [classification(f"t{i}", 3, options=own) for i, own in enumerate(options)]
    logits = {task.name: torch.randn(6, 3) for task in tasks}
    targets = {task.name: torch.randint(0, 3, (6,)) for task in tasks}
    batch = Batch(torch.zeros(6, 1), targets, {})
    assert len(task_groups(tasks, [batch])) == 1
    alone = [task.loss(logits[task.name], targets[task.name]).sum() for task in tasks]
    torch.testing.assert_close(loss_sums(tasks, logits, batch), torch.stack(alone))
