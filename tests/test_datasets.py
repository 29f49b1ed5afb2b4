"""The adaptors: official layouts and a user's own table become the same kind of collection, and faults are named."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medvlp_kit import datasets
from medvlp_kit.datasets import files, miniature
from medvlp_kit.datasets.covid_chestxray import CovidChestXray, diagnoses
from medvlp_kit.datasets.manifest import Manifest
from medvlp_kit.datasets.paths import inside
from medvlp_kit.datasets.splits import crossing, normalise
from medvlp_kit.datasets.vqa_rad import QUESTIONS, VqaRad, question_sentence
from medvlp_kit.datasets.wording import is_damaged, mend_text
from medvlp_kit.errors import KitError
from medvlp_kit.study import SPLITS


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    return {name: miniature.build(name, folder) for name in ("covid-chestxray", "vqa-rad", "manifest")}


def all_studies(collection):
    return [collection.study(index) for index in range(len(collection))]


def assert_is_sound(collection):
    """What holds for every collection, whatever it was read from."""
    everything = range(len(collection))
    images = collection.images(everything, size=24)
    assert images.shape == (len(collection), collection.channels, 24, 24) and images.dtype == torch.float32
    assert 0 <= images.min() and images.max() <= 1 and images.std() > 0.05
    torch.testing.assert_close(images, collection.images(everything, size=24), rtol=0, atol=0)
    labels = collection.labels(everything)
    assert labels.shape == (len(collection), len(collection.label_names))
    assert set(labels.nan_to_num(0).unique().tolist()) <= {0.0, 1.0}
    studies = all_studies(collection)
    assert len({study.identifier for study in studies}) == len(studies)
    for study in studies[:4]:
        native = study.views[0].load()
        assert native.shape[0] == collection.channels and 0 <= native.min() and native.max() <= 1
        pickle.loads(pickle.dumps(study)).views[0].load()
    parts = [collection.split(name) for name in SPLITS]
    assert sum(map(len, parts)) == len(collection)
    return studies


def assert_splits_are_sound(studies):
    splits = [study.split for study in studies]
    assert set(splits) == set(SPLITS)
    assert not crossing([study.patient for study in studies], splits)
    assert not crossing([normalise(study.report.text) for study in studies], splits)


# COVID-19 image data collection


def test_covid(copies):
    collection = CovidChestXray(copies["covid-chestxray"])
    studies = assert_is_sound(collection)
    assert_splits_are_sound(studies)
    assert all(study.report.text and study.modality == "chest radiograph" for study in studies)
    assert "3 without clinical notes" in collection.notice and "4 of modality CT" in collection.notice
    table = pd.read_csv(copies["covid-chestxray"] / "metadata.csv", dtype=str, keep_default_na=False)
    kept = table[(table.modality == "X-ray") & (table.clinical_notes != "")]
    assert sum(len(study.views) for study in studies) == kept.filename.nunique()


def test_covid_pairs_the_lateral_with_its_frontal(copies):
    collection = CovidChestXray(copies["covid-chestxray"])
    both = [study for study in all_studies(collection) if len(study.views) == 2]
    assert both and all([view.name for view in study.views] == ["frontal", "lateral"] for study in both)
    part = collection.with_view("lateral")
    assert len(part) == len(both)
    frontal, lateral = (part.images([0], size=32, view=view) for view in ("frontal", "lateral"))
    assert not torch.equal(frontal, lateral)
    alone = next(i for i in range(len(collection)) if len(collection.study(i).views) == 1)
    with pytest.raises(KitError, match="with_view"):
        collection.images([alone], size=32, view="lateral")


def test_covid_one_picture_under_two_patients_is_one_patient(copies):
    collection = CovidChestXray(copies["covid-chestxray"], modality=None, texts="notes-or-label")
    assert "counted as one with it: 1" in collection.notice and "1 of a picture named before" in collection.notice
    paths = [image.path for record in collection.records for image in record.images]
    assert len(paths) == len(set(paths))


def test_covid_labels_and_texts(copies):
    notes = CovidChestXray(copies["covid-chestxray"])
    either = CovidChestXray(copies["covid-chestxray"], texts="notes-or-label")
    assert len(either) > len(notes)
    written = [study for study in all_studies(either) if study.report.text.startswith("Chest radiograph,")]
    assert written and all("Diagnosis: " in study.report.text for study in written)
    ct = CovidChestXray(copies["covid-chestxray"], modality="CT")
    assert {study.modality for study in all_studies(ct)} == {"chest CT slice"}
    assert ct.images([0], size=16).shape == (1, 1, 16, 16)  # an axial slice stands in for the principal view
    labels = notes.labels(range(len(notes)))
    unknown = labels.isnan().all(1)
    assert unknown.any() and not (labels.isnan().any(1) & ~unknown).any()  # "todo" is not known, in any column
    assert (labels[~unknown].sum(1) >= 1).all()


def test_covid_text_is_mended(copies):
    texts = [study.report.text for study in all_studies(CovidChestXray(copies["covid-chestxray"]))]
    assert any("Patient's arms are raised." in text for text in texts)
    assert any("The patient's prior exam" in text for text in texts)
    assert not any("\ufffd" in text or "â" in text for text in texts)


def test_covid_boxes_and_masks_lie_on_the_lungs(copies):
    collection = CovidChestXray(copies["covid-chestxray"])
    index = next(i for i, r in enumerate(collection.records) if r.boxes and r.masks)
    regions = {region.label: region for region in collection.regions(index, size=48)}
    assert regions["Right Lung"].side == "right" and regions["Right Lung"].box[0] < regions["Left Lung"].box[0]
    assert regions["Right Lung"].box == pytest.approx((0.15 * 48, 0.15 * 48, 0.45 * 48, 0.75 * 48))
    mask = regions["Lungs"].mask
    assert mask.shape == (48, 48) and mask.float().mean() == pytest.approx(2 * np.pi * 0.15 * 0.3, abs=0.02)
    assert regions["Lungs"].box[0] == mask.any(0).nonzero().min()
    native = collection.study(index).regions
    assert native[0].box[2] == pytest.approx(0.45 * miniature.SIDE)


def test_boxes_drawn_on_another_size_are_scaled(copies):
    # the boxes file says how large its picture was; here twice as large as the file
    path = copies["covid-chestxray"] / "annotations" / "imageannotation_ai_lung_bounding_boxes.json"
    kept = path.read_text()
    coco = json.loads(kept)
    before = CovidChestXray(copies["covid-chestxray"]).regions(0, size=48)
    try:
        for image in coco["images"]:
            image["width"] *= 2
            image["height"] *= 2
        for annotation in coco["annotations"]:
            annotation["bbox"] = [edge * 2 for edge in annotation["bbox"]]
        path.write_text(json.dumps(coco))
        after = CovidChestXray(copies["covid-chestxray"]).regions(0, size=48)
    finally:
        path.write_text(kept)
    assert before and [region.box for region in before] == [pytest.approx(region.box) for region in after]


def test_diagnoses_of_both_releases():
    assert diagnoses("COVID-19, ARDS") == ["COVID-19", "ARDS"]
    assert diagnoses("Pneumonia/Viral/COVID-19") == ["Pneumonia", "Viral", "COVID-19"]
    assert diagnoses("todo") == diagnoses("") == diagnoses("Unknown") == []


# VQA-RAD


def test_vqa_rad(copies):
    collection = VqaRad(copies["vqa-rad"])
    studies = assert_is_sound(collection)
    assert_splits_are_sound(studies)
    assert collection.label_names == ("Head", "Chest", "Abdomen")
    assert (collection.labels(range(len(collection))).sum(1) == 1).all()
    rows = json.loads((copies["vqa-rad"] / QUESTIONS).read_text())
    assert sum(len(study.questions) for study in studies) == len(rows)
    answers = [question.answer for study in studies for question in study.questions]
    assert any(isinstance(row["answer"], int) for row in rows)
    assert all(isinstance(answer, str) and answer == answer.strip() for answer in answers)
    closed = {question.answer for study in studies for question in study.questions if question.closed}
    assert closed == {"yes", "no"}
    assert {"presence", "view"} <= {question.kind for study in studies for question in study.questions}


def test_vqa_rad_text_is_the_questions_with_their_answers(copies):
    study = VqaRad(copies["vqa-rad"]).study(0)
    for question in study.questions:
        assert question_sentence(question.text, question.answer) in study.report.text
    assert question_sentence("Is there a mass? ", "No.") == "Is there a mass? No."
    assert question_sentence("What is this", "") == "What is this?"


def test_vqa_rad_pictures_of_one_case_stay_together(copies):
    collection = VqaRad(copies["vqa-rad"])
    patients = {study.identifier: study.patient for study in all_studies(collection)}
    assert patients["phantom00000"] == patients["phantom00001"] != patients["phantom00002"]


def test_vqa_rad_official_split_leaks_and_says_so(copies):
    collection = VqaRad(copies["vqa-rad"], splitting="official")
    train, test = collection.split("train"), collection.split("test")
    records = collection.records
    pictures = [{record.images[0].path for record in records if record.split == part} for part in ("train", "test")]
    assert len(train) + len(test) == len(collection) and len(test) > 0
    assert pictures[0] & pictures[1]
    assert f"leaks: {len(pictures[0] & pictures[1])} of {len(pictures[1])} test pictures" in collection.notice
    with pytest.raises(KitError, match="splitting"):
        VqaRad(copies["vqa-rad"], splitting="offical")


def test_vqa_rad_missing_pictures_are_counted(copies, tmp_path):
    root = miniature.build("vqa-rad", tmp_path, studies=12)
    next((root / "VQA_RAD Image Folder").iterdir()).unlink()
    collection = VqaRad(root)
    assert len(collection) == 11
    assert "whose picture is missing" in collection.notice and collection.problems
    rows = json.loads((root / QUESTIONS).read_text())
    rows[0]["image_name"] = "../../secret.jpg"
    (root / QUESTIONS).write_text(json.dumps(rows))
    with pytest.raises(KitError, match=r"record 1: .*'\.\.'"):
        VqaRad(root)
    (root / QUESTIONS).write_text("[{")
    with pytest.raises(KitError, match="not readable JSON"):
        VqaRad(root)


# A manifest


def picture(path: Path, shade: int = 128) -> None:
    values = np.linspace(0, shade, 400).reshape(20, 20).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def table(tmp_path):
    """A writer: rows as dictionaries to a CSV in a folder with a.png to f.png."""
    for number, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 100 + 20 * number)

    def write(rows, name="manifest.csv"):
        frame = pd.DataFrame(rows)
        frame.to_parquet(tmp_path / name) if name.endswith("parquet") else frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write


def row(name="a", **more):
    return {"image": f"pictures/{name}.png", "report": f"Report of {name}.", **more}


def test_manifest_miniature(copies):
    collection = datasets.load("manifest", copies["manifest"])
    studies = assert_is_sound(collection)
    assert_splits_are_sound(studies)
    assert all(study.report.findings and study.report.impression for study in studies)
    index = next(i for i, study in enumerate(studies) if study.regions)
    native, placed = studies[index].regions[0].box, collection.regions(index, size=48)[0].box
    assert placed == pytest.approx([edge * 48 / miniature.SIDE for edge in native])


def test_manifest_from_csv_and_parquet_are_the_same(table):
    rows = [row("a", patient=1, labels="Edema; Nodule"), row("b", patient=2, labels="")]
    rows.append(row("c", patient=3, labels="?"))
    one, two = Manifest(table(rows)), Manifest(table(rows, "manifest.parquet"))
    assert one.records == two.records and one.label_names == ("Edema", "Nodule")
    assert one.labels([0, 1, 2]).nan_to_num(9).tolist() == [[1, 1], [0, 0], [9, 9]]
    assert one.study(0).patient == "1"


def test_parquet_keeps_lists_and_missing_values(table):
    boxes = [{"label": "Nodule", "box": [1.0, 2.0, 3.0, 4.0]}]
    rows = [row("a", labels=["Edema"], boxes=boxes, patient=None), row("b", labels=[], boxes=None, patient="p")]
    collection = Manifest(table(rows, "manifest.parquet"))
    assert collection.study(0).regions[0].box == (1, 2, 3, 4)
    assert collection.labels([0, 1]).tolist() == [[1], [0]]
    assert collection.study(0).patient == "row 2"


def test_label_columns(table):
    rows = [row("a", **{"label:Edema": "1", "label:Mass": ""}), row("b", **{"label:Edema": "-1", "label:Mass": "0.0"})]
    collection = Manifest(table(rows))
    assert collection.label_names == ("Edema", "Mass")
    assert collection.labels([0, 1]).nan_to_num(9).tolist() == [[1, 9], [9, 0]]
    assert [(found.name, found.status) for found in collection.study(1).findings] == [
        ("Edema", "uncertain"), ("Mass", "absent"),
    ]  # fmt: skip
    with pytest.raises(KitError, match="row 2: label 'Edema' is 'yes'"):
        Manifest(table([row("a", **{"label:Edema": "yes"})]))


def test_rows_of_one_study_are_its_views(table):
    rows = [row("a", study="s1", view="frontal", patient="p"), row("b", study="s1", view="lateral", patient=""),
            row("c", study="s2", view="frontal", patient="q")]  # fmt: skip
    rows[1]["report"] = ""
    collection = Manifest(table(rows))
    assert len(collection) == 2
    assert [view.name for view in collection.study(0).views] == ["frontal", "lateral"]
    rows[1]["report"] = "Another report."
    with pytest.raises(KitError, match="row 3: 'report' differs"):
        Manifest(table(rows))
    rows[1].update(report="", view="frontal")
    with pytest.raises(KitError, match="one view twice"):
        Manifest(table(rows))


def test_masks(table, tmp_path):
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[5:10, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "pictures" / "mask.png")
    collection = Manifest(table([row("a", **{"mask:Nodule": "pictures/mask.png"}), row("b", **{"mask:Nodule": ""})]))
    (region,) = collection.regions(0, size=40)
    assert region.label == "Nodule" and region.box == pytest.approx((20, 10, 40, 20), abs=1)
    assert collection.regions(1, size=40) == ()


def test_splits_of_the_table_are_kept_and_leaks_are_told(table):
    rows = [row("a", split="train", patient="p"), row("b", split="val", patient="p")]
    rows.append(row("c", split="test", patient="q"))
    collection = Manifest(table(rows))
    assert [record.split for record in collection.records] == ["train", "validation", "test"]
    assert "1 patient and 0 report texts are in more than one split" in collection.notice
    rows[0]["split"] = "holdout"
    with pytest.raises(KitError, match="row 2: unknown split 'holdout'"):
        Manifest(table(rows))


def test_the_root_may_be_elsewhere(table, tmp_path):
    path = table([{"image": "a.png", "report": "A."}])
    assert len(Manifest(path, tmp_path / "pictures")) == 1
    assert len(datasets.load("manifest", path, image_root=tmp_path / "pictures")) == 1
    with pytest.raises(KitError, match="no file 'a.png'"):
        Manifest(path)


@pytest.mark.parametrize(
    ("column", "near"), [("imge", "image"), ("Report", "report"), ("lables", "labels"), ("age", "ignore=")]
)
def test_unknown_columns_name_the_nearest(table, column, near):
    rows = [row("a", **{column: "1"})]
    with pytest.raises(KitError, match=near) as error:
        Manifest(table(rows))
    assert repr(column) in str(error.value) and "\n" not in str(error.value)
    assert len(Manifest(table(rows), ignore=[column])) == 1


OUTSIDE = ("../x.png", "pictures/../../x.png", "/etc/passwd", "C:\\x.png", "..\\x.png", "\\\\server\\x.png")


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_leave_the_root(table, tmp_path, path):
    for column in ("image", "mask", "mask:Nodule"):
        rows = [row("b"), row("a", **{column: path}) if column != "image" else {"image": path, "report": "A."}]
        with pytest.raises(KitError, match="row 3: .*(leaves the folder|absolute path)"):
            Manifest(table(rows), strict=False)


def test_links_that_leave_the_root(table, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    picture(outside)
    (tmp_path / "pictures" / "link.png").symlink_to(outside)
    (tmp_path / "pictures" / "good.png").symlink_to(tmp_path / "pictures" / "a.png")
    (tmp_path / "folder").symlink_to(tmp_path.parent)
    assert len(Manifest(table([row("good")]))) == 1
    for name in ("pictures/link.png", f"folder/{outside.name}"):
        with pytest.raises(KitError, match="link that leads out"):
            Manifest(table([{"image": name, "report": "A."}]))


def test_windows_separators(table):
    assert len(Manifest(table([{"image": "pictures\\a.png", "report": "A."}]))) == 1


def test_faults_of_a_manifest_name_their_row(table, tmp_path):
    with pytest.raises(KitError, match=r"row 3: no file 'pictures/z.png'.* \(and 1 more"):
        Manifest(table([row("a"), row("z"), row("y")]))
    assert len(Manifest(table([row("a"), row("z")]), strict=False)) == 1
    with pytest.raises(KitError, match="row 2: the cell 'image' is empty"):
        Manifest(table([{"image": "", "report": "A."}]))
    for boxes in ("[1, 2", '[{"box": [1, 2, 3, 4]}]', '[{"label": "x", "box": [5, 2, 3, 4]}]'):
        with pytest.raises(KitError, match="row 2: boxes cannot be read"):
            Manifest(table([row("a", boxes=boxes)]))
    with pytest.raises(KitError, match="both a column 'labels'"):
        Manifest(table([row("a", labels="x", **{"label:y": "1"})]))
    with pytest.raises(KitError, match="needs a column 'image'"):
        Manifest(table([{"report": "A."}]))
    with pytest.raises(KitError, match="header but no rows"):
        Manifest(table(pd.DataFrame(columns=["image", "report"])))
    (tmp_path / "latin.csv").write_bytes("image,report\npictures/a.png,Derrame pleural pequeño\n".encode("latin-1"))
    with pytest.raises(KitError, match="UTF-8"):
        Manifest(tmp_path / "latin.csv")
    (tmp_path / "ragged.csv").write_text("image,report\npictures/a.png,No mass, no edema\n")
    with pytest.raises(KitError, match="double quotes"):
        Manifest(tmp_path / "ragged.csv")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(KitError, match="cannot be read as a table"):
        Manifest(tmp_path / "torn.parquet")
    with pytest.raises(KitError, match="no such manifest"):
        Manifest(tmp_path / "gone.csv")


def test_a_spreadsheet_csv_with_a_byte_order_mark(table, tmp_path):
    (tmp_path / "bom.csv").write_text("image,report\npictures/a.png,Año\n", encoding="utf-8-sig")
    assert Manifest(tmp_path / "bom.csv").report(0).text == "Año"


# What all share


def test_fitting_is_remembered_and_bounded(table, monkeypatch):
    collection = Manifest(table([row(name) for name in "abcdef"]))
    reads = []
    original = files.read_native
    monkeypatch.setattr(files, "read_native", lambda path, **options: reads.append(path) or original(path, **options))
    first = collection.images(range(6), size=16)
    assert len(reads) == 6
    torch.testing.assert_close(collection.images(range(6), size=16), first, rtol=0, atol=0)
    assert len(reads) == 6
    assert collection.images([0], size=20).shape[-1] == 20 and len(reads) == 7  # another size is another picture
    monkeypatch.setattr(files, "CACHE_BYTES", 2 * 16 * 16)
    small = Manifest(collection.root / "manifest.csv")
    torch.testing.assert_close(small.images(range(6), size=16), first, rtol=0, atol=0)
    assert len(small._cache) == 2 and small._cached_bytes == 2 * 16 * 16


def test_no_images_at_all(table):
    collection = Manifest(table([row("a")]))
    assert collection.images([], size=8).shape == (0, 1, 8, 8)
    assert collection.labels([]).shape == (0, 0)


def test_three_channels(copies):
    collection = CovidChestXray(copies["covid-chestxray"], channels=3)
    assert collection.images([0, 1], size=8).shape == (2, 3, 8, 8)
    with pytest.raises(KitError, match="channels=2"):
        CovidChestXray(copies["covid-chestxray"], channels=2)


def test_mending_texts():
    assert mend_text("patientâ€™s  lungs\n\n clear ") == "patient's lungs\nclear"
    assert mend_text("patient\ufffds") == "patient's"
    assert mend_text("12 \ufffd 30 mm") == "12 30 mm"
    assert mend_text(None) == "" and mend_text(4) == "4"
    assert mend_text("Sin cambios: año") == "Sin cambios: año"
    assert [is_damaged(text) for text in ("año", "Patient's", "aÃ±o", "a\ufffdb")] == [False, False, True, True]


def test_inside_gives_the_path(tmp_path):
    assert inside(tmp_path, "a/b..c.png", where="x") == tmp_path / "a" / "b..c.png"


def test_load_and_names(copies):
    assert datasets.names() == (
        "bccd", "covid-chestxray", "dsb2018-nuclei", "lc25000", "manifest", "phantoms", "vqa-rad",
    )  # fmt: skip
    table = datasets.describe()
    assert sorted(table["name"]) == list(datasets.names()) and (table != "").all().all()
    part = datasets.load("covid_chestxray", copies["covid-chestxray"], split="train")
    assert part.study(0).split == "train" and part.name == "covid-chestxray/train"
    phantoms = datasets.load("phantoms", split="test", size=3, seed=5)
    assert len(phantoms) == 3 and phantoms.study(0).split == "test"
    assert len(datasets.load("vqa-rad", copies["vqa-rad"], channels=3).split("train")) > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda root: datasets.load("vqarad", root), "did you mean 'vqa-rad'"),
        (lambda root: datasets.load("vqa-rad", root, split="valid"), "unknown split"),
        (lambda root: datasets.load("vqa-rad"), "give --root"),
        (lambda root: datasets.load("vqa-rad", "nowhere"), "no such folder"),
        (lambda root: datasets.load("vqa-rad", root), "not in the layout of vqa-rad"),
        (lambda root: datasets.load("covid-chestxray", root, modalty="CT"), "did you mean 'modality'"),
        (lambda root: datasets.load("covid-chestxray", root, modality="MR"), "unknown modality"),
        (lambda root: datasets.load("covid-chestxray", root).split("dev"), "unknown split"),
        (lambda root: datasets.load("covid-chestxray", root, fractions=(1, 0, 0), split="test"), "no study in split"),
        (lambda root: datasets.load("manifest", root), "holds no manifest.csv"),
        (lambda root: datasets.load("phantoms", root), "drawn, not read"),
        (lambda root: datasets.load("phantoms", sise=3), "did you mean 'size'"),
        (lambda root: miniature.build("covid", root / "x"), "unknown miniature"),
        (lambda root: miniature.build("dicom", root / "x", studies=3), "at least 12"),
    ],
)
def test_mistakes_are_named(copies, call, words):
    with pytest.raises(KitError, match=words) as error:
        call(copies["covid-chestxray"])
    assert "\n" not in str(error.value)


def test_names_are_listed_without_torch():
    code = "import sys, medvlp_kit.datasets as d; d.names(); d.describe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_miniatures_are_the_same_every_time(tmp_path):
    for name in ("vqa-rad", "faulty", "dicom", "slides"):
        one, two = (miniature.build(name, tmp_path / folder, studies=12) for folder in ("one", "two"))
        for path in sorted(one.rglob("*")):
            if path.is_file():
                assert path.read_bytes() == (two / path.relative_to(one)).read_bytes(), path


def test_real_collections(data_folder):
    covid = CovidChestXray(data_folder / "covid-chestxray")
    table = pd.read_csv(data_folder / "covid-chestxray" / "metadata.csv", dtype=str, keep_default_na=False)
    kept = table[(table.modality == "X-ray") & (table.clinical_notes.str.strip() != "")]
    assert sum(len(record.images) for record in covid.records) == kept.filename.nunique()
    assert_splits_are_sound(all_studies(covid))
    rows = json.loads((data_folder / "vqa-rad" / QUESTIONS).read_text())
    vqa = VqaRad(data_folder / "vqa-rad")
    assert len(vqa) == len({row["image_name"] for row in rows})
    assert sum(len(record.questions) for record in vqa.records) == len(rows)
    assert_splits_are_sound(all_studies(vqa))
    assert "leaks" in VqaRad(data_folder / "vqa-rad", splitting="official").notice
    for collection in (covid, vqa):
        images = collection.images(range(0, len(collection), 8), size=64)
        assert 0.1 < images.mean() < 0.7 and (images.flatten(1).std(1) > 0.05).all()
