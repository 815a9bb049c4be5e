"""The check that what is to be predicted is not among the examples that are learned from."""

from torch import Tensor


def find_repeated(inputs: Tensor, is_labelled: Tensor) -> tuple[int, int] | None:
    """A row without a label whose input [N, ...] is that of a row that has one, and that row; None
    where all differ.

    `is_labelled` [N] says which rows are the support set.
    """
    support: dict[bytes, int] = {}
    for row in is_labelled.nonzero().flatten().tolist():
        support.setdefault(inputs[row].numpy().tobytes(), row)
    for row in (~is_labelled).nonzero().flatten().tolist():
        same = support.get(inputs[row].numpy().tobytes())
        if same is not None:
            return row, same
    return None
