"""One file a weighting; here what stands in for the gradients of the outer step."""

from collections.abc import Callable

from torch import Tensor


class Rows:
    """A Jacobian that is given: `rows` [K, P]."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def gramian(self) -> Tensor:
        return self.rows @ self.rows.T

    def change(self, rows: Callable[[Tensor], Tensor]) -> None:
        self.rows = rows(self.rows)
