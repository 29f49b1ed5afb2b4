"""Miniatures of sets with boxes, masks or classes: coloured discs in the layouts of BCCD, DSB 2018 and LC25000."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .miniature_writing import SIDE, save


def _discs(generator: np.random.Generator, kinds: dict[str, tuple]) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """A picture (SIDE, SIDE, 3) of coloured discs and the mask of each; kinds: name -> (radius, colour, at most)."""
    picture = generator.normal(235, 6, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    found = []
    for name, (radius, colour, most) in kinds.items():
        for _ in range(generator.integers(most + 1)):
            centre_x, centre_y = generator.integers(radius, SIDE - radius, size=2)
            mask = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
            picture[mask] = colour
            found.append((name, mask))
    return picture, found


def bccd(root: Path, studies: int, seed: int) -> None:
    """Blood cells with boxes, counted from 1, some without an area."""
    from .bccd import ANNOTATIONS, LISTS, PICTURES

    generator = np.random.default_rng(seed)
    kinds = {"RBC": (9, (220, 130, 130), 8), "WBC": (15, (120, 80, 170), 2), "Platelets": (4, (150, 90, 180), 3)}
    (root / ANNOTATIONS).mkdir(parents=True, exist_ok=True)
    (root / LISTS).mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for index in range(studies):
        picture, found = _discs(generator, kinds)
        name = f"BloodImage_{index:05d}"
        save(picture, root / PICTURES / f"{name}.jpg", mode="RGB")
        items = []
        for kind, mask in found:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            edges = (columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1)  # from 1, the last one included
            items.append((kind, edges))
        if index % 5 == 0:
            items.append(("RBC", (20, 20, 20, 20)))  # as in the real set: a box without an area
        objects = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            "</bndbox></object>"
            for kind, (x0, y0, x1, y1) in items
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        (root / ANNOTATIONS / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>", encoding="utf-8")
        lists[("train", "train", "val", "test")[index % 4]].append(name)
    for part, names in lists.items():
        (root / LISTS / f"{part}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def nuclei(root: Path, studies: int, seed: int) -> None:
    """Nuclei with one mask file each; pictures have an opaque fourth channel."""
    from PIL import Image

    from .nuclei import FOLDER

    generator = np.random.default_rng(seed)
    for index in range(studies):
        picture, found = _discs(generator, {"nucleus": (8, (90, 60, 140), 5)})
        if not found:
            mask = np.zeros((SIDE, SIDE), bool)
            mask[40:52, 40:52] = True
            picture[mask], found = 60, [("nucleus", mask)]
        folder = root / FOLDER / f"{index:064x}"
        opaque = np.dstack([picture, np.full((SIDE, SIDE), 255, np.uint8)])
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(opaque, "RGBA").save(folder / "images" / f"{folder.name}.png")
        for number, (_, mask) in enumerate(found):
            save((mask * 255).astype(np.uint8), folder / "masks" / f"{number:064x}.png")


def lc25000(root: Path, studies: int, seed: int) -> None:
    """Lung tissue in one folder a class."""
    from .lc25000 import CLASSES, FOLDER

    generator = np.random.default_rng(seed)
    colours = {"lung_aca": (150, 70, 150), "lung_n": (230, 180, 190), "lung_scc": (190, 90, 160)}
    for index in range(studies):
        name = list(CLASSES)[index % len(CLASSES)]
        picture, _ = _discs(generator, {name: (7, colours[name], 20)})
        stem = f"{name.replace('_', '')}{index + 1}"
        save(picture, root / FOLDER / name / f"{stem}.jpeg", mode="RGB")
