"""Files of one's own as parts of `several`: two data sets of pictures learned jointly, and what is said of each."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from raymtl.config import Experiment, parse
from raymtl.data import Files, Several
from raymtl.data.episodes import build_episodes, on_device
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from tests.data.own import write_csv, write_parquet, write_scenes
from tests.data.test_files_pictures import plain_pictures
from tests.narrowing import shared_inputs


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A table that names pictures, with numbers; and a folder of scenes, with classes and masks."""
    root = tmp_path_factory.mktemp("several")
    plain_pictures(root / "p")
    names = [f"p/{('dark', 'light')[i % 2]}/{i}.png" for i in range(40)]
    write_csv(root / "table.csv", {"which": names, "value": [i / 2 for i in range(40)]})
    write_scenes(root / "scenes")
    common = {"name": "files", "size": [12, 16], "channels": 3, "shots": 2, "queries": 4}
    return {
        "lamps": {**common, "path": str(root / "table.csv"), "tasks": {"value": {}}},
        "scenes": {**common, "path": str(root / "scenes"), "tasks": {"larger": {}, "mask": {}}},
    }


@pytest.mark.parametrize("episodes", ["one", "together"])
def test_tables_and_folders_are_learned_jointly(
    both: dict[str, dict[str, Any]], episodes: str
) -> None:
    chosen = Experiment.model_validate(
        {
            "data": {"name": "several", "parts": both, "episodes": episodes},
            "encoder": {"name": "conv", "channels": [4, 4]},
            "learner": {"name": "maml", "inner_steps": 1, "inner_lr": 0.01},
        }
    ).resolve()
    assert parse(chosen.model_dump(mode="json")) == chosen
    source = chosen.data
    assert isinstance(source, Several)
    assert source.task_names == ("lamps_value", "scenes_larger", "scenes_mask")
    assert [task.kind.name for task in source.make_tasks()] == [
        "regression",
        "binary",
        "segmentation",
    ]
    arrays = source.load()
    stacks, domains = build_episodes(
        source, arrays, seed=0, split="train", step=0, indices=range(6)
    )
    every = [
        tree_map(lambda leaf, i=i: leaf[i], stack.query)
        for stack in stacks
        for i in range(len(stack.query.targets["lamps_value"]))
    ]
    for query, domain in zip(every, domains, strict=True):
        target = query.targets["lamps_value"]
        mask = query.masks.get("lamps_value", torch.ones(len(target)))
        assert mask.all() if "lamps" in domain else not mask.any()
        if "lamps" not in domain:
            continue
        inputs = query.inputs if episodes == "one" else query.inputs["lamps_value"]
        brightness = inputs[:, 0, 0, 0].double()  # which tells a lamp's number
        number = torch.where(brightness % 4 == 2, (brightness - 100) / 2, brightness / 2)
        torch.testing.assert_close(target.double(), number / 2)
    algorithm = chosen.build()
    meta = meta_gradient(algorithm, algorithm.init_params(), on_device(stacks, "cpu"))
    assert meta.losses.isfinite().all()


@pytest.mark.parametrize("episodes", ["one", "together"])
def test_a_parts_missing_labels_stay_hidden(tmp_path: Path, episodes: str) -> None:
    rows = list(range(60))
    labels: dict[str, list[int | None]] = {
        "every": [*rows],
        "some": [i if i % 3 else None for i in rows],
    }
    path = write_csv(tmp_path / "t.csv", {"x": [i % 7 for i in rows], **labels})
    part = {"name": "files", "path": str(path), "tasks": {"every": {}, "some": {}}, "inputs": ["x"]}
    source = Several(parts={"t": part}, episodes=episodes).resolve()
    (stack,), _ = build_episodes(
        source, source.load(), seed=0, split="train", step=0, indices=range(4)
    )
    for batch in stack:
        labelled = batch.targets["t_every"] % 3 != 0
        assert not labelled.all()
        assert torch.equal(batch.masks["t_some"], labelled)
        torch.testing.assert_close(
            batch.targets["t_some"][labelled], batch.targets["t_every"][labelled]
        )


def test_a_streamed_part_draws_from_its_window(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=1000)
    path = write_parquet(tmp_path / "t.parquet", {"x": x.tolist(), "y": (2 * x).tolist()})
    settings = {
        "path": str(path),
        "tasks": {"y": {}},
        "in_memory_mb": 0.01,
        "fit_rows": 500,
        "held_out_rows": 50,
    }
    alone = Files(**settings).resolve()
    assert alone.found.pool is not None
    source = Several(parts={"a": {"name": "files", **settings}}).resolve()
    (stack,), _ = build_episodes(
        source, source.load(), seed=0, split="train", step=3, indices=range(3)
    )
    assert set(shared_inputs(stack.query).flatten().tolist()) <= set(_window(alone, 3))
    with pytest.raises(
        UserError, match=r"data.parts.b.in_memory_mb: expected one part that is larger than memory"
    ):
        Several(parts={name: {"name": "files", **settings} for name in "ab"}).resolve()


def _window(source: Files, step: int) -> list[float]:
    arrays = source.window(source.load(), "train", 0, step)
    return (
        np.concatenate([arrays[key] for key in arrays if key.endswith("/inputs")]).ravel().tolist()
    )


def test_a_parts_mistakes_are_named_by_part(both: dict[str, dict[str, Any]]) -> None:
    for part, changes, says in (
        ("lamps", {"path": "/nowhere.csv"}, r"^data.parts.lamps.path: expected a file"),
        (
            "scenes",
            {"tasks": {"gone": {}}},
            r"^data.parts.scenes.tasks.gone: .*expected the column 'gone'",
        ),
        (
            "scenes",
            {"size": 8},
            r"^data.parts.scenes: expected inputs of shape \(3, 12, 16\) as data.parts.lamps has",
        ),
    ):
        parts = {
            name: {**values, **(changes if name == part else {})} for name, values in both.items()
        }
        with pytest.raises(UserError, match=says):
            Several(parts=parts).resolve()
    with pytest.raises(UserError, match=r"^data.parts.lamps.shotss: unknown key"):
        parse(
            {
                "data": {
                    "name": "several",
                    "parts": {**both, "lamps": {**both["lamps"], "shotss": 1}},
                }
            }
        ).resolve()
