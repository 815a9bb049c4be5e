"""The benchmark of MultiMNIST: what is tried, chosen and scored; on made-up digits, no data is needed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import multimnist
from benchmarks.multimnist import (
    FRESH,
    HARD,
    SHARING,
    WIDE,
    Pairs,
    Size,
    Try,
    accuracies,
    best_of,
    encoder_of,
    protocol_of,
)
from benchmarks.sharing import SINGLE
from raymtl.data import MultiMNIST
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.evaluation.evaluate import load_model
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.conftest import SHARING as ARCHITECTURES
from tests.narrowing import checked, shared_inputs


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random digits, and 9 fixed pairs a split."""
    rng = np.random.default_rng(0)
    digits = rng.integers(256, size=(70_000, 28, 28), dtype=np.uint8), rng.integers(10, size=70_000)
    monkeypatch.setattr("raymtl.data.sources.multimnist.read_digits", lambda root: digits)
    monkeypatch.setattr(
        "raymtl.data.sources.multimnist.PAIRS", dict.fromkeys(("train", "val", "test"), 9)
    )
    monkeypatch.setenv("RAYMTL_DATA", "made up")
    encoder_of.cache_clear()


def row(method: str, val: float | None, rate: float = 0.1, test: float = 0.5) -> dict[str, Any]:
    scores = {} if val is None else {"test": {"left": test, "right": test / 2}}
    both = None if val is None else {"left": val, "right": val}
    return {
        "method": method,
        "rate": rate,
        "val": both,
        "steps": 10,
        "cpu_seconds": 1,
        "num_parameters": 7,
    } | scores


def test_everything_trains_on_the_same_batches() -> None:
    """Every architecture and the single tasks."""
    assert set(multimnist.SHORT_METHODS) == {SINGLE, *ARCHITECTURES}
    assert [SHARING[method].model_dump()["name"] for method in ARCHITECTURES] == list(ARCHITECTURES)
    for protocol, long in ((multimnist.FIXED, False), (FRESH, True)):
        tried = [
            Try(method, 0.1, long).experiment(protocol, protocol.encoder) for method in SHARING
        ]
        assert len({(e.data, e.train, e.seed) for e in tried}) == 1
        assert checked(tried[0].data, MultiMNIST).pairs == protocol.pairs
        assert tried[0].learner.num_steps == 0


def test_networks_on_fresh_pairs_are_small() -> None:
    """No more than half a million parameters."""
    for method in SHARING:
        encoder, number = encoder_of(FRESH, method)
        built = Try(method, 0.1, True).experiment(FRESH, encoder).build().init_params()
        assert number == sum(value.numel() for value in built.values()) <= 500_000
    assert encoder_of(FRESH, HARD)[0] == FRESH.encoder
    assert encoder_of(FRESH, "sluice")[0] in FRESH.narrower
    assert encoder_of(FRESH, WIDE)[1] > 1.9 * encoder_of(FRESH, HARD)[1]
    with pytest.raises(UserError, match="hard: expected at most 9 parameters, got 37,340"):
        encoder_of(FRESH.model_copy(update={"most_parameters": 9}), HARD)


def test_branching_and_hierarchical_differ_from_hard_sharing() -> None:
    """One architecture parts the trunk for a task, the other reads it where it is not done."""
    for protocol in (multimnist.FIXED, FRESH):
        numbers = {
            method: encoder_of(protocol, method)[1]
            for method in (HARD, "branching", "hierarchical")
        }
        assert len(set(numbers.values())) == 3


def test_a_single_task_learns_nothing_from_the_other(few: None) -> None:
    """Whatever the other task's labels are, its network is moved the same way."""
    experiment = Try(SINGLE, 0.1, False).experiment(
        protocol_of("fixed", "cpu", quick=True), multimnist.FIXED.encoder
    )
    (stack,), _ = build_episodes(
        experiment.data, experiment.data.load(), seed=0, split="train", step=0, indices=range(1)
    )
    algorithm, episodes = experiment.build(), on_device(stack, "cpu")
    params = algorithm.init_params()
    changed = {**episodes.query.targets, "left": (episodes.query.targets["left"] + 1) % 10}
    others = episodes._replace(query=episodes.query._replace(targets=changed))
    first, second = (meta_gradient(algorithm, params, each).grads for each in (episodes, others))
    same = {name for name in params if torch.equal(first[name], second[name])}
    assert sum(params[name].numel() for name in same) * 2 == sum(
        value.numel() for value in params.values()
    )
    assert "model.heads.right.weight" in same and "model.heads.left.weight" not in same


