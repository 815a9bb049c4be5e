"""Dropout and stochastic depth: the law of the masks, and that nothing but training sees them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.func import vmap
from torch.utils._pytree import tree_map

from raymtl.config import Experiment
from raymtl.config.experiment import parse
from raymtl.data import Arrays
from raymtl.encoders.dropout import (
    KEY,
    Dropout,
    DropResidual,
    dropouts,
    dropping,
    kept,
    of_episode,
    of_query,
    step_key,
)
from raymtl.encoders.residual import residual_network
from raymtl.learners.gradient import UnrolledLearner
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import MetaGradient, meta_gradient
from raymtl.step.traced import Tracer
from raymtl.step.workers import Workers
from raymtl.storage import formats
from raymtl.types import Batch, Episode, UserError
from tests.conftest import LEARNERS, SHARING, episodes_of, perturbed, two_steps
from tests.processes import run_on
from tests.training.runs import Stopped, run

CPU = torch.device("cpu")
float64 = pytest.mark.usefixtures("float64")


def key_of(step: int, seed: int = 0) -> Tensor:
    return step_key(seed, step, CPU)


def dropped(layer: nn.Module, x: Tensor, step: int) -> Tensor:
    with dropping({KEY: key_of(step)}):
        result: Tensor = layer(x)
    return result


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_the_mean_of_the_masks_is_the_identity(p: float) -> None:
    """By simulation: each place by itself, over steps, within 5 standard errors."""
    layer, steps = Dropout(p), 4000
    draws = torch.stack([dropped(layer, torch.ones(4, 6), step) for step in range(steps)])
    spread = (p / (1 - p)) ** 0.5
    assert (draws.mean(0) - 1).abs().max() < 5 * spread / steps**0.5
    assert draws.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])


def test_places_and_steps_are_independent() -> None:
    """Pairs of places, of neighbouring layers and of neighbouring steps are correlated like chance."""
    steps = 3000
    masks = torch.stack([kept(key_of(step), 0, (3, 5), 0.5).double() for step in range(steps)])
    other = torch.stack([kept(key_of(step), 1, (3, 5), 0.5).double() for step in range(steps)])
    flat = torch.cat([masks.flatten(1), other.flatten(1)], 1)
    correlations = torch.corrcoef(flat.T) - torch.eye(30)
    assert correlations.abs().max() < 5 / steps**0.5
    later = torch.corrcoef(torch.cat([flat[:-1], flat[1:]], 1).T)[:30, 30:]
    assert later.abs().max() < 5 / steps**0.5


def test_whole_maps_and_whole_examples_are_dropped() -> None:
    x = torch.rand(6, 8, 3, 3) + 1
    maps = dropped(Dropout(0.5), x, 0) != 0
    assert torch.equal(maps, maps[..., :1, :1].expand_as(maps)) and 0 < maps.sum() < maps.numel()
    examples = dropped(DropResidual(0.5), x, 0) != 0
    assert torch.equal(examples, examples[:, :1, :1, :1].expand_as(examples))
    assert 0 < examples.sum() < examples.numel()


def test_nothing_is_dropped_outside_of_training() -> None:
    x = torch.rand(6, 8)
    assert torch.equal(Dropout(0.5)(x), x)


def test_a_mask_is_told_by_seed_step_episode_set_and_layer() -> None:
    episodes = [
        Episode(Batch(torch.randn(3, 4), {}, {}), Batch(torch.randn(5, 4), {}, {}))
        for _ in range(2)
    ]
    keys = []
    for seed in (0, 1):
        for step in (0, 1):
            for episode in episodes:
                drawn = of_episode({KEY: key_of(step, seed)}, episode)
                keys += [int(drawn[KEY]), int(of_query(drawn, drawn)[KEY])]
    assert len(set(keys)) == 16
    masks = {tuple(kept(torch.tensor(key), layer, (64,), 0.5).tolist())
             for key in keys for layer in (0, 1)}  # fmt: skip
    assert len(masks) == 32


def test_an_episode_has_its_counter_wherever_it_is() -> None:
    inputs = torch.randn(3, 5, 7)

    def key(support: Tensor, query: Tensor) -> Tensor:
        episode = Episode(Batch(support, {}, {}), Batch(query, {}, {}))
        return of_episode({KEY: key_of(4)}, episode)[KEY]

    together = vmap(key)(inputs, 2 * inputs)
    assert together.tolist() == [int(key(own, 2 * own)) for own in inputs]
    assert key(inputs[0], inputs[1]) != key(inputs[1], inputs[0])


def test_stochastic_depth_is_torchvisions() -> None:
    """Without dropping the network is resnet18, and block l of 8 drops l/8 of the share."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(weights=None, num_classes=1, norm_layer=nn.Identity)
    torch.manual_seed(0)
    mine = residual_network(nn.Identity, 0.4)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(mine(x), theirs(x))
    depths = [layer.p for layer in dropouts(mine.modules())]
    assert depths == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4])
    assert not torch.allclose(dropped(mine, x, 0), theirs(x))


