"""Random crops and flips of small pictures, as they are usual for CIFAR."""

import numpy as np

from raymtl.data.draws import Draws

PADDING = 4  # black pixels on each side


def random_crops(pictures: np.ndarray, draws: Draws) -> np.ndarray:
    """The pictures of episodes [E, N, C, H, W], each padded, cropped at random and flipped at even
    odds.
    """
    number = pictures.shape[1]
    moves = draws.integers(2 * PADDING + 1, 2, number)
    is_flipped = draws.coins(number).reshape(-1)
    down, right = moves[:, 0].reshape(-1), moves[:, 1].reshape(-1)
    flat = pictures.reshape(-1, *pictures.shape[2:])
    return augmented(flat, down, right, is_flipped).reshape(pictures.shape)


def augmented(
    pictures: np.ndarray, down: np.ndarray, right: np.ndarray, is_flipped: np.ndarray
) -> np.ndarray:
    """Pictures [N, C, H, W], each moved with black behind it, and flipped or not.

    `down` and `right` [N], from 0 to 8, say where in the padded picture the new one begins.
    """
    number, channels, height, width = pictures.shape
    padded = np.zeros((number, channels, height + 2 * PADDING, width + 2 * PADDING), pictures.dtype)
    padded[..., PADDING:-PADDING, PADDING:-PADDING] = pictures
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))
    cropped = windows[np.arange(number), :, down, right]
    cropped[is_flipped] = cropped[is_flipped, ..., ::-1]
    return cropped
