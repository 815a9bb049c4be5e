"""What a learner knows tasks by: written by evaluate, seen in the report."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raymtl.config import Experiment
from raymtl.data import Digits, Mixture
from raymtl.data.base import Arrays, Bucket, Split
from raymtl.data.draws import Draws
from raymtl.data.episodes import on_device
from raymtl.evaluation import evaluate as evaluation
from raymtl.evaluation.embeddings import RELATED, embeddings, relations
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.learners import MAML
from raymtl.reporting.html import write_report
from raymtl.reporting.html.embedding_plots import (
    MOST_COLOURS,
    embedding_plot,
    groups,
    principal_plane,
    relation_plot,
)
from raymtl.sharing import SharingArchitecture
from raymtl.step.algorithm import Algorithm
from raymtl.storage import formats
from raymtl.types import Batch, Episode, Params
from tests.conftest import experiment
from tests.drawing import one_episode
from tests.reporting.test_html import Elements, make_run


class Knowing(MAML):
    """Knows a task by the mean and the spread of its support labels, and holds tasks to be as their embeddings agree."""

    def embed(self, model: SharingArchitecture, params: Params, support: Batch) -> Tensor:
        targets = [
            support.targets[name].to(next(iter(params.values()))) for name in model.task_names
        ]
        return torch.stack(
            [torch.stack([t.mean(), t.std(), t.square().mean().sqrt()]) for t in targets]
        )

    def relations(self, params: Params, embeddings: Tensor) -> Tensor:
        return torch.corrcoef(embeddings)


def knowing(**values: Any) -> tuple[Experiment, Algorithm, Params]:
    chosen = experiment(**values).model_copy(update={"learner": Knowing(inner_steps=1)})
    algorithm = chosen.build()
    return chosen, algorithm, algorithm.init_params()


def test_tasks_are_embedded_from_their_support(
    arrays: dict[str, np.ndarray],
) -> None:
    """Every task of every held-out episode, from its support set alone."""
    chosen, algorithm, params = knowing(data__shots=3)
    rows = embeddings(chosen, algorithm, params, arrays, split="test", episodes=5)
    assert [(row["episode"], row["task"]) for row in rows] == [
        (episode, task) for episode in range(5) for task in ("left", "right", "sum")
    ]
    for row in rows:
        drawn, domain = one_episode(chosen.data, arrays, "test", row["episode"], seed=chosen.seed)
        labels = on_device(drawn, "cpu").support.targets[row["task"]].float()
        assert (row["domain"], row["split"]) == (domain, "test")
        assert row["embedding"][:2] == pytest.approx(
            [float(labels.mean()), float(labels.std())], rel=1e-6
        )


class Partly(Digits):
    """The sum is labelled in every second episode's support set alone."""

    def draw_episodes(self, arrays: Arrays, split: Split, draws: Draws) -> Iterator[Bucket]:
        for bucket in super().draw_episodes(arrays, split, draws):
            support, query = bucket.episodes
            labelled = torch.from_numpy(draws.coins(1)).expand_as(support.targets["sum"])
            masked = support._replace(masks={"sum": labelled})
            yield bucket._replace(episodes=Episode(masked, query))


def test_a_task_without_support_labels_is_not_embedded(arrays: dict[str, np.ndarray]) -> None:
    chosen, algorithm, params = knowing()
    partly = chosen.model_copy(update={"data": Partly.model_validate(chosen.data.model_dump())})
    rows = embeddings(partly, algorithm, params, arrays, split="test", episodes=12)
    found = [sum(row["task"] == task for row in rows) for task in ("left", "right", "sum")]
    assert found[:2] == [12, 12] and 0 < found[2] < 12


def test_relations_are_among_the_first_rows(arrays: dict[str, np.ndarray]) -> None:
    chosen, algorithm, params = knowing()
    rows = embeddings(chosen, algorithm, params, arrays, split="val", episodes=50)
    found = relations(algorithm, params, rows)
    assert len(rows) == 150 and len(found) == RELATED
    expected = np.corrcoef([row["embedding"] for row in rows[:RELATED]])
    np.testing.assert_allclose([row["relations"] for row in found], expected, atol=1e-4)
    assert [(row["episode"], row["task"], row["domain"]) for row in found] == [
        (row["episode"], row["task"], row["domain"]) for row in rows[:RELATED]
    ]


