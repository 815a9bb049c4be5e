"""Sinusoids: the protocol, what cannot be reached without adapting, and the whole way of inputs that are no pictures."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import kstest

from raymtl.adaptation.adapt import adapt_run
from raymtl.adaptation.request import AdaptationRequest
from raymtl.data import SPLITS, Sinusoid
from raymtl.data.base import Split
from raymtl.data.episodes import build_episodes, on_device
from raymtl.evaluation.evaluate import evaluate, evaluate_folder, load_model
from raymtl.reporting.html.pictures import pictures
from raymtl.storage import formats
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Episode, UserError
from tests.conftest import experiment
from tests.narrowing import checked, shared_inputs

FLOOR = 3.006  # MSE, definitions of the benchmark; three decimals are known


def build(
    source: Sinusoid, count: int, split: Split = "train", seed: int = 0, step: int = 0
) -> Episode:
    return build_episodes(source, {}, seed=seed, split=split, step=step, indices=range(count))[0][0]


def waves(x: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(x), np.cos(x)], -1)


def amplitudes_and_phases(episodes: Any) -> np.ndarray:
    """[E, 2], from the support sets alone: A sin(x - phase) = A cos(phase) sin x - A sin(phase) cos x."""
    found = []
    for x, y in zip(
        episodes.support.inputs[..., 0].double(),
        episodes.support.targets["y"].double(),
        strict=True,
    ):
        (sine, cosine), *_ = np.linalg.lstsq(waves(x.numpy()), y.numpy())
        found.append((math.hypot(sine, cosine), math.atan2(-cosine, sine)))
    return np.array(found)


def quadrature(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the mean of a function of a uniform variable."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    return (low + high) / 2 + (high - low) / 2 * nodes, weights / 2


def mean_over_curves_and_x(function: Any) -> float:
    (a, wa), (p, wp), (x, wx) = quadrature(0.1, 5), quadrature(0, math.pi), quadrature(-5, 5)
    values = function(a[:, None, None] * np.sin(x - p[:, None, None].transpose(1, 0, 2)), x)
    return float(np.einsum("apx,a,p,x->", values, wa, wp, wx))


def best_unadapted(x: np.ndarray) -> np.ndarray:
    """E[A] E[sin(x - phase)]."""
    mean: np.ndarray = -2.55 * 2 / math.pi * np.cos(x)
    return mean


def test_episodes_lie_on_one_sinusoid() -> None:
    """Support and query, and the sinusoid is of the protocol."""
    episodes = build(Sinusoid(queries=15), 400)
    assert shared_inputs(episodes.support).shape == (400, 10, 1)
    assert episodes.query.targets["y"].shape == (400, 15)
    curves = amplitudes_and_phases(episodes)
    x, y = shared_inputs(episodes.query)[..., 0].numpy(), episodes.query.targets["y"].numpy()
    np.testing.assert_allclose(curves[:, :1] * np.sin(x - curves[:, 1:]), y, atol=1e-4)
    assert kstest(curves[:, 0], "uniform", (0.1, 4.9)).pvalue > 1e-3
    assert kstest(curves[:, 1], "uniform", (0, math.pi)).pvalue > 1e-3
    assert kstest(x.flatten(), "uniform", (-5, 10)).pvalue > 1e-3


def test_episodes_depend_on_their_index_alone() -> None:
    """An episode is a function of seed, split, step and index."""
    whole = build(Sinusoid(), 6, step=4)
    (alone,), _ = build_episodes(Sinusoid(), {}, seed=0, split="train", step=4, indices=[5])
    assert torch.equal(whole.query.targets["y"][5], alone.query.targets["y"][0])
    others = [
        build(Sinusoid(), 6, step=5),
        build(Sinusoid(), 6, seed=1, step=4),
        build(Sinusoid(), 6, "val", step=4),
    ]
    assert all(
        not torch.equal(shared_inputs(whole.support), shared_inputs(other.support))
        for other in others
    )


def test_splits_share_no_sinusoid_or_point() -> None:
    drawn = [build(Sinusoid(), 300, split) for split in SPLITS]
    for values in (
        [amplitudes_and_phases(e)[:, 0] for e in drawn],
        [shared_inputs(e.query).numpy() for e in drawn],
    ):
        assert len(set(np.concatenate([v.flatten() for v in values]).tolist())) == sum(
            v.size for v in values
        )


def test_targets_are_standardised() -> None:
    """The MSE is in their own unit."""
    (task,) = Sinusoid().make_tasks()
    mean = mean_over_curves_and_x(lambda y, x: y)
    std = math.sqrt(mean_over_curves_and_x(lambda y, x: (y - mean) ** 2))
    standardised = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert task.decode(standardised).tolist() == pytest.approx([mean, mean + std], abs=1e-12)
    y = torch.tensor([1.0, -2.0], dtype=torch.float64)
    squared = (task.decode(standardised) - y).square()
    torch.testing.assert_close(task.metrics["mse"].update(standardised, y), squared)
    torch.testing.assert_close(task.loss(standardised, y) * std**2, squared)
    assert next(iter(task.metrics)) == "r2"
    assert not task.metrics["mse"].higher_is_better


def test_unadapted_models_are_no_better_than_3_006() -> None:
    """Without adapting, the mean over sinusoids is best, at an MSE of 3.006."""
    assert mean_over_curves_and_x(lambda y, x: (y - best_unadapted(x)) ** 2) == pytest.approx(
        FLOOR, abs=5e-4
    )
    # No function of x alone does better: fitted to these very episodes, cosines and sines of many periods do not.
    episodes = build(Sinusoid(), 3000)
    x, y = (
        shared_inputs(episodes.query)[..., 0].double().numpy(),
        episodes.query.targets["y"].double().numpy(),
    )
    angles = x.flatten()[:, None] * np.arange(13) / 2
    basis = np.concatenate([np.cos(angles), np.sin(angles[:, 1:])], 1)
    fitted = (basis @ np.linalg.lstsq(basis, y.flatten())[0]).reshape(y.shape)
    errors, least = (((prediction - y) ** 2).mean(1) for prediction in (best_unadapted(x), fitted))
    assert errors.mean() == pytest.approx(FLOOR, abs=4 * errors.std() / math.sqrt(len(errors)))
    assert 0.98 * errors.mean() < least.mean() <= errors.mean()


def test_noise_is_on_all_targets() -> None:
    """And in their standard deviation."""
    quiet, noisy = build(Sinusoid(), 500), build(Sinusoid(noise_std=0.3), 500)
    for before, after in zip(quiet, noisy, strict=True):
        assert torch.equal(shared_inputs(before), shared_inputs(after))
        assert float((after.targets["y"] - before.targets["y"]).std()) == pytest.approx(
            0.3, rel=0.05
        )
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    variances = [
        float(task.decode(one) - task.decode(zero)) ** 2
        for source in (Sinusoid(), Sinusoid(noise_std=0.3))
        for task in source.make_tasks()
    ]
    assert variances[1] - variances[0] == pytest.approx(0.09)


def test_episodes_have_the_default_precision(float64: None) -> None:
    moved = on_device(build(Sinusoid(), 2), "cpu")
    assert {shared_inputs(moved.support).dtype, moved.query.targets["y"].dtype} == {torch.float64}


def test_supervised_episodes_keep_every_label() -> None:
    assert shared_inputs(build(Sinusoid(shots=4, queries=6).as_supervised(), 1).query).shape == (
        1,
        10,
        1,
    )
    assert Sinusoid().select_tasks(("y",)) == Sinusoid()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    source = {"name": "sinusoid", "shots": 10, "queries": 10}
    chosen = experiment(
        data=source, train__steps=150, train__lr=0.01, train__eval_every=150, train__meta_batch=10,
        encoder__hidden=[24, 24], learner__inner_lr=0.05,
    )  # fmt: skip
    context = TrainContext(lambda metrics: None, lambda row: None)
    train_loop(chosen, {}, local_batches(chosen, {}), context, folder / "best")
    return folder


@pytest.mark.slow
def test_only_adapting_goes_below_the_floor(run: Any) -> None:
    chosen, algorithm, params = load_model(run / "best")
    mse = evaluate(chosen, algorithm, params, {}, episodes=300)[0]["tasks"]["y"]["mse"]
    assert mse["after"]["mean"] + mse["after"]["ci95"] < FLOOR
    assert mse["before"]["mean"] + mse["before"]["ci95"] > FLOOR


def test_vector_inputs_have_scores_and_examples(run: Any) -> None:
    chosen, algorithm, _ = load_model(run / "best")
    evaluate_folder(run / "best", {}, chosen.data)
    assert list(formats.read_json(run / "best" / "metrics.json")["tasks"]["y"]) == [
        "r2",
        "mae",
        "rmse",
        "rrmse",
        "mse",
    ]
    rows = formats.read_rows(run / "best" / "examples.parquet")
    held_out = build(checked(chosen.data, Sinusoid), len(rows), "test")
    assert [row["input"] for row in rows] == shared_inputs(held_out.query)[:, 0].tolist()
    assert [row["y.target"] for row in rows] == held_out.query.targets["y"][:, 0].tolist()
    assert pictures(rows, algorithm.tasks, chosen.data) == []
    # Numbers in the shape of a picture are none either.
    assert (
        pictures(
            [{**row, "input": [0.5] * 4, "shape": [1, 2, 2]} for row in rows],
            algorithm.tasks,
            chosen.data,
        )
        == []
    )


def test_files_adapt_as_their_numbers_do(run: Any, tmp_path: Path) -> None:
    chosen, algorithm, params = load_model(run / "best")
    episode = build(checked(chosen.data, Sinusoid), 1, "test")
    support, query = episode.support, episode.query
    columns = {
        "input": shared_inputs(support)[0].tolist() + shared_inputs(query)[0].tolist(),
        "y": support.targets["y"][0].tolist() + [None] * shared_inputs(query).shape[1],
    }
    pq.write_table(pa.table(columns), tmp_path / "mine.parquet")
    told = adapt_run(AdaptationRequest(run, tmp_path / "mine.parquet"))
    assert (told["support_examples"], told["predicted_examples"]) == (10, 10)
    own = adapt_run(AdaptationRequest(run))
    assert set(own["scores"]) == {"y.r2", "y.mae", "y.rmse", "y.rrmse", "y.mse"}
    files = [
        formats.read_rows(run / "adapted" / name / "predictions.parquet")
        for name in ("mine", "episode-0")
    ]
    by_file, by_episode = ([row["y.after"] for row in rows] for rows in files)
    assert by_file == by_episode
    adapted = algorithm.adapt(
        params,
        support._replace(inputs=shared_inputs(support)[0], targets={"y": support.targets["y"][0]}),
    )
    by_hand = algorithm.tasks[0].decode(algorithm.predict(adapted, shared_inputs(query)[0])["y"])
    torch.testing.assert_close(torch.tensor(by_file, dtype=torch.float64), by_hand.detach())


def test_an_input_beyond_the_precision_is_refused(run: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"input": [[1e300]], "y": [1.0]}), tmp_path / "huge.parquet")
    with pytest.raises(
        UserError, match=r"expected numbers that torch.float32 can hold, got larger ones"
    ):
        adapt_run(AdaptationRequest(run, tmp_path / "huge.parquet"))
