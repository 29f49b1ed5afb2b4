"""Tiny copies of every layout, made from phantoms: for tests, and for a reader who has no data at hand.

Each copy has the oddities of the real thing (mixed picture modes, answers that are numbers, rows without notes, files
without a preamble), because reading those is what there is to learn. Pictures and texts are phantoms; none is clinical.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import KitError, unknown

SIDE = 96  # pixels
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


def _phantoms(studies: int, seed: int):
    from ..phantoms import Phantoms

    return Phantoms(studies, seed=seed, image_size=SIDE)


def _bytes(picture) -> np.ndarray:
    """(H, W) uint8 of a (1, H, W) picture in [0, 1]."""
    return (picture[0] * 255).round().byte().numpy()


def _save(values: np.ndarray, path: Path, *, mode: str = "L") -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(path)


def _covid(root: Path, studies: int, seed: int) -> None:
    from .covid_chestxray import BOXES, COLUMNS, MASKS, TABLE

    collection = _phantoms(studies, seed)
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
        _save(_bytes(frontal[index]), root / "images" / name, mode=mode)
        view = "Axial" if index % 8 == 7 else ("PA", "AP", "AP Supine")[index % 3]
        rows.append({**shared, "view": view, "filename": name})
        if index % 7 == 0:
            name_lateral = f"case-{index:03d}-L.jpg"
            _save(_bytes(lateral[index]), root / "images" / name_lateral)
            rows.append({**shared, "view": "L", "filename": name_lateral})
        if index % 3 == 0:
            _save(_lungs(), root / MASKS / f"case-{index:03d}_mask.png")
        if index % 4 == 0:
            images.append({"id": index, "file_name": name, "height": SIDE, "width": SIDE})
            for category, left in ((1, 0.15), (2, 0.55)):  # the right lung is on the picture's left
                box = [left * SIDE, 0.15 * SIDE, 0.3 * SIDE, 0.6 * SIDE]
                annotations.append({"image_id": index, "category_id": category, "bbox": box})
    rows.append({**rows[0], "patientid": "9000"})  # one picture under two patients, as in the real table
    columns = ("patientid", "offset", *[column for column in COLUMNS if column != "patientid"], "license")
    _write_table(root / TABLE, columns, rows)
    categories = [{"id": 1, "name": "Right Lung"}, {"id": 2, "name": "Left Lung"}]
    _write_json(root / BOXES, {"categories": categories, "images": images, "annotations": annotations})


def _lungs() -> np.ndarray:
    """(SIDE, SIDE) uint8: two ellipses, as rough as a model's mask."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    lungs = [((x - centre) / 0.15) ** 2 + ((y - 0.45) / 0.3) ** 2 < 1 for centre in (0.3, 0.7)]
    return (np.logical_or(*lungs) * 255).astype(np.uint8)


def _vqa_rad(root: Path, studies: int, seed: int) -> None:
    from .vqa_rad import PICTURES, QUESTIONS

    collection = _phantoms(studies, seed)
    pictures = collection.images(range(studies), size=SIDE)
    codes = {"presence": "PRES", "side": "POS", "zone": "POS", "count": "COUNT", "view": "PLANE"}
    rows = []
    for index in range(studies):
        name = f"phantom{index:05d}.jpg"
        _save(_bytes(pictures[index]), root / PICTURES / name, mode="RGB")
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
    _write_json(root / QUESTIONS, rows)


def _manifest_rows(root: Path, studies: int, seed: int) -> list[dict[str, str]]:
    collection = _phantoms(studies, seed)
    pictures = collection.images(range(studies), size=SIDE)
    rows = []
    for index in range(studies):
        study = collection.study(index)
        name = f"pictures/{index:03d}.png"
        _save(_bytes(pictures[index]), root / name)
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
    _write_table(root / "manifest.csv", tuple(rows[0]), rows)


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
    _save(np.full((SIDE, SIDE), 90, dtype=np.uint8), root / rows[9]["image"])
    rows[10]["image"] = "pictures/never-sent.png"
    rows[11]["boxes"] = json.dumps([{"label": "Nodule", "box": [10, 10, SIDE * 3, 40]}])
    _write_table(root / "manifest.csv", tuple(rows[0]), rows)


