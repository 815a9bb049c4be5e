"""Processor time of a picture that builders make: the constants of `benchmarks.building`.

    python -m benchmarks.builders

JPEG pictures of 400 x 400 are decoded to 128 x 128, then cropped, mirrored and coloured.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from raymtl.config import Experiment, parse
from raymtl.data.episodes import build_meta_batch

SIDE, NUM_PICTURES, PICTURES_A_BLOCK = 400, 1024, 16


def write_pictures(root: Path) -> None:
    """Smooth coloured pictures with some noise, and a table of two labels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = ["picture,bright,warm"]
    for number in range(NUM_PICTURES):
        coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE)), np.int16)
        noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        name = f"{number:04d}.jpg"
        Image.fromarray(noisy).save(root / name, quality=90)
        red, _, blue = coarse.reshape(-1, 3).mean(0)
        rows.append(f"{name},{int(coarse.mean() > 127)},{(red - blue) / 40:.3f}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


def experiment(root: Path) -> Experiment:
    """Episodes of 8 pictures, out of blocks that are streamed."""
    data = {
        "name": "files",
        "path": str(root),
        "tasks": {"bright": {"kind": "binary"}, "warm": {}},
        "size": 128,
        "in_memory_mb": 8,
        "held_out_rows": 16,
        "shots": 1,
        "queries": 7,
        "augment": {"crop": 0.5, "flip": True, "colour": 0.3},
    }
    learner = {"name": "maml", "inner_steps": 0}
    tree = {"data": data, "encoder": {"name": "mlp", "hidden": [16]}, "learner": learner}
    return parse(tree).resolve()


def small_blocks() -> None:
    """Blocks of few pictures, so that windows of few megabytes hold several."""
    from raymtl.data.tables import folders

    folders.PICTURES_A_BLOCK = PICTURES_A_BLOCK


def measured() -> dict[str, float]:
    """Seconds of processor time that a picture takes to be decoded, and to be changed."""
    import torch

    from raymtl.data.tables.pictures import decoded

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_pictures(root)
        small_blocks()
        contents = [path.read_bytes() for path in sorted(root.glob("*.jpg"))[:100]]
        decoded(contents[0], (128, 128), 3, "stretch")  # imports what it needs
        began = time.process_time()
        for content in contents:
            decoded(content, (128, 128), 3, "stretch")
        decode_s = (time.process_time() - began) / len(contents)
        chosen = experiment(root)
        plain = chosen.override({"data.augment": None}).resolve()
        arrays = chosen.data.load()
        build_s = [_build_s(each, arrays) for each in (chosen, plain)]
    return {"decode_s": decode_s, "augment_s": build_s[0] - build_s[1]}


def _build_s(chosen: Experiment, arrays: Any) -> float:
    """Seconds of processor time for each picture of episodes whose blocks are read already."""
    times = []
    for _ in range(5):
        began = time.process_time()
        for step in (0, 0, 0, 0):
            build_meta_batch(chosen.data, arrays, seed=0, step=step, indices=range(2), meta_batch=2)
        times.append((time.process_time() - began) / (4 * 2 * 8))
    return min(times)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(json.dumps(measured(), indent=2))


if __name__ == "__main__":
    main()
