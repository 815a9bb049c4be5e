"""What scores that are no means are made of: counts that add up, and how they are read.

Everything per example runs under vmap; `value` functions take sums [..., size], whatever stands
before.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from raymtl.types import Counts, Metric

NUM_BINS = 8192
"""Of a logit x, in equal steps of asinh(64 x): 0.00005 wide at 0, then 0.3 % of the logit."""
FEWEST_BINS = 512
"""Of each label where there are many: they share `NUM_BINS`."""
LARGEST_LOGIT = 1000.0
"""What lies beyond falls into the outermost bins."""

Decisions = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Prediction and target -> decisions or logits [N, L], labels [N, L], and which of these are known
[N, L].
"""


def counted(index: Tensor, weights: Tensor, number: int) -> Tensor:
    """How much falls on each of `number` places: index [N, ...] and weights [N, ...] -> [N,
    number].
    """
    flat = weights.flatten(1)
    return flat.new_zeros(len(flat), number).scatter_add(1, index.flatten(1), flat)


def share(of: Tensor, among: Tensor) -> Tensor:
    """Sums of `of` where `among` holds, and how often it does: values and a mask [N, ...] -> [N,
    2].
    """
    return torch.stack(
        [torch.where(among, of, 0.0).flatten(1).sum(1), among.flatten(1).sum(1).to(of)], 1
    )


def mean_where(of: Tensor, there: Tensor) -> Tensor:
    """The mean of each example's values where they are there, 0 where none is: values and a mask
    [N, ...] -> [N].
    """
    return torch.where(there, of, 0.0).flatten(1).sum(1) / there.flatten(1).sum(1).clamp(min=1)


def ratio(sums: Tensor, _: Tensor) -> Tensor:
    """Of the first number and the second: what `share` gives."""
    return sums[..., 0] / sums[..., 1]


def mean_ratio(sums: Tensor, _: Tensor) -> Tensor:
    """The mean of D ratios, of D numbers and as many below them; those of 0 / 0 are left out."""
    above, below = sums.chunk(2, -1)
    return (above / below).nanmean(-1)


def pixel_mean(
    per_pixel: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], higher_is_better: bool
) -> Metric:
    """The mean over all valid pixels of all pictures; `per_pixel` gives values and which are valid,
    [N, ...] each.
    """
    return Metric(
        lambda p, t: share(*per_pixel(p, t)), higher_is_better, state_size=2, compute=ratio
    )


def true_and_false(predicted: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """For `f1`, from decisions [N, L], labels [N, L] and which of these are known: [N, 2 L].

    2 TP of each of L labels, then 2 TP + FP + FN.
    """
    both = (predicted & truth & known).float()
    either = (predicted & known).float() + (truth & known).float()
    return torch.cat([2 * both, either], 1)


def f1(num_labels: int, decided: Decisions, *, shown: bool = True) -> Metric:
    """The mean over labels of 2 TP / (2 TP + FP + FN); labels that are neither there nor predicted
    are left out.
    """
    size = 2 * num_labels
    return Metric(
        lambda p, t: true_and_false(*decided(p, t)),
        True,
        state_size=size,
        compute=mean_ratio,
        shown=shown,
    )


def balanced_accuracy(num_labels: int, decided: Decisions, *, shown: bool = False) -> Metric:
    """The mean over labels of (TP / (TP + FN) + TN / (TN + FP)) / 2; labels without both are left
    out.
    """

    def update(prediction: Tensor, target: Tensor) -> Tensor:
        predicted, truth, known = decided(prediction, target)
        right = (predicted == truth) & known
        columns = [right & truth, right & ~truth, truth & known, ~truth & known]
        return torch.cat([column.float() for column in columns], 1)

    def compute(sums: Tensor, _: Tensor) -> Tensor:
        found_yes, found_no, yes, no = sums.chunk(4, -1)
        return ((found_yes / yes + found_no / no) / 2).nanmean(-1)

    return Metric(update, True, state_size=4 * num_labels, compute=compute, shown=shown)


def log_loss(num_labels: int, scored: Decisions) -> Metric:
    """The mean over labels of the mean binary cross-entropy, in nats."""

    def update(prediction: Tensor, target: Tensor) -> Tensor:
        logits, truth, known = scored(prediction, target)
        entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits), reduction="none")
        return torch.cat([torch.where(known, entropy, 0.0), known.to(entropy)], 1)

    return Metric(update, False, state_size=2 * num_labels, compute=mean_ratio, shown=False)


