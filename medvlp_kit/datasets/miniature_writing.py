"""What all miniatures are written with: phantoms as bytes, pictures, tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

SIDE = 96  # pixels


def phantoms(studies: int, seed: int):
    """Phantoms of the size of miniatures."""
    from ..phantoms import Phantoms

    return Phantoms(studies, seed=seed, image_size=SIDE)


def as_bytes(picture) -> np.ndarray:
    """(H, W) uint8 of a (1, H, W) picture in [0, 1]."""
    return (picture[0] * 255).round().byte().numpy()


def save(values: np.ndarray, path: Path, *, mode: str = "L") -> None:
    """Write a picture, folders included."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(path)


def write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    """Write rows as a CSV file with these columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
