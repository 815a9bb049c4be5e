"""Episodes built by Ray Data: the weights are those of a training whose workers build their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data.episodes import join_shares
from raymtl.data.packed import pack_episodes
from raymtl.distributed import waiting
from raymtl.distributed.builders import Parts
from raymtl.distributed.share_builder import ShareBuilder
from raymtl.distributed.step_shards import StepShards
from raymtl.distributed.trainer import TrainerSpec, train
from raymtl.storage import fence, formats
from tests.conftest import experiment
from tests.data.test_files_stream import numbered
from tests.data.test_mixed_episodes import SEVERAL
from tests.distributed.local import local_ray
from tests.distributed.without_ray import deadly, trained_without_ray
from tests.narrowing import several_stacks

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine, with room for four workers and four builders whatever its size."""
    with local_ray(num_cpus=8, include_dashboard=True):
        yield


def mixed() -> Experiment:
    """Seven episodes a step in several stacks, so that shares are ragged."""
    return experiment(
        data=SEVERAL,
        train__meta_batch=7,
        train__steps=6,
        train__eval_every=2,
        train__schedule="constant",
    )


def trained(
    chosen: Experiment, arrays: Any, folder: Path, workers: int, builders: int
) -> dict[str, Tensor]:
    """The weights of a training, which goes on where it stopped."""
    folder.mkdir(exist_ok=True)
    spec = TrainerSpec(
        f"{folder.parent.name}-{folder.name}",
        folder / ".ray",
        workers,
        cpus=1,
        gpus=0,
        builders=builders,
    )
    train(chosen, arrays, folder, spec)
    assert len(formats.read_rows(folder / "history.parquet")) == chosen.train.steps
    return formats.load_params(folder / "model.safetensors")


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def streamed(folder: Path) -> Experiment:
    """Eight episodes a step in four lanes, out of files that are read by blocks."""
    return experiment(
        data=numbered(folder, rows=200_000, lanes=4, in_memory_mb=0.04),
        encoder__hidden=[4],
        train__meta_batch=8,
        train__steps=32,
        train__eval_every=16,
        train__schedule="constant",
    )


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "pools"), [(1, 1), (1, 4), (2, 1), (2, 4), (4, 2)])
def test_parts_of_several_builders_join_to_shares(tmp_path: Path, workers: int, pools: int) -> None:
    for chosen in (mixed(), streamed(tmp_path)):
        arrays = chosen.data.load()
        parts = Parts(3, 4, workers, pools)
        whole = ShareBuilder(chosen, arrays, workers)
        builder = ShareBuilder(chosen, arrays, parts.each_step)
        for share in range(workers):
            first = share * parts.each_share
            built = [builder.build(3, first + place) for place in range(parts.each_share)]
            np.testing.assert_array_equal(
                pack_episodes(join_shares(built)), pack_episodes(whole.build(3, share))
            )


@pytest.mark.slow
def test_builders_change_no_weight(tmp_path: Path) -> None:
    """One that goes on where another way of building stopped."""
    chosen = mixed()
    arrays = ray.put(chosen.data.load())
    alone = trained(chosen, arrays, tmp_path / "alone", workers=2, builders=0)
    folder = tmp_path / "built"
    half = chosen.override({"train.steps": 4})
    trained(half, arrays, folder, workers=2, builders=0)
    assert_equal(trained(chosen, arrays, folder, workers=2, builders=1), alone)


def shares_of_auto(settings: dict[str, Any]) -> None:
    """Runs on each worker: the shares that it gets where workers always wait too long."""
    import ray.train

    from raymtl.distributed import waiting
    from raymtl.distributed.feed import Feed, FeedSettings
    from raymtl.step.workers import Workers

    waiting.LOOK_STEPS, waiting.LOOK_S, waiting.MOST_WAIT = 4, 0.0, -1.0
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    folder = Path(settings["folder"])
    arrays = ray.get(settings["arrays"])
    feed = Feed(
        FeedSettings(many_steps(), arrays, settings["arrays"], folder),
        "auto",
        workers,
        torch.device("cpu"),
    )
    for step, share, episodes in feed(1):
        assert share == workers.rank
        np.save(folder / f"{step}-{share}.npy", pack_episodes(several_stacks(episodes)))


def many_steps() -> Experiment:
    return mixed().override({"train.steps": 12})


@pytest.mark.slow
def test_workers_change_to_builders_between_two_steps(tmp_path: Path) -> None:
    """Each share comes once, and is what one process builds."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    chosen = many_steps()
    arrays = chosen.data.load()
    fence.claim(tmp_path)
    TorchTrainer(
        shares_of_auto,
        train_loop_config={"arrays": ray.put(arrays), "folder": str(tmp_path)},
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        datasets={"ids": ray.data.range(chosen.train.steps)},
        dataset_config=StepShards(chosen.train.steps),
        run_config=RunConfig(name="auto", storage_path=str(tmp_path / "ray")),
    ).fit()
    assert "built by" in str(waiting.read(tmp_path))
    builder = ShareBuilder(chosen, arrays, 2)
    for step in range(1, 12):
        for share in range(2):
            expected = pack_episodes(builder.build(step, share))
            np.testing.assert_array_equal(np.load(tmp_path / f"{step}-{share}.npy"), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "builders"), [(1, 3), (3, 1)])
def test_any_number_of_builders_changes_no_weight(
    tmp_path: Path, workers: int, builders: int
) -> None:
    """Fewer of them than workers, and more; the tests before and after this one have two workers."""
    chosen = mixed()
    arrays = chosen.data.load()
    alone = trained_without_ray(chosen, arrays, tmp_path / "alone", workers)
    built = trained(chosen, ray.put(arrays), tmp_path / "built", workers, builders)
    assert_equal(built, alone)


@pytest.mark.slow
@pytest.mark.long
def test_builders_of_lanes_change_no_weight_and_read_each_block_once(tmp_path: Path) -> None:
    """On any number of workers the storage delivers the same bytes."""
    chosen = streamed(tmp_path)
    arrays = ray.put(chosen.data.load())
    read_mb: dict[tuple[int, int], float] = {}
    alone: dict[int, dict[str, Tensor]] = {}
    for workers, builders in ((1, 0), (1, 2), (1, 3), (2, 0), (2, 4), (4, 0), (4, 2)):
        folder = tmp_path / f"{workers}-{builders}"
        weights = trained(chosen, arrays, folder, workers, builders)
        # On another number of workers the sums are rounded otherwise.
        assert_equal(weights, alone.setdefault(workers, weights))
        history = formats.read_rows(folder / "history.parquet")
        assert all((row.get("builder_cpu_pct") is not None) == bool(builders) for row in history)
        read_mb[workers, builders] = sum(row["read_mb"] for row in history)
    assert "built by 2 of 3 builders" in str(waiting.read(tmp_path / "1-3"))
    expected = read_mb[1, 0]
    assert expected > 0
    assert all(read == pytest.approx(expected, rel=0.1) for read in read_mb.values()), read_mb


@pytest.mark.slow
def test_killed_builders_change_no_weight(tmp_path: Path) -> None:
    """Two of three, by kill -9 while they build."""
    chosen = experiment(
        train__meta_batch=7, train__steps=20, train__eval_every=10, train__schedule="constant"
    )
    arrays = chosen.data.load()
    alone = trained_without_ray(chosen, arrays, tmp_path / "alone", workers=2)
    given = deadly(arrays, tmp_path / "kills", "MapWorker", kills_at=(12, 30))
    built = trained(chosen, ray.put(given), tmp_path / "killed", workers=2, builders=3)
    assert given.num_killed == 2
    assert_equal(built, alone)