def logit_bin(logits: Tensor, num_bins: int = NUM_BINS) -> Tensor:
    """Which of the bins a logit falls into."""
    place = (torch.asinh(64 * logits.double()) / math.asinh(64 * LARGEST_LOGIT) + 1) / 2 * num_bins
    return place.nan_to_num(0.0).clamp(0, num_bins - 1).long()


def bins_of(num_labels: int) -> int:
    """How many bins each of so many labels has."""
    return max(FEWEST_BINS, NUM_BINS // num_labels)


def _histogram(num_labels: int, scored: Decisions) -> Callable[[Tensor, Tensor], Counts]:
    """Counts by label, then negative or positive, then bin of the logit."""

    def update(prediction: Tensor, target: Tensor) -> Counts:
        logits, truth, known = scored(prediction, target)
        place = torch.arange(num_labels, device=logits.device) * 2 + truth.long()
        bins = bins_of(num_labels)
        return Counts(place * bins + logit_bin(logits, bins), known.to(logits))

    return update


def _negatives_and_positives(sums: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """[..., num_labels, bins] each."""
    negatives, positives = sums.unflatten(-1, (num_labels, 2, bins_of(num_labels))).unbind(-2)
    return negatives, positives


def auroc(num_labels: int, scored: Decisions) -> Metric:
    """The mean over labels of the area under the ROC curve, the odds that a positive example is
    ranked higher.

    `scored` gives logits [N, L], labels [N, L] and which of these are known. Two examples whose
    logits are in one bin (`logit_bin`) count as ranked alike, so that the area is off by at most
    half the share of such pairs among all pairs of a positive and a negative one. Labels without
    both are left out.
    """

    def compute(sums: Tensor, _: Tensor) -> Tensor:
        negatives, positives = _negatives_and_positives(sums, num_labels)
        below = negatives.cumsum(-1) - negatives / 2
        pairs = positives.sum(-1) * negatives.sum(-1)
        return ((positives * below).sum(-1) / pairs).nanmean(-1)

    size = num_labels * 2 * bins_of(num_labels)
    return Metric(_histogram(num_labels, scored), True, state_size=size, compute=compute)


def average_precision(num_labels: int, scored: Decisions) -> Metric:
    """The mean over labels of sum (R_n - R_(n-1)) P_n over thresholds of the logit, as scikit-learn
    defines it.

    The examples in one of the bins of the logit share a threshold. Labels without a positive are
    left out.
    """

    def compute(sums: Tensor, _: Tensor) -> Tensor:
        negatives, positives = _negatives_and_positives(sums, num_labels)
        above = positives.flip(-1).cumsum(-1)
        precision = above / (above + negatives.flip(-1).cumsum(-1)).clamp(min=1)
        gained = positives.flip(-1) / positives.sum(-1, keepdim=True)
        return (gained * precision).sum(-1).nanmean(-1)

    size = num_labels * 2 * bins_of(num_labels)
    return Metric(
        _histogram(num_labels, scored), True, state_size=size, compute=compute, shown=False
    )


def median(
    of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], most: float, num_bins: int
) -> Metric:
    """The median of all valid values between 0 and `most`, lower is better, from a histogram.

    `of` gives values and which are valid. It is off by less than a bin, `most / num_bins`.
    """

    def update(prediction: Tensor, target: Tensor) -> Tensor:
        values, valid = of(prediction, target)
        index = (values / most * num_bins).long().clamp(0, num_bins - 1)
        return counted(torch.where(valid, index, 0), valid.to(values), num_bins)

    def compute(sums: Tensor, _: Tensor) -> Tensor:
        below = sums.cumsum(-1)
        half = below[..., -1:] / 2
        place = (below < half).sum(-1, keepdim=True).clamp(max=num_bins - 1)
        inside = sums.gather(-1, place)
        # A straight line through the bin that holds the half; 0 / 0 where there is no value.
        start = below.gather(-1, place) - inside
        return ((place + (half - start) / inside) * most / num_bins)[..., 0]

    return Metric(update, False, state_size=num_bins, compute=compute)
