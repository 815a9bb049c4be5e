"""Features of a frozen network: what is computed, kept and read again, and what trainings make of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import raymtl
from raymtl.config import Experiment, parse
from raymtl.data.episodes import build_episodes, on_device
from raymtl.encoders import TorchvisionSpec
from raymtl.encoders.base import lr_scales
from raymtl.encoders.pretrained import weights
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.features import compute
from raymtl.features.compute import LoadNetwork, in_this_process
from raymtl.features.load import Loaded, with_features
from raymtl.features.network import keep_weights, load_network
from raymtl.step.meta_gradient import meta_gradient
from raymtl.storage import atomic, formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Params, UserError
from tests.conftest import SHARING, axes, episodes_of
from tests.narrowing import checked, present, shared_inputs

models = pytest.importorskip("torchvision.models")

MODEL = "mobilenet_v3_small"
KINDS = ("blue", "green", "red")


def write_kinds(root: Path, number: int = 12) -> Path:
    """Small pictures in a folder for each of three colours; two of them are alike."""
    rng = np.random.default_rng(0)
    for channel, kind in enumerate(KINDS):
        (root / kind).mkdir(parents=True)
        for i in range(number):
            pixels = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(root / kind / f"{i:02d}.png")
    twin = root / "red" / "00.png"
    (root / "red" / "01.png").write_bytes(twin.read_bytes())
    return root


def write_weights(path: Path, seed: int = 0, spread: float = 0.1) -> Path:
    """All values moved from where they start, so that features are of a usual size."""
    torch.manual_seed(seed)
    values = models.get_model(MODEL, weights=None).state_dict()
    for value in values.values():
        if value.is_floating_point():
            value.add_(spread * torch.rand_like(value))
    formats.save_params(path, values)
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("frozen")
    return {
        "data": write_kinds(folder / "kinds"),
        "weights": write_weights(folder / "weights.safetensors"),
    }


def tree(places: dict[str, Path], output: Path, **encoder: Any) -> dict[str, Any]:
    return {
        "output": str(output),
        "data": {
            "name": "files",
            "path": str(places["data"]),
            "size": [16, 16],
            "shots": 4,
            "queries": 6,
            "tasks": {"label": {"column": "folder"}},
        },
        "encoder": {
            "name": "torchvision",
            "model": MODEL,
            "weights": str(places["weights"]),
            "size": 32,
            **encoder,
        },
        "learner": {"name": "maml", "inner_steps": 1},
        "train": {"steps": 3, "eval_every": 3, "meta_batch": 2, "graph": "none"},
        "evaluate": {"val_episodes": 2, "test_episodes": 2},
    }


def frozen(places: dict[str, Path], output: Path, **encoder: Any) -> Experiment:
    return parse(tree(places, output, frozen=True, **encoder)).resolve()


class Counting:
    """The driver of this process, which counts the pictures that it computes."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.pictures, self.stop_after = 0, stop_after

    def __call__(
        self, load: LoadNetwork, blocks: Sequence[np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        for number, (block, done) in enumerate(
            zip(blocks, in_this_process(load, blocks), strict=True)
        ):
            if number == self.stop_after:
                raise KeyboardInterrupt
            self.pictures += len(block)
            yield done


def embedded(experiment: Experiment, driver: Counting) -> Loaded:
    return with_features(experiment, experiment.data.load(), driver=driver)


def cached(experiment: Experiment) -> list[Path]:
    return sorted(Path(experiment.output).glob(".features/*/*.parquet"))


def test_features_are_those_of_the_network(places: dict[str, Path], tmp_path: Path) -> None:
    """As the library's own network computes them in float64, in every batch alike."""
    experiment = frozen(places, tmp_path)
    pictures = experiment.data.load()["inputs"]
    loaded = with_features(experiment, experiment.data.load())
    spec = checked(experiment.encoder, TorchvisionSpec).network
    torch.set_default_dtype(torch.float64)
    network = spec.build_network(experiment.data.input_shape)
    spec.initialise(network)
    with torch.no_grad():
        expected = network(torch.from_numpy(pictures) / 255).numpy()
    features = loaded.arrays["inputs"]
    assert features.dtype == np.float32 and features.shape == (len(pictures), 1024)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    torch.set_default_dtype(torch.float32)
    alone = present(load_network(experiment))
    for row in (0, 7, 35):
        assert np.array_equal(alone.of_rows(pictures[row : row + 1])[0], features[row])


def test_what_is_kept_is_not_computed_again(places: dict[str, Path], tmp_path: Path) -> None:
    experiment, driver = frozen(places, tmp_path), Counting()
    first = embedded(experiment, driver)
    assert driver.pictures == 35, "of 36 pictures two are alike"
    again = embedded(experiment, driver)
    assert driver.pictures == 35
    assert np.array_equal(first.arrays["inputs"], again.arrays["inputs"])
    assert "computed in" in first.notes[0].text and "read from" in again.notes[0].text
    assert first.notes[0].key == "encoder.cache"


def test_a_kept_part_is_not_computed_again(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after two blocks of eight pictures."""
    monkeypatch.setattr(compute, "BLOCK", 8)
    experiment, driver = frozen(places, tmp_path), Counting(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        embedded(experiment, driver)
    assert len(cached(experiment)) == 2
    driver.stop_after = None
    embedded(experiment, driver)
    assert driver.pictures == 35


@pytest.mark.parametrize("damage", ["cut", "bit", "text"])
def test_a_damaged_file_is_computed_anew(
    damage: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "BLOCK", 20)
    experiment, driver = frozen(places, tmp_path), Counting()
    first = embedded(experiment, driver)
    path = cached(experiment)[0]
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
    elif damage == "cut":
        content = content[: len(content) // 2]
    else:
        content = bytearray(b"no Parquet")
    path.write_bytes(content)
    second = embedded(experiment, driver)
    assert driver.pictures in (35 + 20, 35 + 15)
    assert np.array_equal(first.arrays["inputs"], second.arrays["inputs"])
    assert f"{path.name} cannot be read" in second.notes[0].text
    third = embedded(experiment, driver)
    assert "read from" in third.notes[0].text, "the file was replaced"


@pytest.mark.slow
def test_another_network_has_another_cache(places: dict[str, Path], tmp_path: Path) -> None:
    driver = Counting()
    embedded(frozen(places, tmp_path), driver)
    others = [
        frozen({**places, "weights": write_weights(tmp_path / "w.safetensors", 1)}, tmp_path),
        frozen(places, tmp_path, size=48),
        frozen(places, tmp_path, cache=str(tmp_path / "elsewhere")),
    ]
    for number, other in enumerate(others, start=2):
        embedded(other, driver)
        assert driver.pictures == number * 35
    embedded(frozen(places, tmp_path, trunk={"hidden": [5]}), driver)
    assert driver.pictures == 4 * 35, "the trunk is no part of it"


def test_storage_that_cannot_be_written_is_a_note(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, write: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(atomic, "publish", refuse)
    monkeypatch.setattr(formats.write_json, "__defaults__", (refuse,))
    loaded = embedded(frozen(places, tmp_path), Counting())
    assert "not kept, since" in loaded.notes[0].text


def trained(folder: Path, experiment: Experiment) -> Path:
    """A run folder, as `raymtl train` leaves it."""
    (folder / "best").mkdir(parents=True)
    experiment.save(folder / "config.yaml")
    keep_weights(experiment, folder, atomic.publish)
    arrays = with_features(experiment, experiment.data.load()).arrays
    context = TrainContext(lambda metrics: None, lambda row: None)
    train_loop(experiment, arrays, local_batches(experiment, arrays), context, folder / "best")
    evaluate_folder(folder / "best", arrays, experiment.data)
    return folder


def descended(
    experiment: Experiment, arrays: Any, start: Params | None, rate: float = 0.1
) -> tuple[Params, dict[str, Tensor]]:
    """Where the heads are after three steps, and what they then predict."""
    algorithm = experiment.build()
    params = start or algorithm.init_params()
    for step in range(3):
        episodes = episodes_of(experiment, arrays, count=2, step=step)
        gradients = meta_gradient(algorithm, params, episodes).grads
        params = {name: value - rate * gradients[name] for name, value in params.items()}
    (stack,), _ = build_episodes(experiment.data, arrays, seed=0, split="test", step=0, indices=[0])
    query = on_device(stack, "cpu").query
    return params, algorithm.predict(params, shared_inputs(query)[0])


def test_heads_learn_as_on_stages_that_are_constant(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """Of `frozen` and of `frozen_stages` with every stage, from the same start."""
    on_features = frozen(places, tmp_path)
    network = checked(on_features.encoder, TorchvisionSpec).network
    stages = len(network.build_network((3, 16, 16)).stages)
    on_pictures = parse(tree(places, tmp_path, frozen_stages=stages)).resolve()
    pictures = on_features.data.load()
    features = with_features(on_features, pictures).arrays
    start = on_features.build().init_params()
    assert start.keys() == on_pictures.build().init_params().keys()
    params, predictions = descended(on_features, features, start)
    of_pictures, expected = descended(on_pictures, pictures, start)
    for name, value in params.items():
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(value, of_pictures[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictions["label"], expected["label"], rtol=1e-4, atol=1e-4)


def test_last_stages_learn_as_behind_stages_that_are_constant(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """Of `frozen` with some `frozen_stages` and of these alone, from the same start."""
    number, slow = 9, {"learner.inner_lr": 0.01}
    own = {**places, "weights": write_weights(tmp_path / "w.safetensors", spread=0.01)}
    chosen = tree(own, tmp_path, frozen_stages=number, lr_scale=0.5)
    on_pictures = parse(chosen).resolve().override(slow)
    chosen["encoder"]["frozen"] = True
    on_features = parse(chosen).resolve().override(slow)
    pictures = on_features.data.load()
    features = with_features(on_features, pictures).arrays
    shape = checked(on_features.encoder, TorchvisionSpec).feature_shape
    assert len(shape) == 3
    assert all(features[key].shape[1:] == shape for key in on_features.data.input_arrays())

    def in_the_whole(name: str) -> str:
        """What a parameter is called where the constant stages stand before it."""
        before, stages, after = name.partition(".stages.")
        if not stages:
            return name
        stage, _, rest = after.partition(".")
        return f"{before}.stages.{int(stage) + number}.{rest}"

    model, whole = on_features.build().model, on_pictures.build().model
    assert {in_the_whole(name): scale for name, scale in lr_scales(model).items()} == lr_scales(
        whole
    )
    start = on_features.build().init_params()
    in_whole = {in_the_whole(name): value for name, value in start.items()}
    initial = on_pictures.build().init_params()
    assert in_whole.keys() == initial.keys()
    assert all(torch.equal(in_whole[name], initial[name]) for name in initial if "stages" in name)
    params, predictions = descended(on_features, features, start, rate=0.01)
    of_pictures, expected = descended(on_pictures, pictures, in_whole, rate=0.01)
    for name, value in params.items():
        other = of_pictures[in_the_whole(name)]
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(params[name], start[name]) for name in start if "stages" in name)
    torch.testing.assert_close(predictions["label"], expected["label"], rtol=1e-3, atol=1e-3)


def test_a_stage_is_left_to_train(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder.frozen_stages: expected at most 12 beside"):
        frozen(places, tmp_path, frozen_stages=13)


@pytest.fixture(
    scope="module",
    params=[{"trunk": {"hidden": [8]}}, {"frozen_stages": 9}],
    ids=["trunk", "last stages"],
)
def run(
    request: pytest.FixtureRequest,
    places: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run whose file of weights is gone."""
    folder = tmp_path_factory.mktemp("run")
    own = {**places, "weights": write_weights(folder / "w.safetensors", spread=0.02)}
    experiment = frozen(own, folder, **request.param)
    path = trained(folder / "small", experiment)
    own["weights"].unlink()
    weights._held.clear()
    return path


@pytest.mark.slow
def test_a_run_reads_pictures_without_the_file_of_weights(
    run: Path, places: dict[str, Path]
) -> None:
    metrics = raymtl.evaluate(run)
    assert metrics["tasks"] == formats.read_json(run / "best" / "metrics.json")["tasks"]
    adapted = raymtl.adapt(run, places["data"])
    model = checked(adapted.model, raymtl.Model)
    table = raymtl.predict(model, places["data"])
    assert len(table) == 36 and set(table["label.after"].to_pylist()) <= set(KINDS)
    experiment = raymtl.open_run(run).config
    arrays = experiment.data.load()
    (stack,), _ = build_episodes(experiment.data, arrays, seed=0, split="test", step=0, indices=[0])
    pictures = shared_inputs(stack.query)[0]
    assert pictures.dtype == torch.uint8
    outputs = raymtl.load_model(run)(pictures)
    in_numbers = raymtl.load_model(run)(pictures / 255)
    torch.testing.assert_close(outputs["label"], in_numbers["label"])
    assert adapted.predictions.num_rows == 0 or "label.after" in adapted.predictions.column_names


@pytest.mark.parametrize("kind", ["feature", "model", "target"])
def test_a_transfer_reads_pictures(kind: str, run: Path) -> None:
    """What it predicted of an episode is what its network says of the pictures."""
    values: dict[str, Any] = {"optimiser.steps": 3, "held_out": 0}
    if kind == "target":
        values |= {"student.name": "mlp", "student.hidden": [4]}
    adapted = raymtl.adapt(run, episode=0, transfer=kind, values=values, name=kind)
    experiment = raymtl.open_run(run).config
    arrays = experiment.data.load()
    (stack,), _ = build_episodes(experiment.data, arrays, seed=0, split="test", step=0, indices=[0])
    with torch.no_grad():
        outputs = adapted.model(shared_inputs(stack.query)[0])
    predicted = [KINDS[number] for number in outputs.argmax(1).tolist()]
    assert adapted.predictions["label.after"].to_pylist() == predicted


def test_a_copied_model_says_which_file_it_lacks(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "best", tmp_path / "copy")
    with pytest.raises(UserError, match=r"expected frozen-[0-9a-f]{16}\.safetensors in it or in"):
        raymtl.load_model(tmp_path / "copy")
    (kept,) = run.glob("frozen-*.safetensors")
    shutil.copy(kept, tmp_path / "copy")
    raymtl.load_model(tmp_path / "copy")


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARING)
def test_every_architecture_works_on_features_or_is_refused(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    chosen = tree(places, tmp_path, frozen=True, trunk={"hidden": [12, 8]})
    chosen["data"]["tasks"] = {"label": {"column": "folder"}, "again": {"column": "folder"}}
    chosen["sharing"] = axes(name, "static", "maml").sharing.model_dump(mode="json")
    experiment = parse(chosen).resolve()
    algorithm = experiment.build()
    outputs = algorithm.predict(algorithm.init_params(), torch.rand(4, 1024))
    assert {task: output.shape[0] for task, output in outputs.items()} == {"label": 4, "again": 4}
    chosen["encoder"]["trunk"] = None
    try:
        alone = parse(chosen).resolve()
    except UserError:
        return
    algorithm = alone.build()
    algorithm.predict(algorithm.init_params(), torch.rand(4, 1024))


REFUSALS: dict[str, dict[str, Any]] = {
    "encoder.frozen: expected encoder.weights": {"weights": "none"},
    "encoder.frozen: expected encoder.pooled: true": {"pooled": False},
    "encoder.frozen: expected encoder.batch_norm: auto": {"batch_norm": "support"},
    "encoder.lr_scale: expected none beside": {"lr_scale": 0.5},
    "encoder.trunk: expected none beside encoder.frozen_stages": {
        "frozen_stages": 2,
        "trunk": {"hidden": [4]},
    },
    "encoder.trunk: expected encoder.frozen: true": {"frozen": False, "trunk": {}},
    "encoder.cache: expected encoder.frozen: true": {"frozen": False, "cache": "here"},
}


@pytest.mark.parametrize("expected", REFUSALS)
def test_keys_that_contradict_are_one_sentence(
    expected: str, places: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        parse(tree(places, tmp_path, **{"frozen": True, **REFUSALS[expected]}))
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "digits"}, "got data.name: digits"),
        ({"name": "cifar100"}, "got data.augment"),
        ({"name": "several", "parts": {"a": {"name": "cifar100"}}}, "got data.parts.a.augment"),
    ],
)
def test_pictures_that_are_made_anew_are_refused(
    data: dict[str, Any], expected: str, places: dict[str, Path], tmp_path: Path
) -> None:
    chosen = tree(places, tmp_path, frozen=True) | {"data": data}
    with pytest.raises(UserError, match=expected):
        parse(chosen).resolve()


