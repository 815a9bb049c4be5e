"""Laws of the normalisations: against torch's own, finite differences, autograd, and of what a query may depend on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from raymtl.config import Experiment
from raymtl.data.base import Arrays
from raymtl.encoders import BatchNorm, Conv4Spec, LeNetSpec, MLPSpec
from raymtl.encoders.norm import recorded_statistics, statistics_of
from raymtl.evaluation.evaluate import evaluate
from raymtl.step.algorithm import Algorithm
from raymtl.step.execution import ExecutionConfig, TaskAxis, over_episodes
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import Batch, Episode, UserError
from tests.conftest import ADAPTING, SHARING, axes, episodes_of, experiment, perturbed
from tests.learners.laws import (
    assert_it_survives_saving,
    assert_vmap_equals_the_loop,
    directional_error,
    first,
)
from tests.narrowing import shared_inputs


def ours(params: Sequence[Tensor], x: Tensor) -> Tensor:
    norm = BatchNorm(x.shape[1])
    named = dict(zip(("weight", "bias"), params, strict=True))
    normed: Tensor = functional_call(norm, named, (x,))
    return normed


Normed = Callable[[Sequence[Tensor], Tensor], Tensor]


def ours_vmapped(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """Of one episode, by vmap, where the derivatives are ours and not torch's."""
    stacked: Tensor = vmap(ours)(tuple(p[None] for p in params), x[None])
    return stacked[0]


def torchs(params: Sequence[Tensor], x: Tensor) -> Tensor:
    """Batch normalisation in training mode."""
    weight, bias = params
    return F.batch_norm(x, None, None, weight, bias, training=True)


def random_affine(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.rand(shape) + 0.5, torch.randn(shape)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("own", [ours, ours_vmapped])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 3), (1, 3, 4, 4), (6, 3, 2)])
def test_batch_norm_is_torchs_in_training(shape: tuple[int, ...], own: Normed) -> None:
    """So are its first and second derivatives."""
    readout = torch.randn(shape)
    leaves = (torch.randn(shape), *random_affine(3))
    torch.testing.assert_close(own(leaves[1:], leaves[0]), torchs(leaves[1:], leaves[0]))
    gradients, curvatures = [], []
    for norm in (own, torchs):

        def loss(x: Tensor, *params: Tensor) -> Tensor:
            return (readout * norm(params, x).tanh()).sum()  # noqa: B023

        gradients.append(grad(loss, argnums=(0, 1, 2))(*leaves))
        curvatures.append(torch.autograd.functional.hessian(loss, leaves))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*curvatures, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("own", [ours, ours_vmapped])
def test_batch_norms_derivatives_equal_finite_differences(own: Normed) -> None:
    """To second order."""
    leaves = [leaf.requires_grad_() for leaf in (torch.randn(4, 3, 2), *random_affine(3))]
    call = lambda x, *params: own(params, x)  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)
    assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.usefixtures("float64")
def test_batch_norm_vmap_equals_a_loop() -> None:
    """In second order."""
    x, readout = torch.randn(2, 5, 4, 3, 2).unbind()
    weight, bias = random_affine(5, 3)

    def twice(x: Tensor, readout: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        def loss(x: Tensor, weight: Tensor) -> Tensor:
            return (readout * ours((weight, bias), x).tanh()).sum()

        steepness = lambda x, w: sum(g.square().sum() for g in grad(loss, argnums=(0, 1))(x, w))  # noqa: E731
        slope: Tensor = grad(steepness, argnums=1)(x, weight)
        return slope

    together = vmap(twice)(x, readout, weight, bias)
    for index in range(5):
        torch.testing.assert_close(
            together[index], twice(x[index], readout[index], weight[index], bias[index])
        )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_normalised_networks_ignore_scales_of_convolutions(norm: str) -> None:
    encoder = Conv4Spec(width=4, norm=norm).build((1, 16, 16))
    x = torch.randn(3, 1, 16, 16)
    params = {name: value.detach() for name, value in encoder.named_parameters()}
    # Large ones, beside which the eps of the variance is nothing; the biases of convolutions go with them.
    scaled = [{n: c * v if ".0." in n else v for n, v in params.items()} for c in (1e6, 3e6)]
    outputs = [functional_call(encoder, own, (x,)) for own in scaled]
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-9)
    assert outputs[0].std() > 0.1


