"""Tiny copies of every layout, made from phantoms: for tests, and for a reader who has no data at hand.

Each copy has the oddities of the real thing (mixed picture modes, answers that are numbers, rows without notes, files
without a preamble), because reading those is what there is to learn. Pictures and texts are phantoms; none is clinical.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import KitError, unknown
from . import miniature_files, miniature_labelled
from .miniature_writing import SIDE, as_bytes, phantoms, save, write_json, write_table

MOJIBAKE = "Patientâ€™s arms are raised."  # "Patient's", its UTF-8 bytes read as Windows-1252
LOST = "The patient\ufffds prior exam is not available."


def build(name: str, folder: str | Path, *, studies: int = 24, seed: int = 0) -> Path:
    """Write the miniature `name` into folder/name and return that path. The same arguments give the same files.

    names: bccd, covid-chestxray, dsb2018-nuclei, lc25000, vqa-rad, manifest,
    faulty (a manifest with every fault `check` knows), dicom, nifti, slides.
    """
    if name not in BUILDERS:
        raise unknown("miniature", name, BUILDERS)
    if studies < 12:
        raise KitError(f"studies={studies}: a miniature needs at least 12, so that every split has some")
    root = Path(folder).expanduser() / name
    root.mkdir(parents=True, exist_ok=True)
    BUILDERS[name](root, studies, seed)
    return root


def _covid(root: Path, studies: int, seed: int) -> None:
    from .covid_chestxray import BOXES, COLUMNS, MASKS, TABLE

    collection = phantoms(studies, seed)
    frontal = collection.images(range(studies), size=SIDE)
    lateral = collection.images(range(studies), size=SIDE, view="lateral")
    rows, images, annotations = [], [], []
    for index in range(studies):
        study = collection.study(index)
        # Every fifth patient has two exams, every sixth row no note, every seventh a lateral, every eighth is a CT.
        note = "" if index % 6 == 5 else study.report.text
        note += {1: f" {MOJIBAKE}", 2: f" {LOST}"}.get(index, "")
        finding = ", ".join(found.name for found in study.findings) or "No Finding"
        shared = {
            "patientid": str(index - 1 if index % 5 == 1 else index),
            "offset": str(index % 5),
            "finding": "todo" if index % 11 == 10 else finding,
            "modality": "CT" if index % 8 == 7 else "X-ray",
            "folder": "images",
            "clinical_notes": note,
            "license": "CC0",
        }
        mode, suffix = (("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("L", "jpeg"))[index % 4]
        name = f"case-{index:03d}.{suffix}"
        save(as_bytes(frontal[index]), root / "images" / name, mode=mode)
        view = "Axial" if index % 8 == 7 else ("PA", "AP", "AP Supine")[index % 3]
        rows.append({**shared, "view": view, "filename": name})
        if index % 7 == 0:
            name_lateral = f"case-{index:03d}-L.jpg"
            save(as_bytes(lateral[index]), root / "images" / name_lateral)
            rows.append({**shared, "view": "L", "filename": name_lateral})
        if index % 3 == 0:
            save(_lungs(), root / MASKS / f"case-{index:03d}_mask.png")
        if index % 4 == 0:
            images.append({"id": index, "file_name": name, "height": SIDE, "width": SIDE})
            for category, left in ((1, 0.15), (2, 0.55)):  # the right lung is on the picture's left
                box = [left * SIDE, 0.15 * SIDE, 0.3 * SIDE, 0.6 * SIDE]
                annotations.append({"image_id": index, "category_id": category, "bbox": box})
    rows.append({**rows[0], "patientid": "9000"})  # one picture under two patients, as in the real table
    columns = ("patientid", "offset", *[column for column in COLUMNS if column != "patientid"], "license")
    write_table(root / TABLE, columns, rows)
    categories = [{"id": 1, "name": "Right Lung"}, {"id": 2, "name": "Left Lung"}]
    write_json(root / BOXES, {"categories": categories, "images": images, "annotations": annotations})


def _lungs() -> np.ndarray:
    """(SIDE, SIDE) uint8: two ellipses, as rough as a model's mask."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    lungs = [((x - centre) / 0.15) ** 2 + ((y - 0.45) / 0.3) ** 2 < 1 for centre in (0.3, 0.7)]
    return (np.logical_or(*lungs) * 255).astype(np.uint8)


