"""benchmarks/cifar100.py: its rows, its budget and its table, on a small generated folder: no data is needed."""

import json
import math
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
import typer

import benchmarks.sharing
from benchmarks import cifar100
from benchmarks.cifar100 import (
    METHODS,
    ON_HARD,
    PROTOCOLS,
    Protocol,
    cell,
    errors,
    experiment,
    scaled,
    whole,
)
from benchmarks.sharing import SINGLE
from raymtl.data import CIFAR100
from raymtl.data.base import Split
from raymtl.data.formats.cifar100 import COARSE
from raymtl.step.execution import ExecutionConfig
from raymtl.step.meta_gradient import MetaGradient
from raymtl.types import DivergedError
from tests.data.test_cifar100 import PER_CLASS, contents, write
from tests.narrowing import checked, own_inputs

TINY = Protocol(
    encoder={"encoder.name": "conv", "encoder.channels": [4]},
    steps=3,
    pictures=4,
    looks=2,
    tested=10,
    held_out=3,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), contents())


@pytest.fixture(autouse=True)
def _few(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymtl.data.sources.cifar100.PARTS", PER_CLASS)
    monkeypatch.setattr("raymtl.data.formats.cifar100.PARTS", PER_CLASS)
    monkeypatch.setenv("RAYMTL_DATA", str(root))


def test_every_method_and_protocol_can_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the protocols ask for more pictures than the small folder has
    assert {
        SINGLE,
        "hard",
        "cross_stitch",
        "mmoe",
        "mtan",
        "low_rank",
        "hard, pcgrad",
        "hard, famo",
    } <= set(METHODS)
    for protocol, methods in (("cpu", METHODS), ("gpu", ("hard, pcgrad",))):
        for method in methods:
            chosen = experiment(method, 3, PROTOCOLS[protocol])
            assert chosen.data.task_names == COARSE
            assert checked(chosen.data, CIFAR100).split_seed == chosen.seed == 3
            assert chosen.weighting.name == ON_HARD.get(method, "equal")
            assert chosen.sharing.name == {SINGLE: "soft"}.get(method, method.partition(",")[0])


def test_parts_hold_each_picture_once() -> None:
    """With the label within the task."""
    arrays = experiment(SINGLE, 0, TINY).data.load()
    numbers: dict[Split, int] = {"val": 3, "test": 5}
    for split, of_class in numbers.items():
        parts = whole(arrays, split, at_once=4)
        for number, name in enumerate(COARSE):
            pictures = torch.cat([own_inputs(part, name) for part in parts])
            labels = torch.cat([part.targets[name] for part in parts])
            classes = number + 20 * labels
            assert torch.equal(pictures[:, 0, 0, 1].long(), classes) and len(labels) == 5 * of_class
            assert len(np.unique(pictures.flatten(1).numpy(), axis=0)) == len(labels)


def test_errors_are_shares_of_wrong_classes() -> None:
    algorithm = experiment("hard", 0, TINY).build()
    params = {name: value.detach() for name, value in algorithm.init_params().items()}
    for number, name in enumerate(COARSE):  # every picture of a task is taken for one class
        params[f"model.heads.{name}.weight"] = torch.zeros_like(
            params[f"model.heads.{name}.weight"]
        )
        params[f"model.heads.{name}.bias"] = torch.eye(5)[number % 5]
    parts = whole(experiment(SINGLE, 0, TINY).data.load(), "test", at_once=7)
    assert errors(algorithm, params, parts, ExecutionConfig("loop")) == pytest.approx(
        dict.fromkeys(COARSE, 0.8)
    )
    right = [part._replace(targets={n: torch.full_like(t, COARSE.index(n) % 5) for n, t in part.targets.items()}) for part in parts]  # fmt: skip
    assert errors(algorithm, params, right, ExecutionConfig("loop")) == dict.fromkeys(COARSE, 0.0)


def test_a_row_has_the_lowest_validation_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It repeats itself."""
    looked: list[tuple[dict[str, float], str]] = []
    plain = cifar100.errors
    worse = iter([0.0, 0.5, 0.0, 0.0, 0.5, 0.0])

    def shifted(*given: Any) -> dict[str, float]:
        found = plain(*given)
        add = next(worse)
        looked.append(
            (
                {name: value + add for name, value in found.items()},
                "val" if len(looked) % 3 < 2 else "test",
            )
        )
        return looked[-1][0]

    monkeypatch.setattr(cifar100, "errors", shifted)
    first, again = (cell(0, "hard, pcgrad", TINY, "cpu") for _ in range(2))
    assert [kind for _, kind in looked] == ["val", "val", "test"] * 2
    assert first["step"] == 2 and first["val"] == looked[0][0] and first["test"] == looked[2][0]
    assert {k: first[k] for k in ("val", "test")} == {k: again[k] for k in ("val", "test")}
    assert first["num_parameters"] == sum(
        v.numel() for v in experiment("hard", 0, TINY).build().init_params().values()
    )


def test_training_learns_what_can_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures whose class within the superclass is the height of a bar: the test error falls far below chance."""
    arrays = dict(experiment(SINGLE, 0, TINY).data.load())
    within = np.repeat(
        np.arange(100) // 20, 17
    )  # of the pictures in the order of the members, then put in theirs
    rows = np.concatenate([arrays[split] for split in ("train", "val", "test")], 1).reshape(-1)
    pictures = np.zeros_like(arrays["pictures"])
    for label in range(5):
        pictures[rows[within == label], :, 6 * label : 6 * label + 6] = 255
    monkeypatch.setattr(CIFAR100, "load", lambda source: {**arrays, "pictures": pictures})
    longer = TINY.model_copy(update={"steps": 30, "lr": 0.03})
    for method in (SINGLE, "hard, famo"):
        test = cell(0, method, longer, "cpu")["test"]
        assert np.mean(list(test.values())) < 0.5  # of 0.8


def test_impossible_runs_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that would take too long, and those that diverge."""
    slow = TINY.model_copy(update={"steps": 10**7, "looks": 1, "most_seconds": 1.0})
    assert cell(0, "hard", slow, "cpu")["not_run"].startswith("too slow: ")

    def diverges(*given: Any, **more: Any) -> MetaGradient:
        raise DivergedError("the loss of task fish is nan")

    monkeypatch.setattr(cifar100, "meta_gradient", diverges)
    assert cell(0, "hard", TINY, "cpu")["not_run"] == "diverged: the loss of task fish is nan"


def made_up(method: str, seed: int, error: float, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "dataset": "cifar100",
        "seed": seed,
        "method": method,
        "test": dict.fromkeys(COARSE, error),
    }
    row |= {
        "val": dict.fromkeys(COARSE, error / 2),
        "step": 1,
        "num_parameters": 7,
        "core_seconds": 3.0,
    }
    return row | more


def test_the_table_has_the_most_accurate_first() -> None:
    """With intervals over seeds."""
    rows = [made_up(SINGLE, seed, 0.5) for seed in (0, 1)]
    rows += [made_up("hard", seed, error) for seed, error in ((0, 0.4), (1, 0.44))]
    rows.append({"dataset": "cifar100", "seed": 0, "method": "sluice", "not_run": "too slow: 3 s"})
    lines = cifar100.markdown(rows).splitlines()
    half = (
        12.706 * math.sqrt(2) * 2 / math.sqrt(2)
    )  # Student's t for two values, of spread sqrt(2) * 2
    assert lines[2].startswith(f"| hard | 58.00 ± {half:.2f} | 79.00 ± {half / 2:.2f} | 16.0 ± ")
    assert lines[2].endswith("| 1.00 ± 0.00 | 7 | 3 |")
    assert lines[3].startswith(
        f"| {SINGLE} | 50.00 ± 0.00 | 75.00 ± 0.00 | 0.0 ± 0.0 | 2.00 ± 0.00 |"
    )
    assert lines[-1] == "- sluice: too slow: 3 s"


def test_the_scale_changes_the_steps() -> None:
    assert scaled(PROTOCOLS["cpu"], 0.001) == PROTOCOLS["cpu"].model_copy(
        update={"steps": 2, "looks": 2}
    )
    assert scaled(PROTOCOLS["gpu"], 2.0).steps == 42_000


def test_the_command_runs_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Here:
        """Runs what is submitted at once, in this process."""

        def __init__(self, *given: Any) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *given: Any) -> None:
            pass

        def submit(self, function: Callable[..., Any], *given: Any) -> Future[Any]:
            done: Future[Any] = Future()
            done.set_result(function(*given))
            return done

    ran: list[tuple[int, str]] = []

    def one_cell(seed: int, method: str, *_: Any) -> dict[str, Any]:
        ran.append((seed, method))
        return made_up(method, seed, 0.4)

    monkeypatch.setattr(benchmarks.sharing, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(cifar100, "cell", one_cell)
    path = tmp_path / "rows.json"
    for seeds, methods in ((1, [SINGLE]), (2, [SINGLE, "hard"]), (2, [SINGLE, "hard"])):
        cifar100.main(json_path=path, methods=methods, seeds=seeds)
    assert sorted(ran) == sorted([(0, SINGLE), (1, SINGLE), (0, "hard"), (1, "hard")])
    assert len(json.loads(path.read_text())["results"]) == 4
    assert "| hard | 60.00 ± 0.00 |" in capsys.readouterr().out
    with pytest.raises(typer.BadParameter, match="another protocol"):
        cifar100.main(json_path=path, scale=0.5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.BadParameter, match="expected cpu where there is no GPU"):
        cifar100.main(protocol="gpu")
    with pytest.raises(
        typer.BadParameter, match=r"--method: expected one of single task, .*, got 'harder'"
    ):
        cifar100.main(methods=["harder"])