@pytest.mark.usefixtures("float64")
def test_layer_norm_is_group_norm_of_one_group() -> None:
    params = {
        name: torch.randn_like(value)
        for name, value in MLPSpec(hidden=(6,)).build((5,)).named_parameters()
    }
    weight, bias = random_affine(6)
    encoder = MLPSpec(hidden=(6,), norm="layer").build((5,))
    x = torch.randn(4, 5)
    linear = F.linear(x, params["stages.0.1.weight"], params["stages.0.1.bias"])
    own = {**params, "stages.0.2.weight": weight, "stages.0.2.bias": bias}
    torch.testing.assert_close(
        functional_call(encoder, own, (x,)), F.layer_norm(linear, (6,), weight, bias).relu()
    )


def conv(learner: str, sharing: str = "hard", **values: Any) -> Experiment:
    """A small batch-normalised convolutional network on digits with three queries."""
    small = {
        "encoder.name": "conv",
        "encoder.channels": [4, 8],
        "encoder.norm": "batch",
        "data.queries": 3,
    }
    try:
        chosen = axes(sharing, "static", learner).override(small)
    except UserError:
        chosen = axes(sharing, "static", learner).override(
            {"data.tasks": ["left", "right"], **small}
        )
    gentle = {"learner.inner_lr": 0.01} if hasattr(chosen.learner, "inner_lr") else {}
    return chosen.override(
        {**gentle, **{key.replace("__", "."): value for key, value in values.items()}}
    )


def apart(
    algorithm: Algorithm, params: Mapping[str, Tensor], inputs: Tensor | Mapping[str, Tensor]
) -> float:
    """How far the predictions of each query alone are from those beside the others."""
    together = algorithm.predict(params, inputs)
    gaps = []
    for index in range(3):
        alone = algorithm.predict(
            params,
            inputs[index : index + 1]
            if isinstance(inputs, Tensor)
            else {name: own[index : index + 1] for name, own in inputs.items()},
        )
        gaps += [(alone[name][0] - together[name][index]).abs().max() for name in together]
    return float(torch.stack(gaps).max().detach())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("learner", "norm"),
    [
        *((learner, norm) for norm in ("batch", "per_step") for learner in ADAPTING),
        # These normalise every example by itself, whatever the learner.
        *(
            (learner, norm)
            for norm in ("none", "group", "layer")
            for learner in ("maml", "protonet")
        ),
    ],
)
def test_predictions_ignore_the_other_queries(learner: str, norm: str, arrays: Arrays) -> None:
    if norm == "per_step" and not conv(learner).learner.has_per_step_params:
        return  # refused, as below
    algorithm = conv(learner, encoder__norm=norm).build()
    support, query = first(episodes_of(conv(learner), arrays))
    assert not algorithm.transductive
    assert apart(algorithm, algorithm.adapt(perturbed(algorithm), support), query.inputs) < 1e-10
    if algorithm.learner.supports_zero_shot:
        assert (
            apart(algorithm, algorithm.normalised(perturbed(algorithm), support), query.inputs)
            < 1e-10
        )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learner", ADAPTING)
def test_a_transductive_prediction_moves_with_the_other_queries(
    learner: str, arrays: Arrays
) -> None:
    algorithm = conv(learner, encoder__transductive=True).build()
    support, query = first(episodes_of(conv(learner), arrays))
    assert algorithm.transductive
    assert apart(algorithm, algorithm.adapt(perturbed(algorithm), support), query.inputs) > 1e-3


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("sharing", "norm", "own_inputs"),
    [
        *((sharing, "batch", own_inputs) for sharing in SHARING for own_inputs in (False, True)),
        # Which set of a step is in use is decided inside the norm.
        *((sharing, "per_step", True) for sharing in ("hard", "cross_stitch")),
    ],
)
def test_every_architectures_predictions_ignore_other_queries(
    sharing: str, norm: str, own_inputs: bool, arrays: Arrays
) -> None:
    algorithm = conv("maml", sharing, encoder__norm=norm).build()
    support, query = first(episodes_of(conv("maml", sharing), arrays))
    if own_inputs:  # as many as there are tasks, and of each another number
        support, query = (
            _with_own_inputs(batch, len(algorithm.tasks)) for batch in (support, query)
        )
    params = algorithm.adapt(perturbed(algorithm), support)
    assert apart(algorithm, params, query.inputs) < 1e-10
    if own_inputs:  # and where they may, they move, which the tests of learners see of one input
        by_itself = conv("maml", sharing, encoder__norm=norm, encoder__transductive=True).build()
        params = by_itself.adapt(perturbed(by_itself), support)
        assert apart(by_itself, params, query.inputs) > 1e-3


