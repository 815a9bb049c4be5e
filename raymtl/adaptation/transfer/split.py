"""Which examples of a new task are trained on, and which select the step."""

from collections import Counter

import torch

from raymtl.adaptation.transfer.task import Examples, NewTaskKind
from raymtl.types import UserError


def split(
    examples: Examples, held_out: float, seed: int, kind: NewTaskKind
) -> tuple[Examples, Examples]:
    """Examples to train on, and the share to select by, which leaves an example of every class to
    train on.

    Nothing is held out where `held_out` is 0. Raises UserError where the share is less than two
    examples.
    """
    number = len(examples.targets)
    wanted = round(held_out * number)
    remaining = Counter(examples.targets.tolist())
    chosen: list[int] = []
    for row in torch.randperm(number, generator=torch.Generator().manual_seed(seed)).tolist():
        label = examples.targets[row].item()
        may_go = not kind.keeps_each_class or remaining[label] > 1
        if len(chosen) < wanted and may_go:
            chosen.append(row)
            remaining[label] -= 1
    if held_out and (len(chosen) < 2 or len(chosen) == number):
        raise UserError(_too_few(held_out, len(chosen), number, remaining, kind))
    is_trained_on = torch.ones(number, dtype=torch.bool)
    is_trained_on[chosen] = False
    return (
        examples.at(is_trained_on.nonzero().flatten()),
        examples.at((~is_trained_on).nonzero().flatten()),
    )


def _too_few(
    held_out: float, chosen: int, number: int, remaining: Counter[float], kind: NewTaskKind
) -> str:
    one_each = ""
    hint = ""
    if kind.keeps_each_class:
        one_each = ", with one of each class kept"
        if number > 2 and max(remaining.values()) == 1 and not chosen:
            hint = " For labels that are numbers set task.kind: regression."
    return (
        "held_out: expected two examples at least to select by, and some to train on, got "
        f"{chosen} of {number} at {held_out:g}{one_each}. Change it, give more examples, or set "
        f"held_out: 0 to take the last step without a selection.{hint}"
    )
