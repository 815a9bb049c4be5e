"""What examples of a user's own must keep before they are learned from."""

from torch import Tensor


def repeated(inputs: Tensor, labelled: Tensor) -> tuple[int, int] | None:
    """A row without a label whose input [N, ...] is that of a row that has one, and that row; None
    where all differ.

    `labelled` [N] says which rows are the support set. What is to be predicted must not stand in
    it.
    """
    shown: dict[bytes, int] = {}
    for row in labelled.nonzero().flatten().tolist():
        shown.setdefault(inputs[row].numpy().tobytes(), row)
    for row in (~labelled).nonzero().flatten().tolist():
        same = shown.get(inputs[row].numpy().tobytes())
        if same is not None:
            return row, same
    return None
