"""A folder of the layout of NYUv2's preparation, made in a moment: a few frames, and links to them."""

from pathlib import Path

import numpy as np

from raymtl.data import NYUv2
from raymtl.data.formats.nyuv2 import FRAMES, HEIGHT, WIDTH


def frame(number: int) -> dict[str, np.ndarray]:
    """Every pixel knows its row, its column and its frame; a tenth of the labels of each kind are missing."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    image = np.stack([rows / HEIGHT, columns / WIDTH, np.full_like(rows, number / 100)], -1)
    label = ((rows // 24 + columns // 32) % 13).astype(np.float32)
    depth = (1 + columns / WIDTH)[..., None]
    angle = columns / WIDTH - 0.3
    normal = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)], -1)
    gone = rng.random((3, HEIGHT, WIDTH)) < 0.1
    label[gone[0]], depth[gone[1]], normal[gone[2]] = -1, 0, 0
    return {"image": image, "label": label, "depth": depth, "normal": normal}


def write_rooms(root: Path, different: int = 2) -> Path:
    """All 795 and 654 frames; frame N of `train` is that of N % different, of `val` that of 50 + N % different."""
    for split, expected in FRAMES.items():
        for number in range(different):
            for part, values in frame(number + 50 * (split == "val")).items():
                folder = root / split / part
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{number}.npy", values)
        for part in ("image", "label", "depth", "normal"):
            for number in range(different, expected):
                (root / split / part / f"{number}.npy").symlink_to(f"{number % different}.npy")
    return root


def small_rooms(folder: Path) -> NYUv2:
    """The source of such a folder, of small pictures."""
    return NYUv2(folder=str(write_rooms(folder, 1)), size=(16, 16))


def numbered_frame(folder: Path, number: int, rows: slice, columns: slice) -> dict[str, np.ndarray]:
    """In place of `read_frame`: a picture of 8 x 8 large pixels at random, so that every frame is one of a kind."""
    pixels = np.random.default_rng([number, folder.name == "val"]).random((8, 8, 3), np.float32)
    image = pixels.repeat(HEIGHT // 8, 0).repeat(WIDTH // 8, 1)
    maps: dict[str, np.ndarray] = {
        "image": image,
        "label": np.zeros((HEIGHT, WIDTH)),
        "depth": np.ones((HEIGHT, WIDTH, 1)),
        "normal": np.ones_like(image),
    }
    return {part: values[rows, columns] for part, values in maps.items()}
