"""Files as users have them, made small: a table of odd columns, and a folder of pictures of every kind."""

import csv
import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raymtl.data.prepared.prepare import prepare
from raymtl.data.prepared.source import Prepared
from raymtl.data.tables import Files


def columns(
    rows: int = 400, tasks: int = 12, missing: float = 0.2, seed: int = 0
) -> dict[str, list[Any]]:
    """Columns of all types, and labels `task N.x`, every third real, yes or no, whole; some missing."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 4))
    cities = np.array(["München", "Köln", "", "São Paulo"])
    found: dict[str, list[Any]] = {
        "age (years)": (40 + 10 * z[:, 0]).tolist(),
        "blood.pressure": (100 + 5 * z[:, 1]).tolist(),
        "smoker": (z[:, 2] > 0).tolist(),
        "visit": [
            datetime.date(2020, 1, 1) + datetime.timedelta(days=int(100 * abs(v))) for v in z[:, 3]
        ],
        "Stadt": cities[rng.integers(0, 4, rows)].tolist(),
        "code": rng.integers(0, 5, rows).tolist(),
        "constant": [1.0] * rows,
        "id": [f"p{i:05d}" for i in range(rows)],
        "number": list(range(rows)),
    }
    for task in range(tasks):
        raw = z @ rng.normal(size=4) + 0.1 * rng.normal(size=rows)
        labels: list[Callable[[float], Any]] = [
            lambda v: float(v),
            lambda v: "yes" if v > 0 else "no",
            lambda v: int(np.digitize(v, [-1, 0, 1])),
        ]
        label = labels[task % 3]
        gone = rng.random(rows) < missing
        found[f"task {task}.x"] = [
            None if hidden else label(v) for v, hidden in zip(raw, gone, strict=True)
        ]
    return found


def write_parquet(path: Path, content: Mapping[str, Any], row_group_size: int = 100) -> Path:
    pq.write_table(
        pa.table({k: pa.array(v) for k, v in content.items()}), path, row_group_size=row_group_size
    )
    return path


def write_csv(path: Path, content: Mapping[str, Any], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(content)
        writer.writerows(
            [["" if v is None else v for v in row] for row in zip(*content.values(), strict=True)]
        )
    return path


def own_table(folder: Path, **values: Any) -> Files:
    """The source of a table with three tasks of all labels."""
    path = write_parquet(folder / "own.parquet", columns(tasks=3, missing=0.0))
    tasks = {name: {"column": f"task {i}.x"} for i, name in enumerate(("level", "answer", "grade"))}
    return Files(path=str(path), tasks=tasks, **values).resolve()


def own_shards(folder: Path, **values: Any) -> Prepared:
    """The same table, prepared into shards."""
    prepare(own_table(folder), str(folder / "shards"), shard_mb=0.01)
    return Prepared(path=str(folder / "shards"), **values).resolve()


def write_pictures(root: Path, number: int = 60) -> Path:
    """Pictures of all kinds in nested folders, and labels.csv beside them: a class, a flag, a number, tags, a count."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(number):
        colour = ("red", "grün", "blau fern")[i % 3]
        folder = root / colour / f"set {i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        width, height = (int(side) for side in rng.integers(20, 60, 2))
        pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
        pixels[..., i % 3] += 120
        picture = Image.fromarray(pixels)
        if i % 6 == 1:
            picture = picture.convert("L")
        elif i % 6 == 2:
            picture = picture.convert("P")
        elif i % 6 == 3:
            picture.putalpha(Image.fromarray(rng.integers(0, 255, (height, width), dtype=np.uint8)))
        elif i % 6 == 5:
            picture = Image.fromarray(rng.integers(0, 65535, (height, width)).astype(np.uint16))
        name = f"img {i:03d}.v1.{('jpg', 'png', 'png', 'png', 'JPG', 'png')[i % 6]}"
        picture.save(folder / name)
        tags = [tag for tag, there in (("wide", width > 40), ("tall", height > 40)) if there] or [
            "small"
        ]
        labels = [colour, width > height, round(width / 10, 2), "|".join(tags), i % 4]
        rows.append(
            [
                f"{colour}/set {i % 2}/{name}",
                *(None if rng.random() < 0.2 else label for label in labels),
            ]
        )
    names = ("Datei name", "colour", "is.wide", "width (cm)", "tags", "count")
    write_csv(root / "labels.csv", dict(zip(names, zip(*rows, strict=True), strict=True)))
    return root


PICTURE_TASKS: Mapping[str, Any] = {
    "colour": {},
    "wide": {"column": "is.wide"},
    "width": {"column": "width (cm)"},
    "tags": {"kind": "multilabel"},
    "count": {},
}


def scene(rng: np.random.Generator, height: int, width: int) -> dict[str, np.ndarray]:
    """A picture of a box and a disc on a floor, and what is known of each pixel: class 0, 1, 2, millimetres, normal."""
    y, x = np.mgrid[:height, :width]
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    box = (y >= top) & (y < top + height // 3) & (x >= left) & (x < left + width // 3)
    middle = (
        rng.integers(height // 3, height - height // 4),
        rng.integers(width // 3, width - width // 4),
    )
    disc = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 < (min(height, width) // 4) ** 2) & ~box
    classes = np.where(box, 1, np.where(disc, 2, 0)).astype(np.uint8)
    depth = (1000 + 3000 * (1 - y / height)).astype(np.uint16)
    depth[box], depth[disc] = 900, 700
    normals = np.zeros((height, width, 3), np.float32)
    normals[..., 1] = 1
    normals[box], normals[disc] = (0, 0, 1), (0.6, 0, 0.8)
    colours = np.array([[90, 90, 90], [200, 60, 40], [40, 90, 200]])[classes] + rng.integers(
        -20, 20, (height, width, 3)
    )
    return {"image": colours.astype(np.uint8), "mask": classes, "depth": depth, "normals": normals}


def write_scenes(root: Path, number: int = 40, sides: tuple[int, int] = (24, 32)) -> Path:
    """Scenes as a user has them: images, masks, depths in millimetres, normals in .npy; labels.csv beside them.

    Its columns are a class, tags and a number, and the names of the masks; every fifth label of each is missing.
    """
    rng = np.random.default_rng(2)
    for folder in ("images", "masks", "depths", "normals"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(number):
        found = scene(rng, *sides)
        Image.fromarray(found["image"]).save(root / "images" / f"{i:03d}.png")
        Image.fromarray(found["mask"]).save(root / "masks" / f"{i:03d}_mask.png")
        Image.fromarray(found["depth"]).save(root / "depths" / f"{i:03d}.png")
        np.save(root / "normals" / f"{i:03d}.npy", found["normals"])
        share = float((found["mask"] == 2).mean())
        tags = (
            "|".join(name for name, there in (("large", share > 0.1), ("odd", i % 2)) if there)
            or "small"
        )
        labels = [
            "box" if (found["mask"] == 1).mean() > share else "disc",
            tags,
            round(share, 3),
            f"masks/{i:03d}_mask.png",
        ]
        rows.append(
            [
                f"images/{i:03d}.png",
                *(None if (i + k) % 5 == 0 else label for k, label in enumerate(labels)),
            ]
        )
    names = ("image", "larger", "tags", "share", "mask")
    write_csv(root / "labels.csv", dict(zip(names, zip(*rows, strict=True), strict=True)))
    return root