def with_dropout(sharing: str = "hard", learner: str = "maml") -> Experiment:
    """Two inner steps on the digits, with layers that drop."""
    chosen = two_steps(sharing, "static", learner)
    return chosen.override({"encoder.dropout": 0.3})


def gradient(
    chosen: Experiment,
    episodes: Episode,
    execution: ExecutionConfig = ExecutionConfig("loop"),
    step: int = 0,
) -> MetaGradient:
    algorithm: Algorithm = chosen.build()
    return meta_gradient(algorithm, perturbed(algorithm), episodes, execution=execution, step=step)


def assert_equal(one: MetaGradient, other: MetaGradient) -> None:
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-9, atol=1e-11)
    for name, value in one.grads.items():
        torch.testing.assert_close(value, other.grads[name], rtol=1e-7, atol=1e-9)


@float64
@pytest.mark.parametrize("sharing", SHARING)
def test_every_architecture_drops_alike_by_vmap_and_in_a_loop(sharing: str, arrays: Arrays) -> None:
    chosen = with_dropout(sharing)
    episodes = episodes_of(chosen, arrays, count=2)
    looped = gradient(chosen, episodes)
    assert_equal(gradient(chosen, episodes, ExecutionConfig("vmap")), looped)
    assert not torch.allclose(looped.losses, gradient(chosen, episodes, step=1).losses)


@float64
@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_drops_alike_by_vmap_and_in_a_loop(learner: str, arrays: Arrays) -> None:
    try:
        chosen = with_dropout("hard", learner)
    except UserError:
        pytest.skip("refused as it is")
    episodes = episodes_of(chosen, arrays, count=2)
    looped = gradient(chosen, episodes)
    assert_equal(gradient(chosen, episodes, ExecutionConfig("vmap")), looped)
    plain = gradient(chosen.override({"encoder.dropout": 0.0}), episodes)
    assert not torch.allclose(looped.losses, plain.losses)


@float64
def test_chunks_are_the_whole(arrays: Arrays) -> None:
    chosen = with_dropout()
    episodes = episodes_of(chosen, arrays, count=4)
    for execution in (ExecutionConfig("vmap", 2), ExecutionConfig("vmap", micro_batches=2)):
        assert_equal(gradient(chosen, episodes, execution), gradient(chosen, episodes))


@float64
def test_steps_that_are_computed_again_drop_the_same(arrays: Arrays) -> None:
    chosen = with_dropout()
    assert isinstance(chosen.learner, UnrolledLearner)
    episodes = episodes_of(chosen, arrays, count=2)
    again = chosen.override({"learner.gradient": "checkpointed"})
    assert_equal(gradient(again, episodes), gradient(chosen, episodes))
    assert_equal(gradient(again, episodes, ExecutionConfig("vmap")), gradient(chosen, episodes))


def test_compiled_graphs_are_refused() -> None:
    with pytest.raises(UserError, match=r"train\.graph: expected .* with encoder\.dropout, whose"):
        with_dropout().override({"train.graph": "compile"})


def test_a_graph_drops_anew_in_every_step(arrays: Arrays) -> None:
    """Its masks are those of the step, and not those of the step in which it was traced."""
    chosen = with_dropout()
    algorithm = chosen.build()
    params = perturbed(algorithm)
    tracer = Tracer("replay")
    for step in range(3):
        episodes = episodes_of(chosen, arrays, step=step, count=2)
        plain = meta_gradient(algorithm, params, episodes, execution=ExecutionConfig(), step=step)
        execution = ExecutionConfig(tracer=tracer)
        traced = meta_gradient(algorithm, params, episodes, execution=execution, step=step)
        torch.testing.assert_close(traced.losses, plain.losses)
        for name, value in plain.grads.items():
            torch.testing.assert_close(traced.grads[name], value, rtol=1e-3, atol=1e-4)
    assert tracer.refusal is None


