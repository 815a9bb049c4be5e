"""All kinds of task in one problem: with every architecture, through second-order MAML, on any number of workers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.data import Several
from raymtl.data.episodes import build_episodes, on_device
from raymtl.encoders import Conv4Spec, ConvSpec, LeNetSpec, MLPSpec, ResNet18Spec
from raymtl.encoders.norm import NormedSpec
from raymtl.evaluation.evaluate import evaluate
from raymtl.evaluation.scores import validation_scores
from raymtl.learners import MAML, ProtoNet
from raymtl.sharing import HierarchicalSpec
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import meta_gradient
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.types import Episode, Task, UserError
from raymtl.weighting import StaticSpec
from tests.conftest import SHARING, axes, perturbed
from tests.narrowing import checked, present
from tests.processes import run_on
from tests.tasks.shapes import NAMES, Shapes

ENCODER = ConvSpec(channels=(4, 8))
SPLITS = [slice(0, 3), slice(3, 4)]  # ragged on purpose
MIXES = {
    "all": NAMES,
    "dense": ("which", "pixels", "far", "facing"),
    **{name: (name,) for name in NAMES},
}


def problem_of(
    source: Shapes | Several, sharing: str = "hard", encoder: Any = ENCODER, **learner: Any
) -> Algorithm:
    """Built as an experiment builds it, of a source that is in no configuration."""
    torch.manual_seed(0)
    tasks, spec = source.make_tasks(), axes(sharing, "static", "maml").sharing
    encoders = [encoder.build(source.input_shape) for _ in range(spec.num_encoders(len(tasks)))]
    assert spec.check(tasks, encoders[0]) is None
    chosen = MAML(**{"inner_steps": 2, "inner_lr": 0.01, **learner})
    return Algorithm(tasks, spec.build(tasks, encoders), StaticSpec().build(tasks), chosen)


def episodes_of(source: Shapes, number: int = 3, step: int = 0) -> Episode:
    built, _ = build_episodes(source, {}, seed=0, split="train", step=step, indices=range(number))
    (stack,) = on_device(built, "cpu")
    return stack


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("names", MIXES.values(), ids=MIXES)
def test_mixed_meta_gradients_equal_finite_differences(names: tuple[str, ...]) -> None:
    """Against central differences along a random direction of all parameters, of which one has no kink between."""
    source = Shapes(tasks=names, side=16, shots=3, queries=2)
    algorithm = problem_of(source)
    params, episodes = perturbed(algorithm, 0.03), episodes_of(source, 2)
    direction = {
        name: torch.randn_like(value) for name, value in params.items() if name.startswith("model.")
    }
    grads = meta_gradient(algorithm, params, episodes).grads
    computed = float(sum((grads[name] * own).sum() for name, own in direction.items()))

    def loss(shift: float) -> float:
        moved = {
            name: (v.detach() + shift * direction.get(name, 0)).requires_grad_()
            for name, v in params.items()
        }
        return float(meta_gradient(algorithm, moved, episodes).losses.sum())

    assert abs(computed) > 1e-3
    assert (
        min(abs((loss(h) - loss(-h)) / (2 * h) / computed - 1) for h in (1e-6, 1e-7, 1e-8)) < 1e-5
    )


def mix_for(sharing: str) -> Shapes:
    """All kinds, or two that are alike for an architecture that compares heads."""
    if sharing == "relation":
        return Shapes(tasks=("far", "deep"), side=16, shots=2, queries=2)
    return Shapes(side=16, shots=2, queries=2)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sharing", SHARING)
def test_every_architecture_learns_all_kinds(sharing: str) -> None:
    """And vmap equals the loop."""
    source = mix_for(sharing)
    episodes = episodes_of(source, 2)
    results = []
    for axis in ("vmap", "loop"):
        algorithm = problem_of(source, sharing)
        results.append(
            meta_gradient(
                algorithm, perturbed(algorithm, 0.03), episodes, execution=ExecutionConfig(axis)
            )
        )
    together, apart = results
    torch.testing.assert_close(together.losses, apart.losses, rtol=1e-10, atol=1e-12)
    for name, gradient in together.grads.items():
        assert gradient.isfinite().all()
        torch.testing.assert_close(gradient, apart.grads[name], rtol=1e-7, atol=1e-10)
    for task in source.tasks:
        heads = [g for name, g in together.grads.items() if name.startswith(f"model.heads.{task}.")]
        assert any(gradient.abs().max() > 1e-6 for gradient in heads), task


def head_shape(algorithm: Algorithm, task: str) -> tuple[int, ...]:
    """Of the maps that the head reads."""
    return checked(checked(algorithm.model.heads, nn.ModuleDict)[task].shape, tuple)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sharing", SHARING)
def test_heads_read_maps_in_the_stated_shape(sharing: str) -> None:
    """What a head makes of a picture moves with the picture: nothing is lost or mixed up in flattening."""
    source = Shapes(tasks=("pixels", "far") if sharing != "relation" else ("far", "deep"), side=16)
    algorithm = problem_of(source, sharing, ConvSpec(channels=(4, 8), norm="none"))
    spec = axes(sharing, "static", "maml").sharing
    encoder = ENCODER.build(source.input_shape)
    height, width = spec.feature_shape("far", encoder)[1:]
    features = algorithm.model(torch.rand(1, 3, 16, 16), output="features")
    for name, own in features.items():
        shape = head_shape(algorithm, name)
        assert own.shape[1] == shape[0] * height * width and shape[1:] == (height, width)
    # Convolutions of stride 2 without a border see a picture moved by 4 pixels as maps moved by one.
    if sharing in ("mmoe", "cgc", "ple", "dselect_k", "attention", "sluice", "mtan"):
        return  # gates, adapters and attention see the whole picture
    picture = torch.zeros(1, 3, 16, 16)
    picture[:, :, 5:8, 5:8] = torch.rand(3, 3, 3)
    one, two = (
        {
            n: f.unflatten(1, head_shape(algorithm, n))
            for n, f in algorithm.model(x, output="features").items()
        }
        for x in (picture, picture.roll((4, 4), (2, 3)))
    )
    for name, maps in one.items():
        assert maps[..., 1:3, 1:3].std() > 0
        torch.testing.assert_close(two[name][..., 2:3, 2:3], maps[..., 1:2, 1:2])


@pytest.mark.usefixtures("float64")
def test_sources_of_different_kinds_go_together() -> None:
    """One part an episode, the labels of the other masked, whatever their shapes."""
    parts = {
        "a": Shapes(tasks=("which", "pixels", "place"), side=16, shots=2, queries=2),
        "b": Shapes(tasks=("shown", "boxes", "facing"), side=16, shots=2, queries=2),
    }
    source = Several.model_construct(parts=parts, odds={}, episodes="one")
    built, domains = build_episodes(source, {}, seed=0, split="train", step=0, indices=range(5))
    assert len(built) == 2 and len({domain.split()[0] for domain in domains}) == 2
    results = []
    for axis in ("vmap", "loop"):
        algorithm = problem_of(source)
        results.append(
            meta_gradient(
                algorithm,
                perturbed(algorithm, 0.03),
                on_device(built, "cpu"),
                execution=ExecutionConfig(axis),
            )
        )
    assert results[0].losses.isfinite().all()
    for name, gradient in results[0].grads.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0
        torch.testing.assert_close(gradient, results[1].grads[name], rtol=1e-7, atol=1e-10)


def _stepped(workers: Workers, share: slice) -> dict[str, Tensor]:
    source = Shapes(side=16, shots=2, queries=2, unboxed=0.5)
    algorithm = problem_of(source)
    params = perturbed(algorithm, 0.03)
    own = tree_map(lambda leaf: leaf[share], episodes_of(source, 4))
    meta = meta_gradient(algorithm, params, own, workers)
    chosen = scoring(source, 4)
    with torch.no_grad():
        scores = validation_scores(chosen, algorithm, params, {}, ExecutionConfig(), workers)
    return {
        **meta.grads,
        "losses": meta.losses,
        **{name: torch.tensor(value) for name, value in scores.items()},
    }


def scoring(source: Shapes, number: int) -> Experiment:
    chosen = Experiment().override(
        {"evaluate.val_episodes": number, "evaluate.test_episodes": number}
    )
    return chosen.model_copy(update={"data": source})


def _on_one_of(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.save(_stepped(Workers(rank, 2), SPLITS[rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_two_workers_equal_one(tmp_path: Path) -> None:
    """In the gradient and in the scores."""
    whole = _stepped(Workers(), slice(None))
    run_on(2, _on_one_of, str(tmp_path))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == whole.keys()
        for name, value in found.items():
            close = torch.allclose(value, whole[name], rtol=1e-9, atol=1e-11, equal_nan=True)
            assert close, f"{name}: {value} is not {whole[name]}"


def test_validation_scores_are_those_of_evaluate() -> None:
    """Whatever they are made of."""
    source = Shapes(side=16, shots=2, queries=3)
    algorithm, chosen = problem_of(source), scoring(source, 25)
    params = algorithm.init_params()
    with torch.no_grad():
        scores = validation_scores(chosen, algorithm, params, {}, ExecutionConfig(), Workers())
    full, rows, _ = evaluate(chosen, algorithm, params, {}, split="val", episodes=25)
    for task, metrics in full["tasks"].items():
        for name, found in metrics.items():
            assert found["after"]["mean"] == pytest.approx(scores[f"val.{task}.{name}"], abs=1e-6)
            assert found["after"]["ci95"] >= 0 and set(found["gain"]) == {
                "mean",
                "ci95",
                "low",
                "high",
            }
            assert found["gain"]["mean"] == pytest.approx(
                found["after"]["mean"] - found["before"]["mean"], abs=1e-6
            )
            assert full["curve"][f"{task}.{name}"]["mean"][2] == found["after"]["mean"]
    assert full["score"]["after"]["mean"] == pytest.approx(scores["val.score"], abs=1e-6)
    assert full["score"]["after"]["ci95"] > 0
    shown = rows[0]
    assert len(shown["pixels.after"]) == 256 and shown["pixels.after.shape"] == [16, 16]
    assert shown["boxes.after.shape"][1] == 6 and len(shown["shown.target"]) == 2
    assert isinstance(shown["which.after"], float)


FLAT: dict[str, tuple[NormedSpec, str]] = {
    "mlp": (MLPSpec(hidden=(9, 8)), "[8]"),
    "lenet": (LeNetSpec(hidden=(6,)), "[6]"),
    "resnet18": (ResNet18Spec(), r"[512, 1, 1]"),
}


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("encoder", FLAT)
def test_dense_tasks_need_maps(sharing: str, encoder: str) -> None:
    chosen, shape = FLAT[encoder]
    spec, tasks = (
        axes(sharing, "static", "maml").sharing,
        Shapes(tasks=("pixels",), side=32).make_tasks(),
    )
    with torch.device("meta"):
        key, sentence = present(spec.check(tasks, chosen.build((3, 32, 32))))
    assert key == "name"
    assert "the segmentation of data.tasks: 'pixels'" in sentence and f"got {shape}" in sentence
    assert "encoder.name: conv" in sentence


def test_dense_tasks_may_read_lower_levels() -> None:
    """Of a trunk that ends flat."""
    tasks = Shapes(tasks=("which", "pixels"), side=32).make_tasks()
    encoder = LeNetSpec(hidden=(6,)).build((3, 32, 32))
    assert HierarchicalSpec(levels={"pixels": 2}).check(tasks, encoder) is None
    spec = HierarchicalSpec(levels={"pixels": 2})
    assert spec.build(tasks, [encoder])(torch.rand(2, 3, 32, 32))["pixels"].shape == (2, 3, 32, 32)
    key, _ = present(HierarchicalSpec(levels={"which": 2}).check(tasks, encoder))
    assert key == "name"


@pytest.mark.parametrize("encoder", [Conv4Spec(width=4), ResNet18Spec(pooled=False)])
def test_other_encoders_with_maps_take_dense_tasks(encoder: NormedSpec) -> None:
    source = Shapes(tasks=("pixels", "boxes"), side=32, queries=2)
    algorithm = problem_of(source, encoder=encoder)
    predictions = algorithm.model(torch.rand(2, 3, 32, 32))
    assert predictions["pixels"].shape == (2, 3, 32, 32) and predictions["boxes"].shape == (
        2,
        7,
        8,
        8,
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NAMES)
def test_relation_takes_two_tasks_of_any_one_kind(name: str) -> None:
    """Their heads are alike; every kind twice, under two names."""
    source = Shapes(tasks=(name,), side=16, shots=2, queries=2, unboxed=0)
    (task,) = source.make_tasks()
    tasks = (task, task._replace(name="again"))
    spec = axes("relation", "static", "maml").sharing
    encoder = ENCODER.build(source.input_shape)
    assert spec.check(tasks, encoder) is None
    algorithm = Algorithm(
        tasks, spec.build(tasks, [encoder]), StaticSpec().build(tasks), MAML(inner_steps=1)
    )
    parts = [
        batch._replace(targets={name: batch.targets[name], "again": batch.targets[name].flip(1)})
        for batch in episodes_of(source, 2)
    ]
    grads = meta_gradient(algorithm, perturbed(algorithm, 0.03), Episode(*parts)).grads
    assert all(
        gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in grads.values()
    )
    others = Shapes(tasks=("which", "pixels")).make_tasks()
    assert "needs the same shapes in all" in present(spec.check(others, encoder))[1]


def test_arrays_are_written_with_their_shape() -> None:
    """Large ones are thinned out."""
    from raymtl.evaluation.examples import column_values

    assert column_values("a", None) == {"a": None}
    assert column_values("a", torch.tensor(3)) == {"a": 3.0}
    assert column_values("a", torch.tensor([1.0, 2.0])) == {"a": [1.0, 2.0], "a.shape": [2]}
    large = torch.arange(3 * 200 * 100).reshape(3, 200, 100)
    found = column_values("a", large)
    assert found["a.shape"] == [3, 100, 50] and found["a"] == large[:, ::2, ::2].flatten().tolist()


def test_example_files_need_labels_of_one_number(tmp_path: Path) -> None:
    from raymtl.adaptation.examples import read_support

    formats.write_rows(tmp_path / "own.parquet", [{"input": [0.0], "pixels": 1}])
    source = Shapes(tasks=("which", "pixels"))
    with pytest.raises(
        UserError, match=r"its task 'pixels' is a segmentation with 3 outputs. Adapt to an episode"
    ):
        read_support(tmp_path / "own.parquet", scoring(source, 2), problem_of(source))


def test_learners_of_classes_refuse_other_kinds() -> None:
    for name in NAMES[1:]:
        (task,) = Shapes(tasks=(name,)).make_tasks()
        kind = (
            "binary (its `kind: classification` makes it one of two classes)"
            if task.kind.name == "binary"
            else f"a {task.kind}"
        )
        assert f"task '{name}' is {kind}" in str(ProtoNet().check([task]))


def test_an_encoder_without_maps_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from raymtl.data import Digits
    from raymtl.tasks import segmentation

    tasks: tuple[Task, ...] = (segmentation("left", 2, (16, 16)),)
    monkeypatch.setattr(Digits, "make_tasks", lambda self: tasks)
    with pytest.raises(
        UserError, match=r"sharing.name: expected features that are maps .* got \[128\]"
    ):
        Experiment().override({"data.tasks": ["left"], "encoder.name": "mlp"})