def _dicom(root: Path, studies: int, seed: int) -> None:
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    pictures = _phantoms(12, seed).images(range(12), size=SIDE)
    deep = (pictures[:, 0].numpy() * 4095).round().astype(np.uint16)  # (12, SIDE, SIDE), twelve bits
    little, big = ExplicitVRLittleEndian, ExplicitVRBigEndian
    _write_dicom(root / "window.dcm", deep[0], little, Modality="DX", BodyPartExamined="CHEST", ViewPosition="PA",
                 WindowCenter=[2048, 1000], WindowWidth=[4096, 500])  # fmt: skip
    _write_dicom(root / "inverted.dcm", 4095 - deep[0], little, PhotometricInterpretation="MONOCHROME1", Modality="CR")
    hounsfield = {"RescaleSlope": 0.5, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    _write_dicom(root / "rescaled.dcm", deep[1], little, Modality="CT", BurnedInAnnotation="NO", **hounsfield)
    frames = (pictures[:8, 0].numpy() * 255).round().astype(np.uint8)
    _write_dicom(root / "frames", frames, little, Modality="XA", NumberOfFrames=8)  # without .dcm, as some senders do
    colour = np.stack([frames[0], frames[0] // 2, 255 - frames[0]])  # planes first
    _write_dicom(root / "colour-big-endian.dcm", colour, big, PhotometricInterpretation="RGB", SamplesPerPixel=3,
                 PlanarConfiguration=1, Modality="US", BurnedInAnnotation="YES")  # fmt: skip
    _write_dicom(root / "bare.dcm", frames[2], little, Modality="OT", preamble=False)
    _write_dicom(root / "named.dcm", frames[3], little, Modality="DX", PatientName="Phantom^Paul", PatientID="P-0001")


def _write_dicom(path: Path, values: np.ndarray, syntax, *, preamble: bool = True, **attributes) -> None:
    """values: (H, W), (F, H, W) or, with SamplesPerPixel=3 and PlanarConfiguration=1, (3, H, W)."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import ExplicitVRBigEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.10.1.{sum(path.name.encode())}"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    deep = values.dtype == np.uint16
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.BitsAllocated = 16 if deep else 8
    dataset.BitsStored = 12 if deep else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    big = syntax == ExplicitVRBigEndian
    dataset.PixelData = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset["PixelData"].VR = "OW" if deep else "OB"
    if preamble:
        dcmwrite(path, dataset, enforce_file_format=True)
    else:  # the data elements alone, as old archives hold them
        bare = Dataset()
        bare.update(dataset)
        dcmwrite(path, bare, implicit_vr=True, little_endian=True)


def _nifti(root: Path, studies: int, seed: int) -> None:
    import nibabel

    shape, spacing = (40, 48, 24), (2.0, 2.0, 4.0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, count) for count in shape], indexing="ij")
    head = 100.0 * (x**2 + y**2 + z**2 < 0.8)
    head += 60.0 * ((x - 0.4) ** 2 + (y - 0.3) ** 2 + z**2 < 0.05)  # a lesion: right, to the front
    affine = np.diag([*spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(head.astype(np.float32), affine), root / "head.nii.gz")
    # The same head stored from right to left: the header says so, and a reader must heed it.
    nibabel.save(nibabel.Nifti1Image(head[::-1].astype(np.int16), affine @ np.diag([-1, 1, 1, 1])), root / "las.nii.gz")
    series = np.stack([head * (1 + step / 4) for step in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(series.astype(np.float32), affine), root / "series.nii.gz")


def _slides(root: Path, studies: int, seed: int) -> None:
    side = 512
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    slide = np.full((side, side, 3), 240, dtype=np.uint8)
    tissue = ((x - 0.4 * side) / (0.3 * side)) ** 2 + ((y - 0.5 * side) / (0.4 * side)) ** 2 < 1
    slide[tissue] = (225, 160, 190)
    rows, columns = np.nonzero(tissue)
    for cell in generator.choice(len(rows), size=400, replace=False):
        slide[(x - columns[cell]) ** 2 + (y - rows[cell]) ** 2 < 9] = (90, 50, 130)
    write_tiled_tiff(root / "pyramid.tif", [slide, slide[::4, ::4]])
    write_tiled_tiff(root / "one-level.tif", [slide])


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


def _bccd(root: Path, studies: int, seed: int) -> None:
    from .bccd import ANNOTATIONS, LISTS, PICTURES

    generator = np.random.default_rng(seed)
    kinds = {"RBC": (9, (220, 130, 130), 8), "WBC": (15, (120, 80, 170), 2), "Platelets": (4, (150, 90, 180), 3)}
    (root / ANNOTATIONS).mkdir(parents=True, exist_ok=True)
    (root / LISTS).mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for index in range(studies):
        picture, found = _discs(generator, kinds)
        name = f"BloodImage_{index:05d}"
        _save(picture, root / PICTURES / f"{name}.jpg", mode="RGB")
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


def _nuclei(root: Path, studies: int, seed: int) -> None:
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
            _save((mask * 255).astype(np.uint8), folder / "masks" / f"{number:064x}.png")


def _lc25000(root: Path, studies: int, seed: int) -> None:
    from .lc25000 import CLASSES, FOLDER

    generator = np.random.default_rng(seed)
    colours = {"lung_aca": (150, 70, 150), "lung_n": (230, 180, 190), "lung_scc": (190, 90, 160)}
    for index in range(studies):
        name = list(CLASSES)[index % len(CLASSES)]
        picture, _ = _discs(generator, {name: (7, colours[name], 20)})
        stem = f"{name.replace('_', '')}{index + 1}"
        _save(picture, root / FOLDER / name / f"{stem}.jpeg", mode="RGB")


def write_tiled_tiff(path: Path, levels: list[np.ndarray], *, tile: int = 128) -> None:
    """A tiled TIFF with one directory a level, each (H, W, 3) uint8, sides multiples of `tile`, not compressed.

    Pillow cannot write tiles, and without them OpenSlide does not take a TIFF for a slide. Tags as in TIFF 6.0.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    out = bytearray(b"II*\0\0\0\0\0")
    link = 4  # where the offset of the next directory is written
    for number, level in enumerate(levels):
        height, width = level.shape[:2]
        offsets = []
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                offsets.append(len(out))
                out += np.ascontiguousarray(level[top : top + tile, left : left + tile]).tobytes()
        directory = ImageFileDirectory_v2(prefix=b"II")
        directory[254] = 1 if number else 0  # a smaller copy of the first
        directory[256], directory[257], directory[258] = width, height, (8, 8, 8)
        directory[259], directory[262], directory[277], directory[284] = 1, 2, 3, 1  # raw RGB, interleaved
        directory[322], directory[323] = tile, tile
        directory[324], directory[325] = tuple(offsets), (tile * tile * 3,) * len(offsets)
        out[link : link + 4] = len(out).to_bytes(4, "little")
        entries = directory.tobytes(len(out))
        link = len(out) + 2 + 12 * len(directory)
        out += entries
    path.write_bytes(out)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


BUILDERS: dict[str, Callable[[Path, int, int], None]] = {
    "bccd": _bccd,
    "covid-chestxray": _covid,
    "dicom": _dicom,
    "dsb2018-nuclei": _nuclei,
    "faulty": _faulty,
    "lc25000": _lc25000,
    "manifest": _manifest,
    "nifti": _nifti,
    "slides": _slides,
    "vqa-rad": _vqa_rad,
}