@pytest.mark.parametrize("knows", [True, False])
def test_learners_that_embed_tasks_write_files(
    knows: bool, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, algorithm, params = (
        knowing() if knows else (e := experiment(), p := e.build(), p.init_params())
    )
    monkeypatch.setattr(evaluation, "load_model", lambda folder: (chosen, algorithm, params))
    evaluate_folder(tmp_path, arrays, chosen.data)
    rows = formats.read_rows(tmp_path / "embeddings.parquet")
    assert (
        (tmp_path / "embeddings.parquet").exists()
        == (tmp_path / "relations.parquet").exists()
        == knows
    )
    episodes = chosen.evaluate.test_episodes
    assert [row["split"] for row in rows] == (
        ["val"] * 3 * episodes + ["test"] * 3 * episodes if knows else []
    )
    assert len(formats.read_rows(tmp_path / "relations.parquet")) == (3 * episodes if knows else 0)


def test_the_principal_plane_is_the_covariances() -> None:
    """Of its first eigenvectors."""
    points = np.random.default_rng(0).normal(size=(40, 5)) * [3, 0.1, 2, 0.5, 1]
    plane, shares = principal_plane(points)
    values, vectors = np.linalg.eigh(np.cov(points.T))
    centred = points - points.mean(0)
    for index in range(2):
        np.testing.assert_allclose(
            np.abs(plane[:, index]), np.abs(centred @ vectors[:, -1 - index]), atol=1e-12
        )
        assert shares[index] == pytest.approx(values[-1 - index] / values.sum())
    np.testing.assert_array_equal(principal_plane(points)[0], plane)
    np.testing.assert_allclose(principal_plane(-points)[0], -plane, atol=1e-12)


@pytest.mark.parametrize("points", [np.ones((4, 3)), np.arange(4.0)[:, None]])
def test_degenerate_planes_are_flat(points: np.ndarray) -> None:
    plane, shares = principal_plane(points)
    assert plane.shape == (4, 2) and not plane[:, 1].any()
    assert shares.sum() == pytest.approx(float(points.std() > 0))


def rows_of(domains: list[str], tasks: list[str], episodes: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "split": "test",
            "episode": episode,
            "task": task,
            "domain": domains[episode % len(domains)],
            "embedding": (rng.normal(size=4) + 3 * (episode % len(domains))).tolist(),
        }
        for episode in range(episodes)
        for task in tasks
    ]


@pytest.mark.parametrize(
    ("domains", "tasks", "keys", "says", "marks"),
    [
        (["line", "sine"], ["y"], ("domain",), "The colour is the domain of the episode.", 2),
        (["30", "60"], ["left", "sum"], ("domain", "task"), "the shape of the mark the task", 4),
        (
            [f"A {n}" for n in range(30)],
            ["character"],
            ("task",),
            "The 30 domains are too many to have a colour",
            1,
        ),
        ([f"A {n}" for n in range(30)], ["a", "b"], ("task",), "the colour is the task", 2),
    ],
)
def test_few_domains_have_their_own_marks(
    domains: list[str], tasks: list[str], keys: tuple[str, ...], says: str, marks: int
) -> None:
    rows = rows_of(domains, tasks, 30)
    by = groups(rows)
    assert by.keys == keys and says in by.sentence
    assert (len(domains) > MOST_COLOURS) == ("domain" not in keys)
    figure = embedding_plot(rows)
    assert figure is not None and len(figure.data) == marks
    assert sum(len(trace.x) for trace in figure.data) == len(rows)
    looks = {(trace.marker.color, trace.marker.symbol) for trace in figure.data}
    assert len(looks) == marks


def test_the_heat_map_is_ordered_by_domain() -> None:
    rows = rows_of(["b", "a", "c"], ["y"], 9)
    matrix = np.random.default_rng(1).normal(size=(9, 9))
    related = [{**row, "relations": line.tolist()} for row, line in zip(rows, matrix, strict=True)]
    figure = relation_plot(related)
    assert figure is not None
    (shown,) = figure.data
    order = [1, 4, 7, 0, 3, 6, 2, 5, 8]
    np.testing.assert_allclose(np.array(shown.z), matrix[np.ix_(order, order)], rtol=1e-3)
    assert list(figure.layout.xaxis.ticktext) == ["a", "b", "c"]
    assert list(figure.layout.xaxis.tickvals) == [1, 4, 7]
    assert shown.zmin == -shown.zmax
    positive = relation_plot(
        [{**row, "relations": np.abs(row["relations"]).tolist()} for row in related]
    )
    assert positive is not None and positive.data[0].zmin == pytest.approx(np.abs(matrix).min())


def test_domains_come_in_the_order_of_their_numbers() -> None:
    figure = embedding_plot(rows_of(["165 degrees", "75 degrees", "7.5 degrees"], ["y"], 9))
    assert figure is not None
    assert [trace.name for trace in figure.data] == ["7.5 degrees", "75 degrees", "165 degrees"]


def test_nothing_is_drawn_of_nothing() -> None:
    assert embedding_plot([]) is None and relation_plot([]) is None


def test_the_page_escapes_hostile_names(tmp_path: Path) -> None:
    """It shows both plots."""
    run = make_run(tmp_path / "run", "train")
    assert "embeddings" not in Elements(write_report(run).read_text()).ids
    chosen, algorithm, params = knowing(data__name="mixture", data__shots=10, data__queries=2)
    assert isinstance(chosen.data, Mixture)
    rows = embeddings(chosen, algorithm, params, {}, split="test", episodes=20)
    rows[0]["domain"] = "<script>alert(1)</script>"
    formats.write_rows(
        run / "best" / "embeddings.parquet", [{**row, "split": "val"} for row in rows[:5]] + rows
    )
    formats.write_rows(run / "best" / "relations.parquet", relations(algorithm, params, rows))
    page = write_report(run).read_text()
    elements = Elements(page)
    assert {"embeddings", "plot-embeddings", "plot-relations"} <= set(elements.ids)
    assert "The colour is the domain of the episode." in elements.text
    assert "of the first 20 of them" in elements.text
    assert "<script>alert(1)" not in page
    shutil.rmtree(run)
