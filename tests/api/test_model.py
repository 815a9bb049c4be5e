"""A trained model as a module, and its run from Python; no Ray here."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import raymtl
from raymtl.config import Experiment
from raymtl.data.episodes import build_episodes, on_device
from raymtl.evaluation.evaluate import evaluate_folder
from raymtl.evaluation.evaluate import load_model as load_parts
from raymtl.training.context import TrainContext
from raymtl.training.loop import local_batches, train_loop
from raymtl.types import Batch
from tests.conftest import experiment
from tests.narrowing import checked, shared_inputs

KINDS: dict[str, dict[str, Any]] = {
    "maml": {},
    "meta_sgd": {},
    "protonet": {"data__tasks": ["left", "right"]},
    "batch norm": {"encoder__norm": "batch"},
}


def trained(folder: Path, chosen: Experiment) -> Path:
    """A run folder with a trained model, as `raymtl train` leaves it."""
    (folder / "best").mkdir(parents=True)
    chosen.save(folder / "config.yaml")
    context = TrainContext(lambda metrics: None, lambda row: None)
    arrays = chosen.data.load()
    train_loop(chosen, arrays, local_batches(chosen, arrays), context, folder / "best")
    evaluate_folder(folder / "best", arrays, chosen.data)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = KINDS[request.param]
    if request.param != "batch norm":
        values = {**values, "learner__name": request.param}
    chosen = experiment(train__steps=2, train__eval_every=2, name="small", **values)
    return trained(tmp_path_factory.mktemp("runs") / "small", chosen)


def episode_of(run: Path) -> tuple[Batch, Batch]:
    chosen = raymtl.open_run(run).config
    arrays = chosen.data.load()
    (stack,), _ = build_episodes(chosen.data, arrays, seed=0, split="test", step=0, indices=[1])

    def first(batch: Batch) -> Batch:
        targets = {name: target[0] for name, target in batch.targets.items()}
        masks = {name: mask[0] for name, mask in batch.masks.items()}
        return Batch(shared_inputs(batch)[0], targets, masks)

    return first(stack.support), first(stack.query)


def test_the_module_computes_what_the_algorithm_does(run: Path) -> None:
    support, query = episode_of(run)
    _, algorithm, params = load_parts(run / "best")
    with torch.no_grad():
        adapted = algorithm.adapt(params, on_device(support, "cpu"))
        expected = algorithm.predict(adapted, on_device(query, "cpu").inputs)
    model = raymtl.load_model(run).adapt(support)
    outputs = model(shared_inputs(query))
    for task in algorithm.tasks:
        assert torch.equal(outputs[task.name], expected[task.name])
        decoded = model.predict(shared_inputs(query).numpy())[task.name]
        assert torch.equal(decoded, task.decode(expected[task.name]))


def test_an_adapted_folder_is_the_adapted_model(run: Path) -> None:
    adapted = raymtl.adapt(run, episode=1)
    _, query = episode_of(run)
    model = checked(adapted.model, raymtl.Model)
    predictions = model.predict(shared_inputs(query))
    written = adapted.predictions
    for name, values in predictions.items():
        found = torch.tensor(written[f"{name}.after"].to_pylist()).to(values)
        torch.testing.assert_close(found, values)
    with pytest.raises(raymtl.UserError, match="--task: expected --support beside it"):
        raymtl.adapt(run, task="left")


def test_what_must_read_a_support_set_says_so(run: Path) -> None:
    model = raymtl.load_model(run)
    _, query = episode_of(run)
    learner = model.experiment.learner
    if learner.supports_zero_shot and not model._algorithm.normalises_by_support:
        assert set(model.predict(shared_inputs(query))) == set(model.experiment.data.task_names)
        return
    with pytest.raises(raymtl.UserError, match="Call adapt first"):
        model.predict(shared_inputs(query))


def test_its_state_moves_and_trains_as_any_module_does(run: Path) -> None:
    """An optimiser moves what the model predicts by, and the model that it was made from stays."""
    support, query = episode_of(run)
    before = raymtl.load_model(run)
    model = before.adapt(support)
    outputs = model(shared_inputs(query))
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad()
    sum(output.sum() for output in outputs.values()).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    name = next(iter(outputs))
    assert not torch.equal(model(shared_inputs(query))[name], outputs[name])
    fresh = raymtl.load_model(run)
    assert all(torch.equal(value, fresh.params[key]) for key, value in before.params.items())
    fresh.load_state_dict(before.state_dict())
    half = model.double().predict(shared_inputs(query))
    assert set(half) == set(outputs)


def test_a_file_of_rows_is_predicted(run: Path, tmp_path: Path) -> None:
    support, query = episode_of(run)
    path = tmp_path / "new.parquet"
    pictures = shared_inputs(query).flatten(1)
    pq.write_table(pa.table({"input": pictures.tolist()}), path)
    model = raymtl.load_model(run).adapt(support)
    table = raymtl.predict(model, path)
    expected = model.predict(shared_inputs(query))
    assert table["row"].to_pylist() == list(range(len(pictures)))
    for name, values in expected.items():
        assert table[f"{name}.target"].null_count == len(table)
        found = torch.tensor(table[f"{name}.after"].to_pylist()).to(values)
        torch.testing.assert_close(found, values)


def test_a_run_shows_its_curves_and_report(run: Path) -> None:
    opened = raymtl.open_run(run)
    assert opened.curves.training["step"].to_pylist() == [1, 2]
    steps = opened.curves.adaptation["step"].to_pylist()
    assert steps == list(range(2 * opened.config.learner.num_steps + 1))
    assert opened.report.stat().st_size > 1e6
    with pytest.raises(raymtl.UserError, match="expected a search with trials"):
        _ = opened.trials
    metrics = raymtl.evaluate(opened, split="val", episodes=3)
    assert metrics["split"] == "val"


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(raymtl.UserError, match=r"learner\.name: expected one of .* mean maml\?"):
        raymtl.Experiment(learner={"name": "mamll"})
    with pytest.raises(raymtl.UserError, match=r"search: expected something to search"):
        raymtl.tune(raymtl.Experiment())
    with pytest.raises(raymtl.UserError, match="expected a run folder"):
        raymtl.open_run(tmp_path)
    with pytest.raises(raymtl.UserError, match="expected a run folder or a model folder"):
        raymtl.load_model(tmp_path)


def test_importing_the_package_imports_nothing_slow() -> None:
    code = (
        "import sys, raymtl; before = set(sys.modules); raymtl.UserError; "
        "assert set(dir(raymtl)) >= set(raymtl.__all__); "
        "print(sorted({'torch', 'numpy', 'pydantic', 'ray'} & before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        getattr(raymtl, "trian")  # noqa: B009
    assert all(hasattr(raymtl, name) for name in raymtl.__all__)
