"""The files of NYUv2 in the preparation of MTAN (arXiv:1803.10704): one array a frame and map."""

import os
from pathlib import Path

import numpy as np

from raymtl.types import UserError

HEIGHT, WIDTH = 288, 384
NUM_CLASSES = 13
FRAMES = {"train": 795, "val": 654}  # folders -> frames
PARTS = {
    "image": (HEIGHT, WIDTH, 3),
    "label": (HEIGHT, WIDTH),
    "depth": (HEIGHT, WIDTH, 1),
    "normal": (HEIGHT, WIDTH, 3),
}


def read_frame(folder: Path, number: int, rows: slice, columns: slice) -> dict[str, np.ndarray]:
    """A part of a frame by the names of PARTS, mapped into memory. Raises UserError for what is not
    of their shapes.
    """
    found = {}
    for part, shape in PARTS.items():
        file = folder / part / f"{number}.npy"
        try:
            values = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{file}: expected an array of shape {shape}, got none ({error}). Fetch it again."
            ) from None
        if values.shape != shape and (*values.shape, 1) != shape:
            raise UserError(
                f"{file}: expected an array of shape {shape}, got {values.shape}. Fetch it again."
            )
        found[part] = values[rows, columns]
    if found["image"].max() > 1 + 1e-3 or found["label"].max() >= NUM_CLASSES:
        raise UserError(
            f"{folder}: frame {number}: expected a picture of numbers from 0 to 1 and classes from "
            f"-1 to {NUM_CLASSES - 1}, got up to {float(found['image'].max()):g} and "
            f"{float(found['label'].max()):g}. Fetch the preparation of 13 classes again."
        )
    return found


def root_of(folder: str | None) -> Path:
    """The folder with `train` and `val`. Raises UserError where none is named."""
    base = os.environ.get("RAYMTL_DATA")
    if not folder and not base:
        raise UserError(
            "data.folder: expected the folder of the 288 x 384 preparation of NYUv2, with train "
            "and val, got none. Give it, or set the environment variable RAYMTL_DATA to the folder "
            "that holds nyuv2. https://github.com/lorenmt/mtan names the place to fetch it from."
        )
    if folder:
        return Path(folder).expanduser()
    return Path(str(base)).expanduser() / "nyuv2"


def check_folder(root: Path) -> None:
    """Raises UserError where frames are missing."""
    for split, expected in FRAMES.items():
        for part in PARTS:
            folder = root / split / part
            got = {file.name for file in folder.glob("*.npy")}
            missing = next(
                (number for number in range(expected) if f"{number}.npy" not in got), None
            )
            if missing is not None:
                raise UserError(
                    f"data.folder: expected {expected} files 0.npy to {expected - 1}.npy in "
                    f"{folder}, got {len(got)} without {missing}.npy. "
                    "https://github.com/lorenmt/mtan names the place to fetch them from."
                )
