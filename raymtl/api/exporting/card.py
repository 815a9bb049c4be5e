"""The model card of an exported model, README.md: how to load it, what it is, how good it is."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from raymtl.api.exporting.files import NAMES, Format
from raymtl.api.exporting.graph import Traced
from raymtl.api.exporting.inputs import GraphInput
from raymtl.config import Experiment
from raymtl.data import files_of
from raymtl.storage import formats

BLOCK = 2**20


def write_card(
    folder: Path, to: Format, traced: Traced, difference: float, model_folder: Path | None
) -> None:
    """Writes README.md beside the model; `model_folder` is the run's, or None without one."""
    experiment = traced.graph.model.experiment
    if model_folder is not None and (model_folder / "best").is_dir():
        model_folder = model_folder / "best"
    lines = [
        f"# {experiment.name}",
        "",
        *_use(to, traced, difference),
        *_data(experiment),
        *_tasks(traced, model_folder),
        *_intended(traced),
        *_hashes(folder, model_folder),
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _use(to: Format, traced: Traced, difference: float) -> Iterator[str]:
    yield from ("## Use", "", "```python", *loading(to, traced), "```", "")
    yield (
        "`model.json` lists the inputs and outputs, the codes of categories and the names of "
        "classes. Any number of rows can pass at once."
    )
    if traced.inputs.outside:
        yield from ("", traced.inputs.outside)
    yield from ("", "| input | type | shape | columns |", "|---|---|---|---|")
    for each in traced.about["inputs"]:
        columns = ", ".join(map(_cell, each.get("columns", ())))
        yield f"| `{each['name']}` | {each['dtype']} | {_shape(each)} | {columns} |"
    yield from ("", "| output | kind | shape | what it is |", "|---|---|---|---|")
    for each in traced.about["outputs"]:
        says = each["says"]
        if each.get("classes"):
            says += f": {', '.join(map(_cell, each['classes']))}"
        yield f"| `{each['name']}` | {each['kind']} | {_shape(each)} | {says} |"
    yield from (
        "",
        f"Beside the model in raymtl, the outputs of this file differ by {difference:.1g} at most.",
        "",
    )


def loading(to: Format, traced: Traced) -> list[str]:
    """Three lines that load the file without raymtl, and predict a row of zeros."""
    if to == "torch":
        rows = ", ".join(f"{each.name}={_torch_zeros(each)}" for each in traced.inputs.each)
        return [
            "import torch",
            f'program = torch.export.load("{NAMES[to]}").module()',
            f"outputs = program({rows})",
        ]
    rows = ", ".join(f'"{each.name}": {_numpy_zeros(each)}' for each in traced.inputs.each)
    return [
        "import numpy, onnxruntime",
        f'session = onnxruntime.InferenceSession("{NAMES[to]}")',
        f"outputs = session.run(None, {{{rows}}})",
    ]


def _torch_zeros(each: GraphInput) -> str:
    return f"torch.zeros({(1, *each.shape)}, dtype={each.dtype})"


def _numpy_zeros(each: GraphInput) -> str:
    return f'numpy.zeros({(1, *each.shape)}, "{str(each.dtype).removeprefix("torch.")}")'


def _data(experiment: Experiment) -> Iterator[str]:
    source = experiment.data
    yield from ("## Data", "", f"- source: `data.name: {getattr(source, 'name', 'your own')}`")
    files = files_of(source)
    if files is not None:
        # Names alone: where they are on this machine concerns nobody else.
        names = [PurePosixPath(path).name for path in _paths(files.found.path)]
        yield f"- files: {', '.join(names)}"
        yield f"- rows: {files.found.rows}, split into train, val and test {files.found.split_by}"
    yield from (
        f"- encoder: {getattr(experiment.encoder, 'name', 'your own')}, sharing: "
        f"{getattr(experiment.sharing, 'name', 'your own')}, learner: "
        f"{getattr(experiment.learner, 'name', 'your own')}",
        "",
    )


def _paths(path: str | tuple[str, ...] | Mapping[str, str]) -> list[str]:
    if isinstance(path, str):
        return [path]
    if isinstance(path, Mapping):
        return [*path.values()]
    return [*path]


def _tasks(traced: Traced, folder: Path | None) -> Iterator[str]:
    """The scores of the model's folder, where it was scored."""
    yield from ("## Tasks and scores", "")
    if folder is None or not (folder / "metrics.json").is_file():
        yield from ("This model was not scored on held-out examples.", "")
        return
    metrics = formats.read_json(folder / "metrics.json")
    when = "after"
    if traced.graph.model.experiment.learner.num_steps:
        when = "before"
        yield from (
            "The model is the one before any adaptation, and so are its scores.",
            "",
        )
    yield from (
        f"{metrics['scored']['text']} Intervals are of 95 %.",
        "",
        "| task | score | value | interval |",
        "|---|---|---|---|",
    )
    for task, scores in metrics["tasks"].items():
        for name, score in scores.items():
            yield _score_row(task, name, score[when])
    yield ""


def _score_row(task: str, name: str, score: Mapping[str, Any] | None) -> str:
    value, interval = "-", "-"
    if score is not None and score["mean"] is not None:
        value = f"{score['mean']:.4g}"
        if score["low"] is not None:
            interval = f"{score['low']:.4g} to {score['high']:.4g}"
    return f"| {task} | {name} | {value} | {interval} |"


def _intended(traced: Traced) -> Iterator[str]:
    names = ", ".join(f"`{name}`" for name in traced.output_names)
    yield from (
        "## Intended use",
        "",
        f"Predicting {names} of examples like those above. The scores say nothing about other "
        "data, and probabilities are not calibrated. Add here who may use the model, for what, "
        "and for what not.",
        "",
    )


def _hashes(folder: Path, model_folder: Path | None) -> Iterator[str]:
    yield from ("## SHA-256", "", "```")
    for path in sorted(folder.iterdir()):
        if path.name != "README.md":
            yield f"{_sha256(path)}  {path.name}"
    if model_folder is not None:
        for name in ("model.safetensors", "config.yaml"):
            yield f"{_sha256(model_folder / name)}  {name} (of the run)"
    yield "```"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _shape(each: Mapping[str, Any]) -> str:
    return " x ".join(map(str, each["shape"]))


def _cell(text: str) -> str:
    """A name inside a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|")