def _with_own_inputs(batch: Batch, num_tasks: int) -> Batch:
    sizes = [len(next(iter(batch.targets.values()))) - index for index in range(num_tasks)]
    inputs = {
        name: shared_inputs(batch)[: max(size, 3)].roll(i, 0)
        for i, (name, size) in enumerate(zip(batch.targets, sizes, strict=True))
    }
    return Batch(
        inputs, {name: batch.targets[name][: len(own)] for name, own in inputs.items()}, {}
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learner", ADAPTING)
def test_support_statistics_ignore_the_order(learner: str, arrays: Arrays) -> None:
    algorithm = conv(learner).build()
    support, query = first(episodes_of(conv(learner), arrays))
    order = torch.randperm(len(support.inputs))
    mixed = Batch(
        shared_inputs(support)[order],
        {name: target[order] for name, target in support.targets.items()},
        {},
    )
    predictions = [
        algorithm.predict(algorithm.adapt(perturbed(algorithm), each), query.inputs)
        for each in (support, mixed)
    ]
    torch.testing.assert_close(*predictions, rtol=1e-8, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("learner", ADAPTING)
def test_batch_normalised_vmap_equals_a_loop(
    learner: str, transductive: bool, arrays: Arrays
) -> None:
    assert_vmap_equals_the_loop(conv(learner, encoder__transductive=transductive), arrays)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transductive", [False, True])
def test_predictions_ignore_how_episodes_run(transductive: bool, arrays: Arrays) -> None:
    chosen = conv("maml", encoder__transductive=transductive)
    algorithm, episodes = chosen.build(), episodes_of(chosen, arrays)
    params = perturbed(algorithm)

    def predict(episode: Episode) -> dict[str, Tensor]:
        return algorithm.predict(algorithm.adapt(params, episode.support), episode.query.inputs)

    whole, *others = (
        over_episodes(predict, episodes, execution)
        for execution in (ExecutionConfig(), ExecutionConfig(chunk=2), ExecutionConfig("loop"))
    )
    for other in others:
        torch.testing.assert_close(other, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("learner", ADAPTING)
def test_a_batch_normalised_model_survives_saving(
    learner: str, arrays: Arrays, tmp_path: Path
) -> None:
    assert_it_survives_saving(conv(learner), arrays, tmp_path)


@pytest.mark.usefixtures("float64")
def test_the_support_set_may_be_queried(arrays: Arrays) -> None:
    """Queried beside its statistics it gives what it gave where these were recorded."""
    algorithm = conv("maml", learner__inner_steps=0).build()
    params = perturbed(algorithm)
    support, _ = first(episodes_of(conv("maml"), arrays))
    by_itself = conv("maml", learner__inner_steps=0, encoder__transductive=True).build()
    expected = by_itself.predict(by_itself.adapt(params, support), support.inputs)
    torch.testing.assert_close(
        algorithm.predict(algorithm.adapt(params, support), support.inputs), expected
    )


STEPPING = [learner for learner in ADAPTING if conv(learner).learner.has_per_step_params]


def alike(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per-step parameters of batch-normalised ones: every set the one that there was."""
    sets: dict[str, Tensor] = {}
    for name, value in params.items():
        norm, _, last = name.rpartition(".")
        if (
            f"{norm}.bias" in params
            and f"{norm}.weight" in params
            and ".1." in name
            and "heads" not in name
        ):
            plural = {"weight": "weights", "bias": "biases"}[last]
            sets |= {f"{norm}.{plural}.{step}": value.detach().clone() for step in range(3)}
        else:
            sets[name] = value
    return sets


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transductive", [False, True])
def test_equal_per_step_sets_are_batch_norm(transductive: bool, arrays: Arrays) -> None:
    """The inner step moves a set that the next step does not use, so scales rest where all sets start alike."""
    values: dict[str, Any] = {
        "learner__inner_steps": 2,
        "encoder__transductive": transductive,
    }
    at_rest = conv("maml", learner__adapts=["*", "-*.1.weight", "-*.1.bias"], **values).build()
    per_step = conv("maml", encoder__norm="per_step", **values).build()
    params = perturbed(at_rest)
    sets = alike(params)
    assert set(sets) == set(per_step.init_params())
    support, query = first(episodes_of(conv("maml"), arrays))
    for steps in (0, 1, 2):
        expected = at_rest.predict(at_rest.adapt(params, support, steps), query.inputs)
        computed = per_step.predict(per_step.adapt(sets, support, steps), query.inputs)
        torch.testing.assert_close(computed, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_each_step_uses_its_own_set(arrays: Arrays) -> None:
    """Steps beyond the last use the last one's."""
    algorithm = conv("maml", encoder__norm="per_step", learner__inner_steps=2).build()
    params = perturbed(algorithm)
    support, query = first(episodes_of(conv("maml"), arrays))
    name = "model.encoders.0.stages.0.1.weights.{}"
    for steps in range(5):
        before = algorithm.predict(algorithm.adapt(params, support, steps), query.inputs)["left"]
        for own in range(3):
            other = {**params, name.format(own): params[name.format(own)] * 1.1}
            moved = algorithm.predict(algorithm.adapt(other, support, steps), query.inputs)["left"]
            used = own <= steps  # on the way there, or for the query
            assert torch.equal(moved, before) != used, (steps, own)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("learner", STEPPING)
def test_per_step_vmap_equals_a_loop(learner: str, transductive: bool, arrays: Arrays) -> None:
    chosen = conv(learner, encoder__norm="per_step", encoder__transductive=transductive)
    assert_vmap_equals_the_loop(chosen, arrays)


@pytest.mark.usefixtures("float64")
def test_recomputed_steps_use_their_own_sets(arrays: Arrays) -> None:
    grads = []
    for gradient in ("unrolled", "checkpointed"):
        chosen = conv(
            "maml", encoder__norm="per_step", learner__inner_steps=5, learner__gradient=gradient
        )
        algorithm = chosen.build()
        grads.append(
            meta_gradient(algorithm, perturbed(algorithm), episodes_of(chosen, arrays)).grads
        )
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transductive", [False, True])
def test_every_set_gets_the_gradient_of_finite_differences(
    transductive: bool, arrays: Arrays
) -> None:
    """MAML++ judges the query after each step, each with the set of its own number of steps."""
    chosen = conv(
        "maml_pp",
        encoder__norm="per_step",
        encoder__transductive=transductive,
        learner__inner_steps=2,
    )
    chosen = chosen.override({"learner.first_order_until": 0})
    algorithm = chosen.build()
    for own in range(3):
        names = [
            f"model.encoders.0.stages.{stage}.1.{kind}.{own}"
            for stage in range(2)
            for kind in ("weights", "biases")
        ]
        assert (
            directional_error(algorithm, perturbed(algorithm), episodes_of(chosen, arrays), names)
            < 1e-5
        )


@pytest.mark.parametrize("transductive", [False, True])
def test_a_per_step_model_survives_saving(
    transductive: bool, arrays: Arrays, tmp_path: Path
) -> None:
    chosen = conv("maml", encoder__norm="per_step", encoder__transductive=transductive)
    assert_it_survives_saving(chosen, arrays, tmp_path)


@pytest.mark.usefixtures("float64")
def test_one_vmap_predicts_after_different_steps(arrays: Arrays) -> None:
    """Of models that were adapted by different numbers of steps."""
    algorithm = conv("maml", encoder__norm="per_step", encoder__transductive=True).build()
    support, query = first(episodes_of(conv("maml"), arrays))
    adapted = [algorithm.adapt(perturbed(algorithm), support, steps) for steps in (1, 3)]
    stacked = {name: torch.stack([params[name] for params in adapted]) for name in adapted[0]}
    together = vmap(lambda params: algorithm.predict(params, query.inputs)["left"])(stacked)
    for index, params in enumerate(adapted):
        torch.testing.assert_close(together[index], algorithm.predict(params, query.inputs)["left"])


@pytest.mark.parametrize("learner", [name for name in ADAPTING if name not in STEPPING])
def test_per_step_needs_learners_that_count_steps(learner: str) -> None:
    with pytest.raises(
        UserError, match=f"encoder.norm: per_step .* learner.name: {learner}, as it is set"
    ):
        conv(learner, encoder__norm="per_step")


def test_per_step_needs_steps_that_differ() -> None:
    """It is refused where no steps are taken or all are taken for alike."""
    for values in ({"learner__inner_steps": 0}, {"learner__gradient": "implicit"}):
        with pytest.raises(UserError, match="has no steps to tell apart"):
            conv("maml", encoder__norm="per_step", **values)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("axis", ["vmap", "loop"])
def test_maml_through_batch_norm_equals_plain_autograd(
    axis: TaskAxis, transductive: bool, arrays: Arrays
) -> None:
    """With torch's batch norm."""
    chosen = conv(
        "maml", data__tasks=["left"], encoder__transductive=transductive, learner__inner_steps=3
    )
    algorithm = chosen.build()
    params = perturbed(algorithm)
    episodes = episodes_of(chosen, arrays)
    computed = meta_gradient(algorithm, params, episodes, execution=ExecutionConfig(axis))

    theta = {name: value.detach().requires_grad_() for name, value in params.items()}

    def forward(phi: Mapping[str, Tensor], support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both; the layers of each are normalised by the support, or where transductive each by itself."""
        both = torch.cat([support, query])
        for stage in range(2):
            own = {
                n: phi[f"model.encoders.0.stages.{stage}.{n}"]
                for n in ("0.weight", "1.weight", "1.bias")
            }
            both = F.conv2d(both, own["0.weight"], stride=2, padding=1)
            parts = both[: len(support)], both[len(support) :]
            of = parts if transductive else (parts[0], parts[0])
            normed = tuple(
                (part - basis.mean((0, 2, 3), keepdim=True))
                / (basis.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
                for part, basis in zip(parts, of, strict=True)
            )
            both = torch.cat(normed) * own["1.weight"][:, None, None] + own["1.bias"][:, None, None]
            both = both.relu()
        logits = F.linear(
            both.flatten(1), phi["model.heads.left.weight"], phi["model.heads.left.bias"]
        )
        return logits[: len(support)], logits[len(support) :]

    total = torch.zeros(())
    for index in range(chosen.train.meta_batch):
        (support, targets), (query, judged) = (
            (shared_inputs(part)[index], part.targets["left"][index]) for part in episodes
        )
        phi = {name: value for name, value in theta.items() if name.startswith("model.")}
        for _ in range(3):
            loss = F.cross_entropy(forward(phi, support, query)[0], targets)
            update = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {
                name: value - 0.01 * g for (name, value), g in zip(phi.items(), update, strict=True)
            }
        total = (
            total
            + F.cross_entropy(forward(phi, support, query)[1], judged) / chosen.train.meta_batch
        )
    model = {name: value for name, value in theta.items() if name.startswith("model.")}
    for name, expected in zip(model, torch.autograd.grad(total, list(model.values())), strict=True):
        torch.testing.assert_close(computed.grads[name], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("transductive", [False, True])
def test_scores_say_whether_they_are_transductive(transductive: bool, arrays: Arrays) -> None:
    chosen = conv("maml", encoder__transductive=transductive)
    algorithm = chosen.build()
    metrics, examples, _ = evaluate(chosen, algorithm, algorithm.init_params(), arrays, episodes=3)
    assert metrics["transductive"] is transductive
    assert metrics["score"]["before"] is not None
    assert examples[0]["left.before"] is not None


def test_running_statistics_are_refused_with_the_reason() -> None:
    for value in ("running", "batch_running"):
        with pytest.raises(
            UserError,
            match=f"encoder.norm: .*got '{value}'.*carry each support set into the queries",
        ):
            experiment(encoder__name="conv4", encoder__norm=value)


@pytest.mark.parametrize(
    "module", [nn.BatchNorm1d(8), nn.InstanceNorm1d(8, track_running_stats=True)]
)
def test_a_models_own_running_statistics_are_refused(module: nn.Module) -> None:
    algorithm = experiment().build()
    algorithm.model.heads["left"] = nn.Sequential(nn.Linear(8, 8), module, nn.Linear(8, 10))
    with pytest.raises(
        UserError, match=f"{type(module).__name__}: they are no function of the parameters"
    ):
        algorithm.init_params()


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
def test_transductive_without_effect_is_refused(norm: str) -> None:
    with pytest.raises(
        UserError, match=f"encoder.transductive: expected encoder.norm: batch.*got {norm}"
    ):
        experiment(encoder__name="conv4", encoder__norm=norm, encoder__transductive=True)


def test_one_value_of_a_channel_has_no_statistics() -> None:
    encoder = MLPSpec(hidden=(4,), norm="batch").build((3,))
    with pytest.raises(UserError, match=r"at least two values of a channel.*data\.shots"):
        encoder(torch.randn(1, 3))


def test_indivisible_widths_are_refused() -> None:
    """Those that do not divide into groups."""
    with pytest.raises(UserError, match="multiples of 4, got 6"):
        experiment(encoder__hidden=[6], encoder__norm="group")
    with pytest.raises(UserError, match="multiples of 2, got 5"):
        LeNetSpec(hidden=(5,), norm="group").build((1, 16, 16))


def test_parameters_that_saw_no_support_set_predict_nothing(arrays: Arrays) -> None:
    algorithm = conv("maml").build()
    with pytest.raises(ValueError, match="adapt or normalise"):
        algorithm.predict(algorithm.init_params(), torch.zeros(2, 1, 16, 16))


def test_other_calls_than_those_recorded_are_refused() -> None:
    norm, x = BatchNorm(3), torch.randn(4, 3)
    with recorded_statistics() as maps:
        norm(norm(x))
    with (
        pytest.raises(ValueError, match="2 statistics were recorded, got fewer"),
        statistics_of(maps),
    ):
        norm(x)
