"""COVID-19 image data collection (Cohen et al., 2020, arXiv:2006.11988): chest pictures with case notes.

Layout as in github.com/ieee8023/covid-chestxray-dataset:
    ROOT/metadata.csv, ROOT/images/, and if there, ROOT/annotations/lungVAE-masks/*_mask.png and
    ROOT/annotations/imageannotation_ai_lung_bounding_boxes.json (COCO)
Each picture has its own licence (column `license`). The masks are drawn by a model, not by a person.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from ..errors import KitError, unknown
from ..study import Report
from .files import BoxRecord, FileCollection, ImageFile, MaskRecord, Record, with_splits
from .paths import inside, require_root
from .splits import link, normalise
from .wording import counted, is_damaged, mend_text, tally

TABLE = "metadata.csv"
MASKS = Path("annotations") / "lungVAE-masks"
BOXES = Path("annotations") / "imageannotation_ai_lung_bounding_boxes.json"
COLUMNS = ("patientid", "finding", "view", "modality", "folder", "filename", "clinical_notes")
TEXTS = ("notes", "notes-or-label")
MODALITIES = {"X-ray": "chest radiograph", "CT": "chest CT slice"}
VIEWS = {"PA": "frontal", "AP": "frontal", "L": "lateral", "AXIAL": "axial", "CORONAL": "coronal"}
NO_LABEL = ("", "todo", "unknown")


class CovidChestXray(FileCollection):
    """One study a frontal picture, with the lateral of the same patient, day and note beside it where there is one.

    modality: "X-ray", "CT" or None for both. texts: "notes" keeps only pictures with clinical notes; "notes-or-label"
    writes a sentence from the label table where there is no note. Labels are the diagnoses of the `finding` column: 1
    named, 0 another one is named, NaN where it is empty. Notes tell of the whole case (laboratory, course), much of
    which no picture shows.
    """

    layout = (TABLE, "images")

    def __init__(
        self,
        root: str | Path,
        *,
        modality: str | None = "X-ray",
        texts: str = "notes",
        fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
        channels: int = 1,
    ):
        if texts not in TEXTS:
            raise unknown("texts", texts, TEXTS)
        if modality is not None and modality not in MODALITIES:
            raise unknown("modality", modality, MODALITIES)
        root = require_root(root, "covid-chestxray", *self.layout)
        rows, problems = read_table(root)
        total, dropped, kept = len(rows), Counter(), []
        used: set[Path] = set()
        # Linked before anything is dropped: a picture listed under two patients makes them one.
        patients = link([row["patientid"] for row in rows], [str(row["path"]) for row in rows])
        for row, patient in zip(rows, patients, strict=True):
            reason = _reason_to_drop(row, used, modality=modality, texts=texts)
            if reason:
                dropped[reason] += 1
                continue
            used.add(row["path"])
            kept.append({**row, "patient": f"patient-{patient:04d}"})
        if not kept:
            raise KitError(f"{root / TABLE}: no row is left ({tally(dropped)}); choose another modality or texts")
        boxes = read_boxes(root)
        names = sorted({name for row in kept for name in row["labels"]})
        records = [
            _record(root, exam, number, names=names, boxes=boxes) for number, exam in enumerate(_exams(kept))
        ]
        notice = f"{counted(len(records), 'study')} from {counted(len(kept), 'picture')} of {counted(total, 'row')}."
        if dropped:
            notice += f" Rows left out: {tally(dropped)}."
        merged = len({row["patientid"] for row in rows}) - len(set(patients))
        if merged > 0:
            notice += f" Patients that share a picture with another, counted as one with it: {merged}."
        notice += " Notes describe the case, not only the picture; masks are drawn by a model."
        super().__init__(
            with_splits(records, fractions=fractions, seed=seed),
            name="covid-chestxray",
            root=root,
            label_names=names,
            channels=channels,
            notice=notice,
            problems=problems,
        )


def read_table(root: Path) -> tuple[list[dict], list[str]]:
    """Rows of metadata.csv with path, mended note, labels, kind of view; and the problems met."""
    import pandas

    try:
        table = pandas.read_csv(
            root / TABLE, dtype=str, keep_default_na=False, encoding="utf-8-sig", encoding_errors="replace"
        )
    except (OSError, ValueError) as error:
        raise KitError(f"{root / TABLE} is not a readable CSV ({error}); download it again") from None
    for column in COLUMNS:
        if column not in table.columns:
            raise KitError(f"{root / TABLE} has no column {column!r}; download it again")
    rows, problems = [], []
    for number, row in enumerate(table.to_dict("records"), start=2):  # row 1 is the header, as in a spreadsheet
        path = inside(root, f"{row['folder'] or 'images'}/{row['filename']}", where=f"{TABLE}, row {number}")
        if not path.is_file():
            problems.append(f"{TABLE}, row {number}: {path} is missing")
        rows.append(
            {
                "patientid": row["patientid"].strip(),
                "offset": row.get("offset", "").strip(),
                "modality": row["modality"].strip(),
                "projection": row["view"].strip(),
                "view": VIEWS.get(row["view"].strip().split(" ")[0].upper(), "other"),
                "note": mend_text(row["clinical_notes"]),
                "damaged": is_damaged(row["clinical_notes"]),
                "labels": diagnoses(row["finding"]),
                "path": path,
                "there": path.is_file(),
            }
        )
    return rows, problems


def diagnoses(finding: str) -> list[str]:
    """The names in a `finding` cell: "COVID-19, ARDS" in early releases, "Pneumonia/Viral/COVID-19" in later ones."""
    names = [name.strip() for name in re.split("[,/]", finding)]
    return [name for name in names if name.lower() not in NO_LABEL]


def _reason_to_drop(row: dict, used: set[Path], *, modality: str | None, texts: str) -> str:
    """Why a row is left out, to be read after a number; "" if it stays."""
    if modality is not None and row["modality"] != modality:
        return f"of modality {row['modality'] or 'not stated'}"
    if not row["there"]:
        return "whose picture is missing"
    if row["path"] in used:
        return "of a picture named before"
    if not row["note"] and texts == "notes":
        return "without clinical notes"
    if not row["note"] and not row["labels"]:
        return "with neither notes nor label"
    return ""


def _exams(rows: list[dict]) -> list[list[dict]]:
    """Pictures of one exam: the k-th of each view among the pictures of a patient, day, note and modality."""
    exams: dict[tuple, list[dict]] = defaultdict(list)
    counts: Counter[tuple] = Counter()
    for row in rows:
        key = (row["patient"], row["patientid"], row["offset"], row["modality"], normalise(row["note"]))
        exams[(*key, counts[(*key, row["view"])])].append(row)
        counts[(*key, row["view"])] += 1
    order = list(VIEWS.values())
    return [sorted(exam, key=lambda row: (*order, "other").index(row["view"])) for exam in exams.values()]


def _record(
    root: Path, exam: list[dict], number: int, *, names: list[str], boxes: dict[str, list[BoxRecord]]
) -> Record:
    first = exam[0]
    named = {name for row in exam for name in row["labels"]}
    kind = MODALITIES.get(first["modality"], "image")
    text = first["note"] or label_sentence(kind, first["projection"], first["labels"])
    masks = []
    for row in exam:
        mask = root / MASKS / f"{row['path'].stem}_mask.png"
        if mask.is_file():
            masks.append(MaskRecord("Lungs", mask, row["view"]))
    return Record(
        identifier=f"exam-{number:04d}",
        patient=first["patient"],
        images=tuple(ImageFile(row["view"], row["path"]) for row in exam),
        report=Report(text),
        labels={name: float(name in named) for name in names} if named else {},
        boxes=tuple(
            BoxRecord(box.label, box.box, row["view"], box.shape, box.side)
            for row in exam
            for box in boxes.get(row["path"].name, ())
        ),
        masks=tuple(masks),
        modality=kind,
        damaged=first["damaged"],
    )


def label_sentence(kind: str, projection: str, labels: list[str]) -> str:
    """A plain sentence for a picture that has a diagnosis but no note."""
    view = f", {projection} view" if projection else ""
    return f"{kind[0].upper()}{kind[1:]}{view}. Diagnosis: {', '.join(labels)}."


def read_boxes(root: Path) -> dict[str, list[BoxRecord]]:
    """File name -> lung boxes, from the COCO file (x, y, width, height) to (x0, y0, x1, y1)."""
    if not (root / BOXES).is_file():
        return {}
    try:
        coco = json.loads((root / BOXES).read_text(encoding="utf-8"))
        categories = {category["id"]: category["name"] for category in coco["categories"]}
        images = {image["id"]: image for image in coco["images"]}
        boxes = defaultdict(list)
        for annotation in coco["annotations"]:
            image, label = images[annotation["image_id"]], categories[annotation["category_id"]]
            x, y, width, height = annotation["bbox"]
            side = next((side for side in ("left", "right") if side in label.lower()), None)
            boxes[image["file_name"]].append(
                BoxRecord(label, (x, y, x + width, y + height), shape=(image["height"], image["width"]), side=side)
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KitError(f"{root / BOXES} is not a readable COCO file ({error!r}); download it again") from None
    return boxes
