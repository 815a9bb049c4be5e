"""A front expands numbers of an input before the encoders; a dense input is the oracle."""

from typing import Any

import pytest
import torch
from torch import Tensor

from raymtl.encoders import MLPSpec
from raymtl.encoders.front import (
    MOST_PLACES,
    Front,
    SparseSlot,
    balance,
    expanded_shape,
    front_of,
)
from tests.conftest import SHARING
from tests.sharing.laws import adapted_outputs, assert_vmap_is_a_loop, moved
from tests.sharing.test_sharing import build

PLAIN, TERMS, PLACES = 2, 4, 9
SLOTS = (SparseSlot(1, TERMS, PLACES), SparseSlot(2 + 2 * TERMS, 1, 3))
NUM_INPUTS = PLAIN + 2 * TERMS + 2
DENSE = (PLAIN + PLACES + 3,)


def sparse(num: int, generator: torch.Generator) -> Tensor:
    """Inputs [num, NUM_INPUTS] with terms at different places, the last of them filled up."""
    inputs = torch.randn(num, NUM_INPUTS, generator=generator)
    for row in inputs:
        row[1 : 1 + TERMS] = torch.randperm(PLACES, generator=generator)[:TERMS]
        row[TERMS], row[2 * TERMS] = 0, 0
        row[2 + 2 * TERMS] = 2
    return inputs


def dense(inputs: Tensor) -> Tensor:
    """The same as an encoder reads it, number by number."""
    rows = []
    for row in inputs.tolist():
        text, short = [0.0] * PLACES, [0.0] * 3
        for term in range(TERMS):
            text[int(row[1 + term])] += row[1 + TERMS + term]
        short[int(row[2 + 2 * TERMS])] += row[3 + 2 * TERMS]
        rows.append([row[0], *text, row[1 + 2 * TERMS], *short])
    return torch.tensor(rows)


@pytest.mark.usefixtures("float64")
def test_slots_become_dense_vectors() -> None:
    inputs = sparse(5, torch.Generator().manual_seed(0))
    assert expanded_shape((NUM_INPUTS,), SLOTS) == DENSE
    torch.testing.assert_close(Front(NUM_INPUTS, SLOTS)(inputs), dense(inputs), rtol=0, atol=0)
    assert expanded_shape((3, 8, 8), ()) == (3, 8, 8) and front_of((3, 8, 8), ()) is None


def test_the_last_place_is_exact_in_float32() -> None:
    vector = Front(2, [SparseSlot(0, 1, MOST_PLACES)])(torch.tensor([[MOST_PLACES - 1, 1.0]]))
    assert vector.argmax() == MOST_PLACES - 1 and vector.sum() == 1


def test_numbers_beside_texts_start_with_weights_that_count() -> None:
    """As large as those of a layer without the texts, where each text counts as one number."""
    slots = (SparseSlot(2, 5, 3000), SparseSlot(14, 5, 1000))
    encoder = MLPSpec(hidden=(500,)).build((4005,))
    weight = encoder.get_parameter("stages.0.1.weight")
    before = weight.detach().clone()
    balance(encoder, 25, slots)
    plain = [0, 1, 3002, 3003, *range(4004, 4005)]
    torch.testing.assert_close(
        weight[:, plain].std(), torch.tensor(1 / (3 * 7) ** 0.5), rtol=0.05, atol=0
    )
    texts = [place for place in range(4005) if place not in plain]
    assert torch.equal(weight[:, texts], before[:, texts])
    text_alone = MLPSpec(hidden=(5,)).build((9,))
    same = text_alone.get_parameter("stages.0.1.weight").detach().clone()
    balance(text_alone, 4, [SparseSlot(0, 2, 9)])
    assert torch.equal(text_alone.get_parameter("stages.0.1.weight"), same)


def behind_a_front(name: str, isolate: bool) -> Any:
    model = build(name, (MLPSpec(hidden=(7, 6)), DENSE), isolate_task_graphs=isolate)
    model.front = front_of((NUM_INPUTS,), SLOTS)
    return model


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", SHARING)
def test_architectures_see_the_dense_input(name: str) -> None:
    """Also in inner loops under vmap, and where tasks have inputs of their own."""
    generator = torch.Generator().manual_seed(0)
    for isolate in (False, True):
        torch.manual_seed(0)
        model = behind_a_front(name, isolate)
        params = moved(model)
        inputs = sparse(4, generator)
        own = {task: sparse(2 + i, generator) for i, task in enumerate(model.task_names)}
        ours = [adapted_outputs(model, params, one) for one in (inputs, own)]
        model.front = None
        expanded = {task: dense(one) for task, one in own.items()}
        expected = [adapted_outputs(model, params, one) for one in (dense(inputs), expanded)]
        torch.testing.assert_close(ours, expected)
        model.front = front_of((NUM_INPUTS,), SLOTS)
    assert_vmap_is_a_loop(model, torch.stack([sparse(4, generator) for _ in range(2)]), params)
