"""The adapters of a model in peft's files: read by hand, and by peft itself (extra `peft`)."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import raymtl
from raymtl.api.model import Model
from raymtl.config import Experiment
from raymtl.encoders import Encoder
from raymtl.prediction.trained import Trained
from raymtl.storage import formats
from raymtl.types import UserError
from tests.conftest import experiment
from tests.narrowing import checked
from tests.sharing.laws import moved

pytestmark = pytest.mark.usefixtures("float64")
timm = pytest.importorskip("timm", reason="timm is not installed (the extra raymtl[vision])")

TASKS = ("left", "sum")
NETWORK = "test_resnet"
"""Groups, strides, kernels of 1 and 3, and stages."""


class Spec(raymtl.EncoderSpecBase):
    """Layers whose names end alike, of which one is left out, and every kind that peft knows."""

    def build(self, input_shape: tuple[int, ...], inner_steps: int = 0) -> Encoder:
        layers = [nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Tanh()]
        layers += [nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.Tanh())]
        layers += [nn.Conv2d(6, 3, (1, 3), padding="same"), nn.AdaptiveAvgPool2d(3), nn.Flatten()]
        layers += [nn.Linear(27, 5), nn.Tanh(), nn.Linear(5, 8, bias=False)]
        return Encoder(layers, input_shape)


def model_of(chosen: Experiment) -> Model:
    """With adapters that are not 0."""
    algorithm = chosen.build()
    moved_values = moved(algorithm.model, 0.1)
    params = {f"model.{name}": value for name, value in moved_values.items()}
    return Model(Trained(chosen, algorithm, params))


def own_model(monkeypatch: pytest.MonkeyPatch, **values: Any) -> Model:
    """On layers of this file, in ranks that some of them have no room for."""
    chosen = experiment(data__tasks=list(TASKS), sharing__name="lora", sharing__rank=4, **values)
    monkeypatch.setattr(type(chosen.encoder), "build", Spec.build)
    # Shapes of a specification are remembered, and no other test has this one.
    own = {"encoder.hidden": [77], "sharing.modules": ["*", "-stages.0"]}
    return model_of(chosen.override(own))


def pretrained_model(folder: Path, **values: Any) -> tuple[Model, Any]:
    """On a network of timm, and that network."""
    network = timm.create_model(NETWORK, num_classes=0).eval()
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    formats.save_params(folder / "weights.safetensors", network.state_dict())
    encoder = {"name": "timm", "model": NETWORK, "weights": str(folder / "weights.safetensors")}
    chosen = experiment(data__tasks=list(TASKS), sharing__name="lora").override(
        {"encoder": encoder, "encoder.size": 32, **values}
    )
    return model_of(chosen.resolve()), network


def features_of(model: Model, pictures: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(model.model(pictures, output="features"))


def by_hand(network: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The dense weights of a task: W + (lora_alpha / r) B A, as peft's documentation has it."""
    config = formats.read_json(folder / "adapter_config.json")
    tensors = formats.load_params(folder / "adapter_model.safetensors")
    weights: dict[str, Tensor] = dict(network.named_parameters())
    for name, layer in network.named_modules():
        key = f"base_model.model.{name}"
        if not re.fullmatch(config["target_modules"], name):
            assert f"{key}.lora_A.weight" not in tensors
            continue
        down, up = (tensors.pop(f"{key}.lora_{each}.weight") for each in "AB")
        ranks, alphas = (
            [value for pattern, value in config[kind].items() if re.search(f"{pattern}$", name)]
            for kind in ("rank_pattern", "alpha_pattern")
        )
        (rank, *more), (alpha, *_) = [*ranks, config["r"]], [*alphas, config["lora_alpha"]]
        assert len(down) == rank and len(more) == len(ranks)
        if isinstance(layer, nn.Conv2d):
            pieces = zip(up.chunk(layer.groups), down.chunk(layer.groups), strict=True)
            change = torch.cat([torch.einsum("or,r...->o...", b[..., 0, 0], a) for b, a in pieces])
            inputs = change.chunk(layer.groups)
            size = layer.weight.shape[1]
            own = [part[:, i * size : (i + 1) * size] for i, part in enumerate(inputs)]
            assert sum(int(part.count_nonzero()) for part in own) == int(change.count_nonzero())
            change = torch.cat(own)
        else:
            change = up @ down
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + alpha / rank * change
    assert not tensors
    return weights


