"""What scores that are no means are made of: counts that add up, and how they are read.

Everything per example runs under vmap; `value` functions take sums [..., size], whatever stands before.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from raymtl.types import Metric

NUM_BINS = 200
"""Of a logit, in equal parts of x / (1 + |x|): 0.02 wide at 0, 0.2 at 3, 1.2 at 10."""


def counted(index: Tensor, weights: Tensor, number: int) -> Tensor:
    """How much falls on each of `number` places: index [N, ...] and weights [N, ...] -> [N, number]."""
    flat = weights.flatten(1)
    return flat.new_zeros(len(flat), number).scatter_add(1, index.flatten(1), flat)


def share(of: Tensor, among: Tensor) -> Tensor:
    """Sums of `of` where `among` holds, and how often it does: values and a mask [N, ...] -> [N, 2]."""
    return torch.stack([torch.where(among, of, 0.0).flatten(1).sum(1), among.flatten(1).sum(1).to(of)], 1)


def mean_where(of: Tensor, there: Tensor) -> Tensor:
    """The mean of each example's values where they are there, 0 where none is: values and a mask [N, ...] -> [N]."""
    return torch.where(there, of, 0.0).flatten(1).sum(1) / there.flatten(1).sum(1).clamp(min=1)


def ratio(sums: Tensor, _: Tensor) -> Tensor:
    """Of the first number and the second: what `share` gives."""
    return sums[..., 0] / sums[..., 1]


def mean_ratio(sums: Tensor, _: Tensor) -> Tensor:
    """The mean of D ratios, of D numbers and as many below them; those of 0 / 0 are left out."""
    above, below = sums.chunk(2, -1)
    return (above / below).nanmean(-1)


def pixel_mean(per_pixel: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], higher_is_better: bool) -> Metric:
    """The mean over all valid pixels of all pictures; `per_pixel` gives values and which are valid, [N, ...] each."""
    return Metric(lambda p, t: share(*per_pixel(p, t)), higher_is_better, size=2, value=ratio)


def true_and_false(predicted: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """For `f1`, from decisions [N, L], labels [N, L] and which of these are known: [N, 2 L].

    2 TP of each of L labels, then 2 TP + FP + FN.
    """
    both = (predicted & truth & known).float()
    either = (predicted & known).float() + (truth & known).float()
    return torch.cat([2 * both, either], 1)


def f1(num_labels: int, decided: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Metric:
    """The mean over labels of 2 TP / (2 TP + FP + FN); labels that are neither there nor predicted are left out."""
    return Metric(lambda p, t: true_and_false(*decided(p, t)), True, size=2 * num_labels, value=mean_ratio)


def logit_bin(logits: Tensor) -> Tensor:
    """Which of `NUM_BINS` bins a logit falls into."""
    return ((logits / (1 + logits.abs()) + 1) / 2 * NUM_BINS).long().clamp(0, NUM_BINS - 1)


def auroc(num_labels: int, scored: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Metric:
    """The mean over labels of the area under the ROC curve, the odds that a positive example is ranked higher.

    `scored` gives logits [N, L], labels [N, L] and which of these are known. Two examples in one of the `NUM_BINS` bins
    of the logit count as ranked alike, so that the area is off by at most half the share of such pairs among all pairs
    of a positive and a negative one. Labels without both are left out.
    """

    def per_example(prediction: Tensor, target: Tensor) -> Tensor:
        logits, truth, known = scored(prediction, target)
        # Label, then negative or positive, then bin.
        place = torch.arange(num_labels, device=logits.device) * 2 + truth.long()
        return counted(place * NUM_BINS + logit_bin(logits), known.to(logits), num_labels * 2 * NUM_BINS)

    def value(sums: Tensor, _: Tensor) -> Tensor:
        negatives, positives = sums.unflatten(-1, (num_labels, 2, NUM_BINS)).unbind(-2)
        below = negatives.cumsum(-1) - negatives / 2
        pairs = positives.sum(-1) * negatives.sum(-1)
        return ((positives * below).sum(-1) / pairs).nanmean(-1)

    return Metric(per_example, True, size=num_labels * 2 * NUM_BINS, value=value)


def median(of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], most: float, num_bins: int) -> Metric:
    """The median of all valid values between 0 and `most`, lower is better, from a histogram.

    `of` gives values and which are valid. It is off by less than a bin, `most / num_bins`.
    """

    def per_example(prediction: Tensor, target: Tensor) -> Tensor:
        values, valid = of(prediction, target)
        index = (values / most * num_bins).long().clamp(0, num_bins - 1)
        return counted(torch.where(valid, index, 0), valid.to(values), num_bins)

    def value(sums: Tensor, _: Tensor) -> Tensor:
        below = sums.cumsum(-1)
        half = below[..., -1:] / 2
        place = (below < half).sum(-1, keepdim=True).clamp(max=num_bins - 1)
        inside = sums.gather(-1, place)
        # A straight line through the bin that holds the half; 0 / 0 where there is no value.
        start = below.gather(-1, place) - inside
        return ((place + (half - start) / inside) * most / num_bins)[..., 0]

    return Metric(per_example, False, size=num_bins, value=value)
