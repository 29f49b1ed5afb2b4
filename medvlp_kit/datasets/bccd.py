"""BCCD (github.com/Shenggan/BCCD_Dataset; MIT): blood smears with boxes around their cells.

Layout as published (Pascal VOC):  ROOT/BCCD/JPEGImages/*.jpg, ROOT/BCCD/Annotations/*.xml, ROOT/BCCD/ImageSets/Main/
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from ..errors import KitError, unknown
from ..study import Report
from .captions import count_caption
from .files import BoxRecord, FileCollection, ImageFile, Record, with_splits
from .paths import inside, require_root
from .wording import counted, tally

PICTURES, ANNOTATIONS, LISTS = "BCCD/JPEGImages", "BCCD/Annotations", "BCCD/ImageSets/Main"
CELLS = {"RBC": "Red blood cell", "WBC": "White blood cell", "Platelets": "Platelet"}
OFFICIAL = {"train": "train", "val": "validation", "test": "test"}
SPLITTINGS = ("ours", "official")
EDGES = ("xmin", "ymin", "xmax", "ymax")


class Bccd(FileCollection):
    """One study a smear; its text is a caption of the counted cells, its regions are their boxes.

    splitting: "ours" deals the pictures by a hash; "official" follows ImageSets/Main. Patients are not known, so
    pictures of one person may lie in several splits either way; `notice` says so.
    """

    layout = (PICTURES, ANNOTATIONS)

    def __init__(
        self,
        root: str | Path,
        *,
        splitting: str = "ours",
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        channels: int = 3,
    ):
        if splitting not in SPLITTINGS:
            raise unknown("splitting", splitting, SPLITTINGS)
        root = require_root(root, "bccd", *self.layout, *([LISTS] if splitting == "official" else []))
        dropped: Counter[str] = Counter()
        records, problems = [], []
        for path in sorted((root / ANNOTATIONS).glob("*.xml")):
            picture = inside(root / PICTURES, f"{path.stem}.jpg", where=path.name)
            if not picture.is_file():
                dropped["annotation whose picture is missing"] += 1
                problems.append(f"{path.name}: {picture} is missing")
                continue
            boxes, faults = read_boxes(path)
            dropped["box without an area"] += len(faults)
            problems += faults
            records.append(_record(picture, boxes))
        if not records:
            raise KitError(f"{root / ANNOTATIONS} names no picture of {PICTURES}; unpack the data set there")
        if splitting == "ours":
            records = with_splits(records, fractions=fractions, seed=seed, by_report=False)
        else:
            records = _official(records, root / LISTS, dropped)
        notice = f"{counted(len(records), 'smear')}. Patients are not known, so splits may share them; texts are "
        notice += "captions made from the counts."
        if +dropped:
            notice += f" Left out: {tally(dropped)}."
        super().__init__(
            records, name="bccd", root=root, label_names=tuple(CELLS.values()), channels=channels, notice=notice,
            problems=problems,
        )  # fmt: skip


def read_boxes(path: Path) -> tuple[list[BoxRecord], list[str]]:
    """Boxes of one annotation file, and one line for each that encloses nothing.

    VOC counts pixels from 1 and includes the last; the kit counts from 0 and does not. Boxes are cut at the edges.
    """
    try:
        tree = ElementTree.parse(path).getroot()
        width, height = (int(tree.findtext(f"size/{name}", "")) for name in ("width", "height"))
        found = [
            (item.findtext("name", "").strip(), *(float(item.findtext(f"bndbox/{edge}", "")) for edge in EDGES))
            for item in tree.iter("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise KitError(f"{path} is not a readable annotation ({error}); download it again") from None
    boxes, faults = [], []
    for name, x0, y0, x1, y1 in found:
        if name not in CELLS:
            raise KitError(f"{path}: unknown cell {name!r}; this adaptor knows {', '.join(CELLS)}")
        box = (max(0.0, x0 - 1), max(0.0, y0 - 1), min(float(width), x1), min(float(height), y1))
        if x1 <= x0 or y1 <= y0 or box[0] >= box[2] or box[1] >= box[3]:
            faults.append(f"{path.name}: {name} at ({x0:g}, {y0:g}, {x1:g}, {y1:g}) encloses nothing")
            continue
        boxes.append(BoxRecord(CELLS[name], box, shape=(height, width)))
    return boxes, faults


def _record(picture: Path, boxes: list[BoxRecord]) -> Record:
    counts = Counter(box.label for box in boxes)
    every = {label.lower(): counts[label] for label in CELLS.values()}
    return Record(
        identifier=picture.stem,
        patient=picture.stem,
        images=(ImageFile("frontal", picture),),
        report=Report(count_caption(every, picture="blood smear", key=picture.stem)),
        labels={label: float(counts[label] > 0) for label in CELLS.values()},
        boxes=tuple(boxes),
        modality="blood smear",
    )


def _official(records: list[Record], lists: Path, dropped: Counter) -> list[Record]:
    """The records that the lists name, with their split."""
    splits: dict[str, str] = {}
    for stem, split in OFFICIAL.items():
        path = lists / f"{stem}.txt"
        for name in path.read_text(encoding="utf-8").split() if path.is_file() else ():
            if splits.setdefault(name, split) != split:
                raise KitError(f"{path}: {name} is also listed for {splits[name]}; mend the lists or use splitting='ours'")
    dropped["smear that no list names"] += sum(record.identifier not in splits for record in records)
    kept = [replace(r, split=splits[r.identifier]) for r in records if r.identifier in splits]
    if not kept:
        raise KitError(f"{lists} names none of the pictures: use splitting='ours'")
    return kept