def test_the_files_are_the_change_of_every_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups and in ranks that layers have no room for too."""
    model = own_model(monkeypatch)
    folder = raymtl.export_adapters(model, tmp_path / "adapters")
    network = Spec().build((1, 16, 16))
    network.load_state_dict(formats.load_params(folder / "network.safetensors"))
    pictures = torch.rand(3, 1, 16, 16)
    found = features_of(model, pictures)
    assert {path.name for path in folder.iterdir()} == {*TASKS, "network.safetensors"}
    for task in TASKS:
        dense = by_hand(network, folder / task)
        assert not torch.allclose(found[task], network(pictures))
        expected = functional_call(network, dense, (pictures,))
        torch.testing.assert_close(found[task], expected, rtol=1e-10, atol=1e-10)


def test_the_files_name_the_layers_of_the_library(tmp_path: Path) -> None:
    model, network = pretrained_model(tmp_path, **{"encoder.frozen_stages": 1})
    folder = raymtl.export_adapters(model, tmp_path / "adapters")
    network.load_state_dict(formats.load_params(folder / "network.safetensors"))
    pictures = torch.rand(3, *model.experiment.data.input_shape)
    found = features_of(model, pictures)
    for task in TASKS:
        dense = by_hand(network, folder / task)
        expected = functional_call(network, dense, (prepared(network, pictures),))
        torch.testing.assert_close(found[task], expected, rtol=1e-10, atol=1e-10)


def prepared(network: Any, pictures: Tensor) -> Tensor:
    """Grey pictures as the library's network takes them."""
    config = network.pretrained_cfg
    large = F.interpolate(pictures, (32, 32), mode=config["interpolation"]).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (large - mean) / std


def test_peft_computes_the_same_from_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft: Any = pytest.importorskip("peft", exc_type=ImportError)
    own, (pretrained, network) = own_model(monkeypatch), pretrained_model(tmp_path)
    plain = Spec().build((1, 16, 16))
    pictures = torch.rand(3, *own.experiment.data.input_shape)
    cases = (own, plain, pictures), (pretrained, network, prepared(network, pictures))
    for model, trunk, inputs in cases:
        folder = raymtl.export_adapters(model, tmp_path / "adapters")
        trunk.load_state_dict(formats.load_params(folder / "network.safetensors"))
        first, second = TASKS
        theirs = peft.PeftModel.from_pretrained(trunk, folder / first, adapter_name=first)
        theirs.load_adapter(folder / second, adapter_name=second)
        expected = features_of(model, pictures)
        for task in TASKS:
            theirs.set_adapter(task)
            with torch.no_grad():
                found = theirs(inputs)
            torch.testing.assert_close(found, expected[task], rtol=1e-10, atol=1e-10)


def refusal(model: Model, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        raymtl.export_adapters(model, folder / "adapters")
    assert not (folder / "adapters").exists()
    return str(error.value)


def test_what_peft_cannot_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = model_of(experiment(data__tasks=list(TASKS)))
    assert refusal(hard, tmp_path).startswith("sharing.name: expected lora")
    model, _ = pretrained_model(tmp_path, **{"encoder.batch_norm": "support"})
    assert refusal(model, tmp_path).startswith("encoder.batch_norm: expected frozen")
    dilated = own_model(monkeypatch)
    layer = checked(dilated.model.get_submodule("encoders.0.stages.3"), nn.Conv2d)
    layer.dilation = (1, 2)
    assert "got stages.3 with (1, 2). Add '-stages.3'" in refusal(dilated, tmp_path)


def test_layers_of_derived_classes_are_noted() -> None:
    """timm's Conv2dSame, which pads its inputs; not those that `modules` excludes."""
    encoder = {"name": "timm", "model": "tf_efficientnet_lite0", "size": 32}
    chosen = experiment(sharing__name="lora").override({"encoder": encoder})
    (note,) = chosen.notes()
    assert note.key == "sharing.modules" and "conv_stem (Conv2dSame)" in note.text
    names = ["*", "-*conv_dw*"]
    (note,) = chosen.override({"sharing.modules": names}).notes()
    assert "conv_stem" in note.text and "conv_dw" not in note.text
    assert chosen.override({"sharing.modules": [*names, "-*conv_stem"]}).notes() == ()
    assert chosen.override({"sharing.name": "hard"}).notes() == ()