def test_validation_pairs_alone_choose() -> None:
    """Never those of the test."""
    rows = [
        row("a", 0.5, 0.1, test=0.9),
        row("a", 0.6, 0.2, test=0.1),
        row("b", None),
        row("b", 0.1, 0.2),
    ]
    assert best_of(rows) == [rows[1], rows[3]]
    short = [
        row("a", 0.9, test=0.1),
        row("c", 0.8, 0.3, test=0.9),
        row(HARD, 0.95),
        row(SINGLE, 0.99, 0.4),
    ]
    tries = multimnist.long_tries(short, FRESH)
    assert {tried.method: tried.rate for tried in tries} == {
        "a": 0.1,
        SINGLE: 0.4,
        WIDE: 0.1,
        HARD: 0.1,
    }
    assert all(tried.long for tried in tries)


def test_the_table_shows_errors_and_intervals() -> None:
    """And the change against single tasks."""
    rows = [
        row(SINGLE, 0.5, test=0.8),
        row("worse", 0.4, test=0.4),
        row("gone", None),
        row("better", 0.9, test=0.96),
    ]
    header, lines = multimnist.table(rows, 10_000)
    found = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert list(found) == ["better", SINGLE, "worse", "gone"]
    assert [found[name]["delta_m"] for name in list(found)[:3]] == ["-20.00", "-0.00", "+50.00"]
    assert found["better"]["left, %"] == "96.00 ± 0.38"
    assert found["gone"]["rate"] == "every rate diverged"
    drawn = np.random.default_rng(0).binomial(500, 0.96, 20_000) / 500
    assert multimnist.interval(0.96, 500) == pytest.approx(
        (np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)) / 2, rel=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pairs", "size"), [("fixed", "cpu"), ("fresh", "cpu"), ("fresh", "resnet")]
)
def test_every_protocol_scores_all_pairs(
    few: None, tmp_path: Path, pairs: Pairs, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The large network in float32, since a CPU may take a minute for it in bfloat16, as the small one computes."""
    monkeypatch.setitem(multimnist.RESNET, "precision", "float32")
    protocol = protocol_of(pairs, size, quick=True)
    steps_done: dict[Any, int] = {}
    tried = Try(HARD, 0.001, True)
    found = multimnist.train(tried, protocol, tmp_path / "model", "cpu", steps_done)
    assert steps_done == {tried: protocol.long.steps}
    experiment, algorithm, params = load_model(tmp_path / "model")
    assert experiment.encoder == protocol.encoder
    assert experiment.train.precision == protocol.precision
    assert found["num_parameters"] == sum(value.numel() for value in params.values())
    source = checked(experiment.data, MultiMNIST)
    arrays = source.load()
    held_out: tuple[Split, ...] = ("val", "test")
    for split in held_out:
        batch = source.batch(arrays, arrays[split])
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=protocol.precision == "bfloat16"),
        ):
            logits = algorithm.predict(params, shared_inputs(batch).float() / 255)
        right = {
            name: (logits[name].argmax(-1) == batch.targets[name]).double().mean()
            for name in logits
        }
        scores = accuracies(tmp_path / "model", split, "cpu")
        assert scores == pytest.approx({name: float(value) for name, value in right.items()})
        assert split != "val" or scores == found["val"]


def test_diverging_tries_are_never_best(few: None, tmp_path: Path) -> None:
    protocol = protocol_of("fixed", "cpu", quick=True)
    found = multimnist.train(Try(HARD, 1e30, False), protocol, tmp_path / "model", "cpu", {})
    assert found["val"] is None and "Lower learner.inner_lr or train.lr" in found["diverged"]
    assert multimnist.mean(found["val"]) == -math.inf


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pairs", "stale"], "--pairs: expected one of fixed, fresh, got 'stale'"),
        (["--method", "harder"], "--method: expected one of single task, adversarial"),
        (["--data", "nowhere"], "data.folder: expected 47040016 bytes in"),
    ],
)
def test_mistakes_are_answered_by_a_sentence(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMTL_DATA", "elsewhere")
    application = typer.Typer()
    application.command()(multimnist.main)
    result = CliRunner().invoke(application, arguments, env={"COLUMNS": "1000"})
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("│", " ").split())