@float64
def test_the_gradient_is_that_of_the_dropped_network(arrays: Arrays) -> None:
    """Through the inner loop, by finite differences of the same step."""
    chosen = with_dropout()
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = episodes_of(chosen, arrays, count=2)
    meta = meta_gradient(algorithm, params, episodes, step=5)
    name = next(n for n in params if n.endswith("weight") and ".encoders." in n)
    direction = torch.randn_like(params[name])

    def loss(size: float) -> float:
        moved = {**params, name: (params[name] + size * direction).detach().requires_grad_()}
        found = meta_gradient(algorithm, moved, episodes, step=5)
        return float((found.weights * found.losses).sum())

    size = 1e-5
    wanted = (loss(size) - loss(-size)) / (2 * size)
    assert float((meta.grads[name] * direction).sum()) == pytest.approx(wanted, rel=1e-3)


def test_a_resumed_training_drops_as_one_that_was_not_stopped(
    arrays: Arrays, tmp_path: Path
) -> None:
    """And scores do not drop: those of the same parameters are the same with any share."""
    values = {"train.steps": 8, "train.eval_every": 4, "train.task_axis": "vmap"}
    chosen = with_dropout().override(values)
    whole = run(chosen, arrays, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(chosen, arrays, tmp_path / "stopped", stop_at=4)
    run(chosen, arrays, tmp_path / "stopped")
    names = [tmp_path / each / "model.safetensors" for each in ("whole", "stopped")]
    one, other = (formats.load_params(name) for name in names)
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert len(whole) == 2


def test_scores_drop_nothing(arrays: Arrays) -> None:
    chosen = with_dropout()
    plain = chosen.override({"encoder.dropout": 0.0})
    episode: Episode = tree_map(lambda leaf: leaf[0], episodes_of(chosen, arrays, count=1))
    outputs = []
    for each in (chosen, plain):
        algorithm = each.build()
        params = algorithm.init_params()
        outputs.append(
            algorithm.predict(algorithm.adapt(params, episode.support), episode.query.inputs)
        )
    for name, value in outputs[0].items():
        assert torch.equal(value, outputs[1][name])


@pytest.mark.parametrize(
    "encoder",
    [
        {"name": "mlp", "hidden": [16], "dropout": 0.5},
        {"name": "conv", "channels": [4, 8], "dropout": 0.5},
        {"name": "conv4", "width": 4, "dropout": 0.5},
        {"name": "lenet", "hidden": [16], "dropout": 0.5},
        {"name": "resnet18", "dropout": 0.5},
        {"name": "resnet18", "drop_path": 0.5},
    ],
    ids=str,
)
def test_every_encoder_drops(encoder: dict[str, Any]) -> None:
    experiment = parse({"data": {"name": "digits"}, "encoder": encoder}).resolve()
    model = experiment.build().model
    layers = dropouts(model.prediction_modules())
    assert layers and [layer.layer for layer in layers] == list(range(len(layers)))
    x = torch.rand(4, *experiment.data.input_shape)
    assert not torch.allclose(dropped_features(model, x), model(x)["left"])


def dropped_features(model: nn.Module, x: Tensor) -> Tensor:
    with dropping({KEY: key_of(0)}):
        left: Tensor = model(x)["left"]
    return left


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_timms_residuals_are_dropped(name: str) -> None:
    pytest.importorskip("timm")
    encoder = {"name": "timm", "model": name, "size": 32, "drop_path": 0.4}
    experiment = parse({"data": {"name": "digits"}, "encoder": encoder}).resolve()
    shares = [layer.p for layer in dropouts(experiment.build().model.prediction_modules())]
    assert max(shares) == pytest.approx(0.4) and np.all(np.diff(shares) >= -1e-9)


def test_what_cannot_drop_is_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.dropout: expected 0 with encoder\.hidden"):
        parse({"encoder": {"name": "mlp", "hidden": [], "dropout": 0.1}})
    pytest.importorskip("timm")
    encoder = {"name": "timm", "model": "vgg11", "size": 32, "drop_path": 0.4}
    with pytest.raises(UserError, match=r"encoder\.drop_path: .*got vgg11"):
        parse({"data": {"name": "digits"}, "encoder": encoder}).resolve().build()


def as_worker(rank: int, size: int, folder: str, arrays: Any) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    place = f"file://{folder}/rendezvous-{size}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
    chosen = with_dropout()
    algorithm = chosen.build()
    own = 4 // size
    share = slice(rank * own, (rank + 1) * own)
    episodes = tree_map(lambda leaf: leaf[share], episodes_of(chosen, arrays, count=4))
    meta = meta_gradient(algorithm, perturbed(algorithm), episodes, Workers(rank, size), step=3)
    if rank == 0:
        torch.save(meta.grads, f"{folder}/{size}.pt")
    dist.destroy_process_group()


def test_any_number_of_workers_drops_the_same(tmp_path: Path, arrays: Arrays) -> None:
    for size in (1, 2):
        run_on(size, as_worker, size, str(tmp_path), arrays)
    one, two = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-12)
