"""One vector of the vectors of a text's tokens (as in Reimers and Gurevych, Sentence-BERT, 2019,
arXiv:1908.10084): h [N, L, D] and the mask m [N, L], 1 where there is a token, become [N, D].

    mean: sum_l m_l h_l / sum_l m_l      cls: h_1      max: max over l with m_l = 1 of h_l
    lasttoken: h_l of the last token
    mean_sqrt_len_tokens: sum_l m_l h_l / sqrt(sum_l m_l)
    weightedmean: sum_l l m_l h_l / sum_l l m_l
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Pool = Callable[[Tensor, Tensor], Tensor]


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    return _sum(tokens, mask) / mask.sum(1, keepdim=True)


def _first(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens[:, 0]


def _max(tokens: Tensor, mask: Tensor) -> Tensor:
    return tokens.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


def _mean_by_root(tokens: Tensor, mask: Tensor) -> Tensor:
    return _sum(tokens, mask) / mask.sum(1, keepdim=True).sqrt()


def _weighted_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return _mean(tokens, mask * places)


def _last(tokens: Tensor, mask: Tensor) -> Tensor:
    last = mask.sum(1).long() - 1
    return tokens[torch.arange(len(tokens), device=tokens.device), last]


def _sum(tokens: Tensor, mask: Tensor) -> Tensor:
    return (tokens * mask[..., None]).sum(1)


POOLINGS: Mapping[str, Pool] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}
"""In the words of sentence-transformers, and in the order in which it joins several of them."""


def pooled(tokens: Tensor, mask: Tensor, names: Sequence[str]) -> Tensor:
    """The vectors of the texts by all of these poolings, joined."""
    return torch.cat([POOLINGS[name](tokens, mask) for name in names], -1)
