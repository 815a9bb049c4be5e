"""A support set becomes a vector: attention pooling of its pairs (Set Transformer, Lee et al.,
2019, arXiv:1810.00825).

h_i = mlp([f(x_i); y_i; s_i]) with s = y standardised within the set; z = tanh(W mlp([sum_i a_hi V
h_i]_h)) with a_hi = softmax_i q_h . K h_i over the labelled examples; D(z) ~ [mean f; mean y; mean
y^2; corr(f, y)].
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from raymtl.learners.classes import features_of
from raymtl.sharing import SharingArchitecture
from raymtl.types import Batch, Params


class Pairs(NamedTuple):
    """The support examples of one task."""

    features: Tensor
    """[N, d]."""
    labels: Tensor
    """Encoded, [N, c]."""
    labelled: Tensor
    """Whether the example has a label, [N]."""

    def mean(self, rows: Tensor) -> Tensor:
        """The mean [m] of the rows [N, m] of labelled examples; 0 without any."""
        return torch.where(self.labelled[:, None], rows, 0.0).sum(0) / self.labelled.sum().clamp(
            min=1
        )

    def standardised(self, rows: Tensor) -> Tensor:
        """The rows [N, m], shifted and scaled to mean 0 and variance 1 in this set."""
        off = rows - self.mean(rows)
        return off / (self.mean(off.square()) + 1e-6).sqrt()


def support_pairs(model: SharingArchitecture, params: Params, support: Batch) -> dict[str, Pairs]:
    """The pairs of each task in the support set."""
    pairs = {}
    for name, features in features_of(model, params, support.inputs).items():
        target = support.targets[name]
        labelled = support.masks.get(name, torch.ones_like(target, dtype=torch.bool))
        encoded = model.encoded[name]
        assert encoded is not None, f"the labels of task '{name}' have no encoding"
        pairs[name] = Pairs(
            features, encoded(torch.where(labelled, target, 0)).to(features), labelled
        )
    return pairs


def random_matrix(generator: torch.Generator, out: int, width: int, like: Tensor) -> Tensor:
    """A random matrix [out, width] that keeps the mean square of its input."""
    matrix: Tensor = torch.randn(out, width, generator=generator).to(like) / width**0.5
    return matrix


def encoder_params(
    widths: Mapping[str, tuple[int, int]],
    dim: int,
    hidden: int,
    generator: torch.Generator,
    like: Tensor,
) -> dict[str, Tensor]:
    """The parameters of `embedding` and `reconstruction_error`.

    `widths` holds the numbers of features and of encoded labels of each task.
    """
    shapes = dict.fromkeys(("pair", "value", "pooled"), (hidden, hidden))
    shapes |= {"embedding": (dim, hidden), "decoder": (hidden, dim)}
    for task, (features, labels) in widths.items():
        shapes[f"pairs.{task}"] = (hidden, features + 2 * labels)
        shapes[f"decode.{task}"] = (features + 2 * labels + features * labels, hidden)
    own = {"seed": torch.randn(hidden, generator=generator).to(like)}
    own["key"] = random_matrix(
        generator, hidden, hidden, like
    )  # a bias would move all scores alike
    for layer, (out, width) in shapes.items():
        own[f"{layer}.weight"] = random_matrix(generator, out, width, like)
        own[f"{layer}.bias"] = like.new_zeros(out)
    own["embedding.weight"] = (
        2 * own["embedding.weight"]
    )  # far enough for tanh to bend: kinds of task lie apart then
    return own


def embedding(own: Params, task: str, pairs: Pairs, heads: int) -> Tensor:
    """The embedding z [dim] of a task, in [-1, 1].

    It does not depend on the order of the examples, nor on examples without a label. It is 0 where
    no example has a label.
    """
    rows = torch.cat([pairs.features, pairs.labels, pairs.standardised(pairs.labels)], -1)
    h = F.relu(_affine(own, "pair", F.relu(_affine(own, f"pairs.{task}", rows))))
    keys, values = (
        x.unflatten(-1, (heads, -1)) for x in (h @ own["key"].T, _affine(own, "value", h))
    )  # [N, heads, m]
    scores = (keys * own["seed"].view(heads, -1)).sum(-1) / keys.shape[-1] ** 0.5
    # The lowest number and not -inf: a support set without any label would give no number at all.
    attention = torch.where(pairs.labelled[:, None], scores, torch.finfo(scores.dtype).min).softmax(
        0
    )
    pooled = (attention[..., None] * values).sum(0).flatten()
    z = _affine(own, "embedding", F.relu(_affine(own, "pooled", pooled))).tanh()
    return torch.where(pairs.labelled.any(), z, 0.0)


def reconstruction_error(own: Params, task: str, pairs: Pairs, z: Tensor) -> Tensor:
    """The mean squared error of D(z) over its coordinates.

    D(z) predicts the means of f, y and y^2 and the correlations of f with y.
    """
    f, y = pairs.standardised(pairs.features), pairs.standardised(pairs.labels)
    products = (f[:, :, None] * y[:, None, :]).flatten(1)
    pooled = pairs.mean(
        torch.cat([pairs.features, pairs.labels, pairs.labels.square(), products], -1)
    )
    decoded = _affine(own, f"decode.{task}", F.relu(_affine(own, "decoder", z)))
    return (decoded - pooled).square().mean()


def _affine(own: Params, layer: str, x: Tensor) -> Tensor:
    return x @ own[f"{layer}.weight"].T + own[f"{layer}.bias"]