def _vqa_rad(root: Path, studies: int, seed: int) -> None:
    from .vqa_rad import PICTURES, QUESTIONS

    collection = phantoms(studies, seed)
    pictures = collection.images(range(studies), size=SIDE)
    codes = {"presence": "PRES", "side": "POS", "zone": "POS", "count": "COUNT", "view": "PLANE"}
    rows = []
    for index in range(studies):
        name = f"phantom{index:05d}.jpg"
        save(as_bytes(pictures[index]), root / PICTURES / name, mode="RGB")
        for number, question in enumerate(collection.study(index).questions):
            rows.append(
                {
                    "qid": len(rows),
                    "phrase_type": ("freeform", "para", "test_freeform")[number % 3],
                    # every fourth picture belongs to the case of the one before
                    "image_case_url": f"case-{index - 1 if index % 4 == 1 else index}",
                    "image_name": name,
                    "image_organ": ("CHEST", "CHEST", "HEAD", "ABD")[index % 4],
                    "question": question.text,
                    "question_type": codes.get(question.kind, "OTHER"),
                    "answer": int(question.answer) if question.answer.isdigit() else f"{question.answer} ",
                    "answer_type": "CLOSED " if question.closed else "OPEN",
                }
            )
    write_json(root / QUESTIONS, rows)


def _manifest_rows(root: Path, studies: int, seed: int) -> list[dict[str, str]]:
    collection = phantoms(studies, seed)
    pictures = collection.images(range(studies), size=SIDE)
    rows = []
    for index in range(studies):
        study = collection.study(index)
        name = f"pictures/{index:03d}.png"
        save(as_bytes(pictures[index]), root / name)
        regions = [region for region in study.regions if region.view == "frontal"]
        present = [found.name for found in study.findings if found.status == "present"]
        rows.append(
            {
                "image": name,
                "report": study.report.text,
                "findings": study.report.findings,
                "impression": study.report.impression,
                "labels": "; ".join(present),
                "boxes": json.dumps([{"label": region.label, "box": list(region.box)} for region in regions]),
                "patient": study.patient,
                "split": ("test", "validation")[index % 2] if index >= studies - 6 else "train",
            }
        )
    return rows


def _manifest(root: Path, studies: int, seed: int) -> None:
    rows = _manifest_rows(root, studies, seed)
    for row in rows:  # so that the miniature itself is clean
        del row["split"]
    write_table(root / "manifest.csv", tuple(rows[0]), rows)


def _faulty(root: Path, studies: int, seed: int) -> None:
    from PIL import Image

    rows = _manifest_rows(root, studies, seed)
    last = len(rows) - 1  # in validation
    rows[last]["patient"] = rows[0]["patient"]  # a patient in two splits
    rows[last - 1]["report"] = rows[1]["report"]  # a report in two splits
    rows[2]["report"] = rows[2]["findings"] = rows[2]["impression"] = ""
    rows[3]["report"] += " \ufffd\ufffd"
    with Image.open(root / rows[4]["image"]) as picture:
        picture.save(root / rows[last - 2]["image"])  # the same picture in two splits
        small = picture.resize((SIDE * 2 // 3, SIDE * 2 // 3))
    rows[5]["image"], rows[5]["boxes"] = "pictures/copy.jpg", ""
    small.save(root / rows[5]["image"], quality=70)  # nearly the same picture
    whole = (root / rows[6]["image"]).read_bytes()
    (root / rows[6]["image"]).write_bytes(whole[: len(whole) // 2])
    (root / rows[7]["image"]).write_bytes(b"")
    (root / rows[8]["image"]).write_text("not a picture", encoding="utf-8")
    save(np.full((SIDE, SIDE), 90, dtype=np.uint8), root / rows[9]["image"])
    rows[10]["image"] = "pictures/never-sent.png"
    rows[11]["boxes"] = json.dumps([{"label": "Nodule", "box": [10, 10, SIDE * 3, 40]}])
    write_table(root / "manifest.csv", tuple(rows[0]), rows)


BUILDERS: dict[str, Callable[[Path, int, int], None]] = {
    "bccd": miniature_labelled.bccd,
    "covid-chestxray": _covid,
    "dicom": miniature_files.dicom,
    "dsb2018-nuclei": miniature_labelled.nuclei,
    "faulty": _faulty,
    "lc25000": miniature_labelled.lc25000,
    "manifest": _manifest,
    "nifti": miniature_files.nifti,
    "slides": miniature_files.slides,
    "vqa-rad": _vqa_rad,
}
