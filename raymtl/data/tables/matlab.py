"""MATLAB files whose cells hold the examples of several tasks."""

import io

import numpy as np
import pyarrow as pa

from raymtl.data.tables.contents import refuse_others
from raymtl.data.tables.paths import reason
from raymtl.types import UserError


def read_mat(content: bytes, file: str) -> pa.Table:
    """Reads the cells X and Y, which hold the inputs [N_t, D] and the labels of each task t.

    The columns of the table are x0 ..., y (or y0 ...) and task. Raises UserError for other files.
    """
    from scipy.io import loadmat

    if not content.startswith(b"MATLAB 5.0"):
        refuse_others(content, file, "MATLAB cells")
    try:
        variables = loadmat(io.BytesIO(content))
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"{file}: expected a MATLAB file up to version 7, got another ({reason(error)})."
        ) from None
    cells = {name: value for name, value in variables.items() if not name.startswith("__")}
    if not {"X", "Y"} <= set(cells) or any(cells[name].dtype != object for name in "XY"):
        raise UserError(
            f"{file}: expected cells X and Y with one entry a task, got {sorted(cells)}."
        )
    inputs = [np.asarray(values, np.float64) for values in cells["X"].ravel()]
    labels = [np.asarray(values, np.float64) for values in cells["Y"].ravel()]
    labels = [_columns_of(cell, len(rows)) for cell, rows in zip(labels, inputs, strict=True)]
    all_labels = np.concatenate(labels)
    columns = {f"x{i}": values for i, values in enumerate(np.concatenate(inputs).T)}
    if all_labels.shape[1] == 1:
        columns["y"] = all_labels[:, 0]
    else:
        columns |= {f"y{i}": values for i, values in enumerate(all_labels.T)}
    counts = [len(rows) for rows in inputs]
    return pa.table({**columns, "task": np.repeat(np.arange(len(counts)), counts)})


def _columns_of(labels: np.ndarray, num_rows: int) -> np.ndarray:
    """The labels of a task, [N] or [1, N] or [N, D], as [N, D]."""
    if labels.ndim > 1 and len(labels) == num_rows:
        return labels.reshape(len(labels), -1)
    return labels.reshape(num_rows, -1)