def test_all_trials_read_the_same_features(places: dict[str, Path], tmp_path: Path) -> None:
    chosen = tree(places, tmp_path, frozen=True)
    parse(chosen | {"search": {"encoder.trunk.hidden": {"choice": [[8], [16]]}}})
    with pytest.raises(UserError, match=r"search\.encoder\.size: expected keys of encoder\.trunk"):
        parse(chosen | {"search": {"encoder.size": {"choice": [32, 64]}}})


def test_a_cache_that_is_no_folder_is_refused(places: dict[str, Path], tmp_path: Path) -> None:
    experiment = frozen(places, tmp_path, cache="s3://bucket/features")
    with pytest.raises(UserError, match=r"encoder\.cache: expected a folder, got the URL s3"):
        embedded(experiment, Counting())


@pytest.mark.slow
def test_features_do_not_depend_on_the_pictures_beside(
    places: dict[str, Path], tmp_path: Path
) -> None:
    """To the bit, however they are divided and ordered, on one thread and on two."""
    experiment = frozen(places, tmp_path)
    network = present(load_network(experiment))
    assert not list(network.parameters())
    pictures = experiment.data.load()["inputs"]
    whole = network.of_rows(pictures)
    order = np.random.default_rng(0).permutation(len(pictures))
    assert np.array_equal(network.of_rows(pictures[order]), whole[order])
    divided = [network.of_rows(part) for part in np.split(pictures, [1, 5, 22])]
    assert np.array_equal(np.concatenate(divided), whole)
    try:
        torch.set_num_threads(2)
        assert np.array_equal(network.of_rows(pictures), whole)
    finally:
        torch.set_num_threads(1)
