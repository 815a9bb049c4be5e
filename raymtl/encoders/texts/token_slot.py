"""Texts as the numbers of their tokens, of which a transformer at the front of a model makes
vectors. Its values are parameters of the model.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from raymtl.encoders.base import Stage
from raymtl.encoders.front import Slot
from raymtl.encoders.layer_norm import with_plain_layer_norms
from raymtl.encoders.texts.base import TextModel
from raymtl.encoders.texts.pooling import pooled
from raymtl.encoders.texts.settings import FoundTextEncoder
from raymtl.encoders.texts.transformer import TransformerEncoder
from raymtl.types import UserError

NO_TOKEN = -1.0
"""What stands in a slot after the last token of a text."""
CLOSE = 1e-4
"""By how much numbers may differ by rounding, as a share of the largest."""
STEP = 0.01


@dataclass(frozen=True)
class TokenSlot(Slot):
    """The tokens of a text, by their numbers; the encoder of its column makes a vector of them."""

    num_tokens: int
    encoder: FoundTextEncoder
    key: str
    """Of the encoder in a configuration."""

    @property
    def size(self) -> int:
        return self.num_tokens

    @property
    def num_features(self) -> int:
        return self.encoder.size

    def build(self) -> nn.Module:
        from raymtl.encoders.texts.opened import open_same

        model = open_same(self.encoder, self.key)
        assert isinstance(model, TransformerEncoder)
        front = TextFront(model)
        front.lr_scale = self.encoder.lr_scale
        return front


class TextFront(Stage):
    """The transformer of a model: tokens [N, L] -> vectors [N, num_features], 0 without tokens.

    It is a function of its parameters and its input: nothing is dropped by chance, and attention is
    computed by operations that have second derivatives.
    """

    def __init__(self, model: TransformerEncoder) -> None:
        super().__init__()
        self.network = _copied(model.network)
        self.poolings = model.folder.poolings
        self.layers = nn.ModuleList(_copied(layer) for layer in model.folder.layers)
        self.requires_grad_()

    def forward(self, inputs: Tensor) -> Tensor:
        has_text = inputs[:, :1] >= 0
        first = torch.arange(inputs.shape[1], device=inputs.device) == 0
        mask = ((inputs >= 0) | first).to(inputs.dtype)
        # Tokens after the end are not attended to, by any token.
        ignored = (1 - mask)[:, None, None, :] * torch.finfo(inputs.dtype).min
        ignored = ignored.expand(-1, 1, inputs.shape[1], -1)
        ids = inputs.clamp(min=0).long()
        tokens = self.network(input_ids=ids, attention_mask=ignored).last_hidden_state
        vectors = pooled(tokens, mask, self.poolings)
        for layer in self.layers:
            vectors = layer(vectors)
        return vectors * has_text


def _copied(module: Any) -> Any:
    """A module of the same values; one without values where torch is told to make none."""
    memo: dict[int, Any] = {}
    if torch.get_default_device().type == "meta":
        for value in module.parameters():
            memo[id(value)] = nn.Parameter(value.to("meta"))
    made = copy.deepcopy(module, memo)
    if getattr(made, "pooler", None) is not None:
        made.pooler = None  # reads the tokens and gives nothing that is used here
    if hasattr(made, "set_attn_implementation"):
        made.set_attn_implementation("eager")  # others have no second derivatives
    with_plain_layer_norms(made)
    return made


def check_trainable(model: TextModel, key: str) -> None:
    """Raises UserError for a model that gives other vectors at the front of a model than alone, or
    whose second derivatives vmap does not give.
    """
    assert isinstance(model, TransformerEncoder)
    front = TextFront(model)
    rows = _tokens(model, ("a", "a text that is longer", "a text"))
    expected = torch.from_numpy(model.vectors(("a", "a text that is longer"), lambda _: None))
    try:
        with torch.no_grad():
            exact = torch.allclose(front(rows[:2]), expected, atol=CLOSE, rtol=CLOSE)
        exact = exact and _is_differentiable(front, rows)
    except Exception as error:  # of any operation of any model
        reason = str(error).strip().partition("\n")[0][:200]
        raise _not_trainable(model, key, f"fails inside vmap ({reason})") from None
    if not exact:
        raise _not_trainable(model, key, "gives other numbers inside vmap than alone")


def _not_trainable(model: TransformerEncoder, key: str, reason: str) -> UserError:
    return UserError(
        f"{key}: expected true, since {type(model.network).__name__} {reason}, got false. Remove "
        "it, or take another model."
    )


def _tokens(model: TransformerEncoder, texts: Sequence[str]) -> Tensor:
    """The rows of a slot for these texts."""
    tokens = model.tokens(texts)
    rows = torch.full((len(texts), max(len(own) for own in tokens)), NO_TOKEN)
    for row, own in enumerate(tokens):
        rows[row, : len(own)] = torch.tensor(own)
    return rows


def _is_differentiable(front: TextFront, rows: Tensor) -> bool:
    """Whether vmap gives the second derivatives that a loop over the rows gives."""
    params = {name: value.detach().clone() for name, value in front.named_parameters()}
    leaves = [value.requires_grad_() for value in params.values()]

    def moved(row: Tensor) -> Tensor:
        """The square of a vector after a step that makes it smaller."""

        def square(values: Mapping[str, Tensor]) -> Tensor:
            vectors: Tensor = functional_call(front, dict(values), (row[None],))
            return vectors.square().mean()

        gradients = grad(square)(params)
        return square({name: value - STEP * gradients[name] for name, value in params.items()})

    looped = torch.autograd.grad(torch.stack([moved(row) for row in rows]).sum(), leaves)
    mapped = torch.autograd.grad(vmap(moved)(rows).sum(), leaves)
    largest = max(float(value.abs().max()) for value in looped)
    return all(
        torch.allclose(one, other, atol=CLOSE * largest, rtol=CLOSE)
        for one, other in zip(looped, mapped, strict=True)
    )
