"""The loaders and the protocol of benchmarks/, on made-up arrays: no data is needed."""

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import sharing, tabular
from benchmarks.sharing import SINGLE, Protocol
from benchmarks.tabular import Dataset, Rows
from raymtl.encoders import MLPSpec
from raymtl.sharing import SharingSpec
from raymtl.tasks import regression
from raymtl.types import Batch
from raymtl.weighting import StaticSpec
from tests.narrowing import checked
from tests.narrowing import own_inputs as own_inputs_of

TINY = Protocol(
    steps=dict.fromkeys([*tabular.LOADERS, "made_up"], 4), settings=2, checks=2, hidden=(6, 5)
)


def shared_inputs(count: int = 60) -> Dataset:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(count, 4)) * [1, 10, 0.1, 0] + [0, 5, 0, 3]
    targets = {"sum": 100 + 7 * inputs[:, :2].sum(1), "first": inputs[:, 0]}
    return tabular.with_shared_inputs("made_up", inputs, targets, seed=1)


def own_inputs() -> Dataset:
    rng = np.random.default_rng(0)
    rows = {
        f"task_{n}": Rows(
            n + rng.normal(size=(n * 10, 3)), n * rng.normal(size=n * 10), np.arange(n * 10) // 2
        )
        for n in (2, 3, 5)
    }
    return tabular.with_own_inputs("made_up", rows, seed=1)


def test_splits_are_disjoint_and_complete() -> None:
    """They keep groups whole."""
    group = np.random.default_rng(0).integers(0, 20, 200)
    parts = tabular.split_rows(group, np.random.default_rng(1))
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert sum(len(set(group[part])) for part in parts) == 20
    assert [len(set(group[part])) for part in parts] == [12, 4, 4]


def test_a_split_into_an_empty_part_is_refused() -> None:
    with pytest.raises(ValueError, match="enough groups"):
        tabular.split_rows(np.zeros(50), np.random.default_rng(0))


