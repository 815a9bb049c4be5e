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
    """The support examples of one task: features [N, d], encoded labels [N, c], and whether there
    is a label [N].
    """

    features: Tensor
    labels: Tensor
    labelled: Tensor

    def mean(self, rows: Tensor) -> Tensor:
        """[N, m] -> its mean over the labelled examples, [m]; 0 where there is none."""
        return torch.where(self.labelled[:, None], rows, 0.0).sum(0) / self.labelled.sum().clamp(
            min=1
        )

    def standardised(self, rows: Tensor) -> Tensor:
        """[N, m] of mean 0 and, unless they are all equal, variance 1 in this set: what shape they
        have at any size.
        """
        off = rows - self.mean(rows)
        return off / (self.mean(off.square()) + 1e-6).sqrt()


def support_pairs(model: SharingArchitecture, params: Params, support: Batch) -> dict[str, Pairs]:
    """Those of each task that the support set has."""
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
    """[out, width], such that it keeps the mean square of what it is applied to."""
    matrix: Tensor = torch.randn(out, width, generator=generator).to(like) / width**0.5
    return matrix


def encoder_params(
    widths: Mapping[str, tuple[int, int]],
    dim: int,
    hidden: int,
    generator: torch.Generator,
    like: Tensor,
) -> dict[str, Tensor]:
    """Parameters of `embedding` and `reconstruction_error`; `widths` are those of each task's
    features and labels.
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
    """z [dim] in [-1, 1], which no order of the examples moves and no example without a label; 0
    where none has one.
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
    """Mean square over the coordinates of D(z) less the means of f, y and y^2 and the correlations
    of f with y.
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
