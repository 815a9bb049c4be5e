"""Adam (Kingma & Ba, 2015, arXiv:1412.6980) as a function, for weights with a separate optimiser.

m <- b1 m + (1 - b1) g
v <- b2 v + (1 - b2) g^2
direction = (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)
"""

import math

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def adam(gradient: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The direction [K] to subtract, for a learning rate of 1, and the next state [K, 3].

    The state of each number is m, v and its count of steps n; all start at 0. Each number has its
    own count, so that the numbers of tasks without labels stand still.
    """
    mean, square, number = state.unbind(1)
    mean = BETA1 * mean + (1 - BETA1) * gradient
    square = BETA2 * square + (1 - BETA2) * gradient.square()
    number = number + 1
    # 1 - b^n by expm1, which keeps its digits in float32.
    direction = mean / -torch.expm1(number * math.log(BETA1))
    scale = (square / -torch.expm1(number * math.log(BETA2))).sqrt() + EPS
    return direction / scale, torch.stack([mean, square, number], 1)