def test_training_rows_alone_standardise() -> None:
    data = shared_inputs()
    assert isinstance(data.train.inputs, Tensor) and isinstance(data.test.inputs, Tensor)
    moving = data.train.inputs[:, :3]
    torch.testing.assert_close(moving.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(moving.std(0, correction=0), torch.ones(3))
    assert (data.test.inputs[:, :3].mean(0).abs() > 1e-3).all()
    assert (
        data.train.inputs[:, 3] == 0
    ).all()  # a constant column, which has no spread to divide by
    for task in data.tasks:
        target = data.train.targets[task.name]
        loss_of_the_mean = task.loss(torch.zeros(len(target), 1), target).mean()
        torch.testing.assert_close(loss_of_the_mean, torch.tensor(1.0))


def test_own_inputs_share_one_scale() -> None:
    """Every task has its own targets."""
    data = own_inputs()
    inputs = [own_inputs_of(data.train, task.name) for task in data.tasks]
    assert [len(own) for own in inputs] == [12, 18, 30]
    joint = torch.cat(inputs)
    torch.testing.assert_close(joint.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert all(own.mean().abs() > 0.1 for own in inputs)
    for task in data.tasks:
        target = data.train.targets[task.name]
        torch.testing.assert_close(
            task.loss(torch.zeros(len(target), 1), target).mean(), torch.tensor(1.0)
        )


def test_drawn_rows_keep_input_and_target_together() -> None:
    for data in (shared_inputs(), own_inputs()):
        batch = tabular.draw(data.train, 7, torch.Generator().manual_seed(0))
        for task, target in batch.targets.items():
            own, pool = (
                part.inputs if isinstance(part.inputs, Tensor) else part.inputs[task]
                for part in (batch, data.train)
            )
            assert len(own) == len(target) == 7
            for row, value in zip(own, target, strict=True):
                where = (pool == row).all(1).nonzero().flatten()
                assert value in data.train.targets[task][where]


def test_recordings_of_a_day_are_one_visit() -> None:
    day = np.array([12.66, 5.49, 5.51, -3.0, 12.67, 5.5])
    assert tabular.visits(day).tolist() == [2, 1, 1, 0, 2, 1]


def test_evenly_takes_distinct_indices() -> None:
    """No more than there are."""
    assert tabular.evenly(139, 3) == [0, 46, 92]
    assert tabular.evenly(4, 10) == [0, 1, 2, 3]


def test_arffs_last_columns_are_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = "\n".join(f"@attribute a{i} numeric" for i in range(10))
    table = rng.normal(size=(30, 10))
    with gzip.open(tmp_path / "mulan_enb.arff.gz", "wt") as file:
        file.write(
            f"@relation r\n{names}\n@data\n" + "\n".join(",".join(map(str, row)) for row in table)
        )
    data = tabular.energy(tmp_path, 0, 10)
    assert data.input_shape == (8,)
    read = torch.cat([part.targets["cooling"] for part in (data.train, data.val, data.test)])
    torch.testing.assert_close(
        read.sort().values, torch.from_numpy(table[:, 9]).float().sort().values
    )


def test_no_source_digit_is_in_two_parts() -> None:
    data = tabular.digits(Path(), 0, 10)
    left = [
        {
            tuple(row.reshape(8, 13)[:, :5].flatten().tolist())
            for row in checked(part.inputs, Tensor)
        }
        for part in (data.train, data.val, data.test)
    ]
    assert not left[0] & left[1] and not left[0] & left[2] and not left[1] & left[2]


def test_every_architecture_of_the_union_is_measured() -> None:
    union = {member.model_fields["name"].default for member in get_args(get_args(SharingSpec)[0])}
    assert union <= set(sharing.METHODS)
    assert {*sharing.MAIN, *sharing.STRUCTURE} <= union


@pytest.mark.parametrize("method", sharing.METHODS)
def test_every_method_tries_as_many_different_settings(method: str) -> None:
    data = own_inputs()
    found = sharing.settings(method, data.tasks, 0, Protocol())
    assert len(found) == len(set(map(str, found))) == sharing.NUM_SETTINGS
    assert sharing.settings(method, data.tasks, 0, TINY) == found[:2]


def test_scalarization_tries_equal_weights_first() -> None:
    """Then points of the simplex."""
    first, *_, last = sharing.settings(sharing.SCALARIZED, own_inputs().tasks, 0, Protocol())
    assert checked(first.weighting, StaticSpec).weights == {}
    assert math.isclose(sum(checked(last.weighting, StaticSpec).weights.values()), 1)


@pytest.mark.parametrize("method", sharing.METHODS)
@pytest.mark.parametrize("make", [shared_inputs, own_inputs])
def test_every_method_trains_or_says_why(
    method: str, make: Callable[[], Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    monkeypatch.setattr(sharing, "_load", lambda *_: data)
    row = sharing.cell("", "made_up", 0, method, TINY)
    if "not_run" in row:
        assert row["not_run"].startswith("refused: sharing.")
    else:
        assert list(row["test"]) == [task.name for task in data.tasks]
        assert all(0 < value < 10 for value in row["test"].values())
    json.dumps(row)


def test_single_tasks_learn_each_as_if_alone() -> None:
    data = shared_inputs()
    setting = sharing.settings(SINGLE, data.tasks, 0, TINY)[0]
    both = sharing.train(data, setting, TINY, 0).test
    halved = data._replace(
        train=data.train._replace(
            targets={**data.train.targets, "first": data.train.targets["first"] / 2}
        )
    )
    changed = sharing.train(halved, setting, TINY, 0).test
    assert changed[0] == both[0]
    assert changed[1] != both[1]


def test_rows_choose_nothing() -> None:
    data = shared_inputs()
    setting = sharing.settings("hard", data.tasks, 0, TINY)[0]
    larger = checked(data.test.inputs, Tensor) * 100
    other = data._replace(test=Batch(larger, data.test.targets, {}))
    one, two = sharing.train(data, setting, TINY, 0), sharing.train(other, setting, TINY, 0)
    assert one.test != two.test
    assert one._replace(test=[]) == two._replace(test=[])


def test_training_beats_the_mean() -> None:
    long = TINY.model_copy(update={"steps": {"made_up": 150}, "hidden": (16, 16)})
    setting = sharing.settings("hard", shared_inputs().tasks, 0, TINY)[1]
    assert max(sharing.train(shared_inputs(200), setting, long, 0).test) < 0.3


def test_the_error_is_the_rmse_in_training_spreads() -> None:
    data = shared_inputs()
    algorithm = sharing.build(data, sharing.settings("hard", data.tasks, 0, TINY)[0], TINY, 0)
    params = algorithm.init_params()
    found = sharing.errors(algorithm, params, data.test)
    for index, task in enumerate(data.tasks):
        with torch.no_grad():
            readable = task.decode(algorithm.predict(params, data.test.inputs)[task.name])
        spread = data.train.targets[task.name].std(correction=0)
        rmse = (readable - data.test.targets[task.name]).square().mean().sqrt()
        torch.testing.assert_close(found[index], (rmse / spread).to(found.dtype), rtol=1e-4, atol=0)


def test_runs_beyond_their_limit_are_given_up() -> None:
    data = shared_inputs()
    long = TINY.model_copy(update={"steps": {"made_up": 100_000}})
    with pytest.raises(TimeoutError, match="ms a step"):
        sharing.train(data, sharing.settings("hard", data.tasks, 0, TINY)[0], long, 0, limit_s=1.0)


def row(dataset: str, seed: int, method: str, **test: float) -> dict[str, object]:
    return {"dataset": dataset, "seed": seed, "method": method, "test": test}


def test_deltas_average_within_data_sets_first() -> None:
    """Ranks too."""
    rows = [
        row("one", 0, SINGLE, a=1.0, b=2.0),
        row("one", 0, "hard", a=0.5, b=1.0),
        row("one", 0, "soft", a=2.0, b=1.5),
        row("two", 0, SINGLE, c=1.0),
        row("two", 0, "hard", c=1.2),
        {"dataset": "two", "seed": 0, "method": "soft", "not_run": "refused: why"},
    ]
    by_name = {found.method: found for found in sharing.summarise(rows)}
    assert by_name["hard"].delta_m == pytest.approx([(-50 + 20) / 2])
    assert by_name["hard"].delta_p == pytest.approx([15])
    assert by_name["soft"].delta_m == pytest.approx([(100 - 25) / 2])
    assert by_name[SINGLE].delta_m == [0]
    assert by_name["hard"].ranks == [(1 + 2) / 2]
    assert by_name["soft"].ranks == [(3 + 2) / 2]
    assert by_name["hard"].errors == {"one": [0.75], "two": [1.2]}
    assert [found.method for found in sharing.summarise(rows)][-1] == "soft"
    table = sharing.markdown(sharing.summarise(rows), ["one", "two"])
    assert by_name["hard"].changes == {"one": pytest.approx([-50]), "two": pytest.approx([20])}
    assert "| soft (1 of 2 sets) | 1.750 | - | 2.50 |" in table
    assert "| hard | -50.0 | 20.0 | -15.0 | 15.0 |" in table
    assert table.endswith("- soft, two: refused: why\n")


def test_the_interval_is_students_of_the_seeds() -> None:
    mean, half = sharing.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3))
    assert sharing.interval([1.0]) == (1.0, None)


def test_results_of_another_protocol_are_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    sharing.write_rows(path, TINY, [row("one", 0, "hard", a=1.0)])
    assert sharing.read_rows(path, TINY) == [row("one", 0, "hard", a=1.0)]
    with pytest.raises(Exception, match="another protocol"):
        sharing.read_rows(path, Protocol())


def test_a_classification_error_is_a_share_of_examples() -> None:
    data = tabular.digits(Path(), 0, 10)
    algorithm = sharing.build(data, sharing.settings("hard", data.tasks, 0, TINY)[0], TINY, 0)
    params = algorithm.init_params()
    with torch.no_grad():
        wrong = (
            algorithm.predict(params, data.val.inputs)["left"].argmax(1) != data.val.targets["left"]
        )
    assert sharing.errors(algorithm, params, data.val)[0] == pytest.approx(
        float(wrong.float().mean())
    )


@pytest.mark.parametrize("num_tasks", [2, 3, 10])
def test_the_grids_are_taken_by_a_real_network(num_tasks: int) -> None:
    encoder = MLPSpec(hidden=Protocol().hidden).build((5,))
    tasks = [regression(f"task_{index}", 0.0, 1.0) for index in range(num_tasks)]
    for method in (*sharing.MAIN, *sharing.STRUCTURE):
        for setting in sharing.settings(method, tasks, 0, Protocol()):
            assert setting.sharing.check(tasks, encoder) is None


FOLDER = Path(os.environ.get("RAYMTL_DATA", "unset")) / "tabular"
needs_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="$RAYMTL_DATA/tabular is not there")


@needs_data
@pytest.mark.parametrize(
    "name, num_tasks, rows",
    [
        ("energy", 2, 768),
        ("jura", 3, 359),
        ("water", 14, 1060),
        ("school", 139, 15362),
        ("parkinsons", 42, 5875),
    ],
)
def test_real_files_have_the_published_size(name: str, num_tasks: int, rows: int) -> None:
    data = tabular.LOADERS[name](FOLDER, 0, 1000)
    assert len(data.tasks) == num_tasks
    found: list[Tensor] = []
    for part in (data.train, data.val, data.test):
        if isinstance(part.inputs, Tensor):
            found.append(part.inputs)
        else:
            found += part.inputs.values()
    assert sum(map(len, found)) == rows
    assert all(own.isfinite().all() for own in found)


@needs_data
@pytest.mark.slow
def test_the_quick_run_resumes(tmp_path: Path) -> None:
    """It prints a table."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.sharing",
        "--quick",
        "--json",
        str(tmp_path / "results.json"),
    ]
    command += ["--method", SINGLE, "--method", "hard"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert first.stdout == second.stdout
    assert "| hard | " in first.stdout
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 4
