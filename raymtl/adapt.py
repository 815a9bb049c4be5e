"""Adapts a trained model to a new support set; starts no Ray."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raymtl import runs
from raymtl.config import Experiment
from raymtl.data.episodes import build_episodes, on_device
from raymtl.evaluate import load_model
from raymtl.step import Problem
from raymtl.tasks import label_counts, metric_names, metric_sums
from raymtl.types import Batch, Episode, Params, UserError


def adapt_run(run: Path, support: Path | None, episode: int, steps: int | None, name: str | None) -> dict[str, Any]:
    """Adapts RUN/best and writes RUN/adapted/NAME: a model folder and predictions.parquet.

    The support set is a held-out test episode of the source, whose query set is predicted and scored, or a Parquet
    file (docs/adapt.md): its labelled rows are the support set, the others are predicted.
    """
    experiment, problem, params = load_model(run / "best")
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise UserError(f"--name: expected a plain name for a folder, got '{name}'.")
    if support is None:
        arrays = experiment.data.load()
        drawn, domains = build_episodes(
            experiment.data, arrays, seed=experiment.seed, split="test", step=0, indices=[episode]
        )
        task = tree_map(lambda leaf: leaf[0], drawn[0])
        domain, folder_name = domains[0], f"episode-{episode}"
    else:
        task = read_support(support, experiment, problem)
        domain, folder_name = str(support), support.stem
    task = on_device(task, "cpu")
    with torch.no_grad():
        adapted = problem.adapt(params, task.support, steps)
        after = problem.predict(adapted, task.query.inputs) if len(task.query.inputs) else {}
        before = problem.predict(params, task.query.inputs) if after and problem.learner.predicts_unadapted else None
    for key, value in adapted.items():
        if not value.isfinite().all():
            raise UserError(
                f"{domain}: adapting made {key} infinite or no number. Take fewer --steps, or train with a lower "
                "learner.inner_lr."
            )
    folder = run / "adapted" / (name or folder_name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--name: {folder} cannot be made ({error.strerror}). Choose another name.") from None
    runs.publish(folder / "config.yaml", experiment.save)
    runs.save_params(folder / "model.safetensors", adapted)
    runs.write_rows(folder / "predictions.parquet", _predictions(problem, task.query, before, after))
    return {
        "folder": str(folder),
        "domain": domain,
        "support_examples": len(task.support.inputs),
        "predicted_examples": len(task.query.inputs),
        "scores": _scores(problem, task.query, before, after) if support is None else {},
    }


def read_support(path: Path, experiment: Experiment, problem: Problem) -> Episode:
    """Rows with a label of any task are the support set, rows without are to be predicted.

    Raises UserError naming the file, the column and the row for what does not fit the run's tasks and inputs.
    """
    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Give a Parquet file with the column `input` and one a task.") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: expected a Parquet file, got something else ({error}).") from None
    names = [task.name for task in problem.tasks]
    present = [name for name in names if name in table.column_names]
    if "input" not in table.column_names or not present:
        raise UserError(
            f"{path}: expected the column `input` and at least one of the tasks {names}, got {table.column_names}."
        )
    inputs = _inputs(path, table, experiment) if len(table) else torch.zeros(0)
    missing = [name for name in names if name not in present or table[name].null_count == len(table)]
    if missing and not problem.learner.predicts_unadapted:
        raise UserError(
            f"{path}: column `{missing[0]}`: expected labels, of which {experiment.learner.name} makes its "
            "predictions, got none."
        )
    columns = {name: table[name].to_pylist() if name in present else [None] * len(table) for name in names}
    labelled = torch.tensor([any(columns[n][row] is not None for n in names) for row in range(len(table))])
    if not len(table) or not labelled.any():
        raise UserError(f"{path}: expected rows with labels to adapt to, got none in {present}.")
    targets, masks = {}, {}
    for task in problem.tasks:
        for row, value in enumerate(columns[task.name]):
            _check_label(path, task, row, value)
        masks[task.name] = torch.tensor([value is not None for value in columns[task.name]])
        kind = torch.int64 if task.kind == "classification" else torch.get_default_dtype()
        targets[task.name] = torch.tensor([value or 0 for value in columns[task.name]], dtype=kind)
    parts = (labelled, ~labelled)
    return Episode(
        *(Batch(inputs[p], {n: targets[n][p] for n in names}, {n: masks[n][p] for n in names}) for p in parts)
    )


def _inputs(path: Path, table: pa.Table, experiment: Experiment) -> Tensor:
    size = torch.Size(experiment.data.input_shape).numel()
    rows = table["input"].to_pylist()
    for row, values in enumerate(rows):
        if not isinstance(values, list) or len(values) != size:
            got = f"{len(values)} values" if isinstance(values, list) else repr(values)
            raise UserError(
                f"{path}: row {row}, column `input`: expected a list of {size} numbers "
                f"(shape {list(experiment.data.input_shape)}, row-major), got {got}."
            )
        odd = next((value for value in values if not _is_number(value)), 0)
        if odd != 0:
            raise UserError(f"{path}: row {row}, column `input`: expected numbers, got {odd!r}.")
    inputs = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), *experiment.data.input_shape)
    if experiment.data.pictures:
        if inputs.min() < 0 or inputs.max() > 255:
            raise UserError(f"{path}: column `input`: expected numbers from 0 to 255, got others.")
        return inputs.round().byte()
    inputs = inputs.to(torch.get_default_dtype())
    if not inputs.isfinite().all():
        raise UserError(f"{path}: column `input`: expected numbers that {inputs.dtype} can hold, got larger ones.")
    return inputs


def _check_label(path: Path, task: Any, row: int, value: Any) -> None:
    if value is None:
        return
    where = f"{path}: row {row}, column `{task.name}`"
    if not _is_number(value):
        raise UserError(f"{where}: expected a number or null, got {value!r}.")
    if task.kind == "classification" and (value != int(value) or not 0 <= value < task.out_features):
        raise UserError(f"{where}: expected a class from 0 to {task.out_features - 1}, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _predictions(problem: Problem, query: Batch, before: Any, after: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"row": index} for index in range(len(query.inputs))]
    for task in problem.tasks:
        for index, row in enumerate(rows):
            known = not query.masks or bool(query.masks[task.name][index])
            row[f"{task.name}.target"] = float(query.targets[task.name][index]) if known else None
            row[f"{task.name}.before"] = float(task.readable(before[task.name][index : index + 1])) if before else None
            row[f"{task.name}.after"] = float(task.readable(after[task.name][index : index + 1]))
            if task.kind == "classification":
                row[f"{task.name}.probability"] = float(after[task.name][index].softmax(-1).max())
    return rows


def _scores(problem: Problem, query: Batch, before: Any, after: Params | Any) -> dict[str, tuple[float | None, float]]:
    counts = label_counts(problem.tasks, query)
    per_metric = torch.cat([counts[i].expand(len(task.metrics)) for i, task in enumerate(problem.tasks)])
    means = [
        None if p is None else (metric_sums(problem.tasks, p, query) / per_metric).tolist() for p in (before, after)
    ]
    names = metric_names(problem.tasks)
    return {name: (means[0][i] if means[0] else None, means[1][i]) for i, name in enumerate(names)}  # type: ignore[index]
