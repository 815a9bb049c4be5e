"""A user's support set: what it must keep, each breach answered by a sentence and exit status 2."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raymtl.data.overlap import find_repeated
from raymtl.storage import formats
from tests.cli.test_cli import mistake
from tests.conftest import experiment


@pytest.mark.parametrize(
    ("inputs", "labelled", "found"),
    [
        ([[1], [2], [3], [4]], [True, True, False, False], None),
        ([[1], [2], [3], [2]], [True, True, False, False], (3, 1)),
        ([[2], [2], [3], [4]], [True, True, False, False], None),
        ([[1], [2], [4], [4]], [True, True, False, False], None),
        ([[4], [2], [4], [2]], [False, True, True, False], (0, 2)),
        ([[1], [1], [1], [1]], [False, False, False, False], None),
    ],
)
def test_repeats_are_labelled_and_unlabelled_inputs(
    inputs: list[list[int]], labelled: list[bool], found: tuple[int, ...] | None
) -> None:
    """Twice the same picture in the support set is the user's to weigh, and twice in the query set costs nothing."""
    for dtype in (torch.uint8, torch.float32, torch.float64):
        assert find_repeated(torch.tensor(inputs, dtype=dtype), torch.tensor(labelled)) == found


def test_inputs_that_differ_in_one_number_are_different() -> None:
    inputs = torch.rand(1, 3, 4, 4).repeat(2, 1, 1, 1)
    assert find_repeated(inputs, torch.tensor([True, False])) == (1, 0)
    inputs[1, 2, 3, 3] += 1e-6
    assert find_repeated(inputs, torch.tensor([True, False])) is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders with models as they are made, of a learner that predicts unadapted and of one that does not."""
    found = {}
    for learner, tasks in (("maml", ["left", "right", "sum"]), ("protonet", ["left", "right"])):
        chosen = experiment(learner__name=learner, data__tasks=tasks)
        found[learner] = tmp_path_factory.mktemp(learner)
        for folder in (found[learner], found[learner] / "best"):
            folder.mkdir(exist_ok=True)
            chosen.save(folder / "config.yaml")
        formats.save_params(
            found[learner] / "best" / "model.safetensors", chosen.build().init_params()
        )
    return found


PICTURES = [[number] * 256 for number in range(6)]


@pytest.mark.parametrize(
    ("learner", "columns", "says"),
    [
        (
            "maml",
            {"input": [*PICTURES[:5], PICTURES[1]], "left": [1, 2, 3, None, None, None]},
            "row 5: expected an input to predict that is not among those with a label, got that of row 1. Leave one of",
        ),
        (
            "maml",
            {"input": PICTURES, "left": [1] * 6, "rigth": [1] * 6},
            "column `rigth`: expected `input` or one of the tasks ['left', 'right', 'sum'], got another.",
        ),
        (
            "maml",
            {"input": PICTURES, "lefft": [1] * 6},
            "at least one of the tasks ['left', 'right', 'sum'], got [",
        ),
        (
            "maml",
            {"input": PICTURES, "left": [None] * 6},
            "expected rows with labels to adapt to, got none",
        ),
        (
            "maml",
            {"input": PICTURES, "left": [10] * 6},
            "row 0, column `left`: expected a class from 0 to 9, got 10",
        ),
        (
            "maml",
            {"input": [p[:9] for p in PICTURES], "left": [1] * 6},
            "expected a list of 256 numbers",
        ),
        (
            "protonet",
            {"input": PICTURES, "left": [1, 2, 1, 2, None, None]},
            "column `right`: expected labels, of which protonet makes its predictions, got none.",
        ),
    ],
)
def test_impossible_support_files_are_one_sentence(
    learner: str,
    columns: dict[str, Any],
    says: str,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), file)
    message = mistake(monkeypatch, capsys, "adapt", str(folders[learner]), "--support", str(file))
    assert says in message and str(file) in message
    assert message.count("\n") == 1
