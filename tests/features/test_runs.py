"""Frozen features in whole runs: on Ray, from the command line, and in data sets that have a name."""

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

import raymtl
from raymtl.cli import main
from raymtl.config import load, parse
from raymtl.data import Files
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes
from raymtl.data.prepared.prepare import prepare
from raymtl.features import compute
from raymtl.features.load import with_features
from raymtl.features.network import load_network
from raymtl.storage import formats
from raymtl.types import UserError
from tests.data.test_cifar100 import contents, write
from tests.features.test_features import places, tree
from tests.narrowing import checked, present

models = pytest.importorskip("torchvision.models")
__all__ = ["places"]


def command(*words: str) -> int:
    with mock.patch.object(sys, "argv", ["raymtl", *words]):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_the_command_embeds_ahead(
    places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "frozen.yaml"
    chosen = tree(places, tmp_path / "runs", frozen=True)
    path.write_text(yaml.safe_dump(chosen))
    assert command("data", "embed", str(path)) == 0
    assert "35 different pictures" in capsys.readouterr().out
    experiment = load(path).resolve()
    loaded = with_features(experiment, experiment.data.load())
    assert "read from" in loaded.notes[0].text
    assert command("data", "embed", str(path), "--set", "encoder.frozen=false") == 2
    assert "encoder.frozen: expected true" in capsys.readouterr().err


@pytest.mark.parametrize("episodes", ["superclasses", "fine_and_coarse", "classes"])
def test_episodes_of_cifar_have_the_features_of_their_pictures(
    episodes: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"train": 3, "test": 1}
    monkeypatch.setattr("tests.data.test_cifar100.PER_CLASS", few)
    monkeypatch.setattr("raymtl.data.sources.cifar100.PARTS", few)
    monkeypatch.setattr("raymtl.data.formats.cifar100.PARTS", few)
    chosen = tree(places, tmp_path, frozen=True) | {
        "data": {
            "name": "cifar100",
            "folder": str(write(tmp_path, contents())),
            "episodes": episodes,
            "augment": False,
            "held_out": 1,
            "queries": 1,
        }
    }
    experiment = parse(chosen).resolve()
    pictures = experiment.data.load()
    features = with_features(experiment, pictures).arrays
    network = present(load_network(experiment))
    for split in ("train", "test"):
        check_same_draws(experiment, pictures, features, network, split)


def check_same_draws(
    experiment: raymtl.Experiment, pictures: Any, features: Any, network: Any, split: Split
) -> None:
    """Episodes of features are those of pictures, read by the network."""
    built = [
        build_episodes(experiment.data, arrays, seed=0, split=split, step=0, indices=[0])[0][0]
        for arrays in (pictures, features)
    ]
    of_pictures, of_features = (
        inputs if isinstance(inputs, torch.Tensor) else torch.cat(list(inputs.values()), 1)
        for inputs in (stack.query.inputs for stack in built)
    )
    assert torch.equal(network(of_pictures[0]), of_features[0])
    for name, target in built[0].query.targets.items():
        assert torch.equal(target, built[1].query.targets[name])


@pytest.mark.parametrize("name", ["files", "several", "prepared"])
def test_episodes_of_files_have_the_features_of_their_pictures(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    chosen = tree(places, tmp_path, frozen=True)
    if name == "several":
        chosen["data"] = {"name": "several", "parts": {"a": chosen["data"], "b": chosen["data"]}}
    elif name == "prepared":
        files = checked(parse(chosen).data.resolve(), Files)
        prepare(files, str(tmp_path / "shards"), shard_mb=0.01)
        chosen["data"] = {"name": "prepared", "path": str(tmp_path / "shards")}
    experiment = parse(chosen).resolve()
    pictures = experiment.data.load()
    features = with_features(experiment, pictures).arrays
    network = present(load_network(experiment))
    for split in ("train", "test"):
        check_same_draws(experiment, pictures, features, network, split)


def test_streamed_files_are_refused(places: dict[str, Path], tmp_path: Path) -> None:
    chosen = tree(places, tmp_path, frozen=True)
    files = checked(parse(chosen).data.resolve(), Files)
    prepare(files, str(tmp_path / "shards"), shard_mb=0.01)
    path = str(tmp_path / "shards")
    chosen["data"] = {"name": "prepared", "path": path, "in_memory_mb": 0.001}
    experiment = parse(chosen).resolve()
    with pytest.raises(UserError, match=r"Raise data\.in_memory_mb"):
        with_features(experiment, experiment.data.load())


@pytest.mark.skipif("RAYMTL_DATA" not in os.environ, reason="needs Omniglot in $RAYMTL_DATA")
def test_episodes_of_omniglot_gather_features(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a network that is no more than the mean of a picture, for there are many."""
    chosen = tree(places, tmp_path, frozen=True) | {"data": {"name": "omniglot"}}
    experiment = parse(chosen).resolve()

    class Means(torch.nn.Module):
        def of_rows(self, rows: np.ndarray) -> np.ndarray:
            means = rows.reshape(len(rows), -1).mean(1, dtype=np.float32)
            return np.repeat(means[:, None], 1024, 1)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.of_rows(rows.numpy()))

    monkeypatch.setattr("raymtl.features.load.load_network", lambda *given: Means())
    monkeypatch.setattr("raymtl.data.sources.omniglot.Omniglot.load", a_tenth)
    pictures = experiment.data.load()
    features = with_features(experiment, pictures).arrays
    for split in ("train", "test"):
        check_same_draws(experiment, pictures, features, Means(), split)


def a_tenth(source: Any) -> dict[str, np.ndarray]:
    """What Omniglot loads, of the first characters alone."""
    from raymtl.data.given import data_folder
    from raymtl.data.sources.omniglot import read_drawings

    drawings, names = read_drawings(data_folder(None, "omniglot-py", "omniglot"))
    few = drawings[:40]
    turned = np.concatenate([np.rot90(few, turn, (2, 3)) for turn in range(4)])
    parts = {"train": np.arange(20), "val": np.arange(20, 30), "test": np.arange(30, 40)}
    return {"drawings": turned, "names": names[:40], **parts}


@pytest.mark.slow
def test_a_search_on_ray_reads_features_that_ray_computed(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit those of this process; the run needs the file of weights no more."""
    pytest.importorskip("ray")
    from tests.distributed.local import local_ray

    monkeypatch.setattr(compute, "BLOCK", 8)
    own = tmp_path / "w.safetensors"
    own.write_bytes(places["weights"].read_bytes())
    chosen = tree({**places, "weights": own}, tmp_path / "runs", frozen=True)
    chosen["search"] = {"encoder.trunk.hidden": {"choice": [[4], [8]]}}
    chosen["tune"] = {"trials": 2, "baselines": "none"}
    experiment = parse(chosen).resolve()
    with local_ray(num_cpus=2, include_dashboard=False):
        run = raymtl.tune(experiment)
    shards = sorted((tmp_path / "runs").glob(".features/*/*.parquet"))
    assert len(shards) == 5
    here = parse(chosen | {"output": str(tmp_path / "here")}).resolve()
    with_features(here, here.data.load())
    alone = sorted((tmp_path / "here").glob(".features/*/*.parquet"))
    assert [path.name for path in shards] == [path.name for path in alone]
    for one, other in zip(shards, alone, strict=True):
        assert formats.read_table(one) == formats.read_table(other)
    own.unlink()
    score = raymtl.evaluate(run)["tasks"]
    assert score == formats.read_json(run.folder / "best" / "metrics.json")["tasks"]
    assert any("35 different pictures" in note.text for note in run.notes)
    assert len(list(run.folder.rglob("frozen-*.safetensors"))) == 1
