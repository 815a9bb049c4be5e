"""Texts made by chance, of words, atoms and codes, some of them empty."""

import numpy as np

WORDS = ("Good", "bad", "BAD", "ugly", "so-so", "c1ccccc1", "C1CCCCC1", "don't", "été", "10")


def sentences(number: int, seed: int = 0, most: int = 6) -> list[str | None]:
    """So many texts of 0 to `most` words, with a None among them."""
    rng = np.random.default_rng(seed)
    texts: list[str | None] = [
        " ".join(rng.choice(WORDS, rng.integers(0, most + 1)).tolist()) for _ in range(number)
    ]
    texts[number // 3] = None
    return texts
