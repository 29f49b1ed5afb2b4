"""`medvlp data check` finds every planted fault, tells none that is not there, and never prints a patient's name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from medvlp_kit import datasets
from medvlp_kit.datasets import miniature, miniature_files
from medvlp_kit.datasets.check import check, check_root, guess_layout
from medvlp_kit.datasets.image_reading import fit, read_image
from medvlp_kit.datasets.look import HASH_SIDE, IDENTIFYING_TAGS, difference_hash, near_pairs
from medvlp_kit.errors import KitError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("miniatures")


@pytest.fixture(scope="module")
def faulty(folder):
    return check_root(miniature.build("faulty", folder))


def found(report, kind):
    faults = [fault for fault in report.faults if fault.kind == kind]
    assert len(faults) == 1, report.text()
    return faults[0]


@pytest.mark.parametrize(
    ("kind", "severity", "places"),
    [
        ("missing", "error", ["row 12: no file 'pictures/never-sent.png'"]),
        ("unreadable", "error", ["006.png is corrupt", "007.png is empty", "008.png is not an image"]),
        ("patient leak", "error", ["train, validation"]),
        ("report leak", "error", ["row 3 (train), row 24 (test)"]),
        ("duplicate", "error", ["pictures/004.png = pictures/021.png"]),
        ("near duplicate", "warning", ["pictures/004.png = pictures/copy.jpg"]),
        ("empty report", "error", ["row 4"]),
        ("encoding", "warning", ["row 5"]),
        ("blank", "warning", ["pictures/009.png"]),
        ("box outside", "error", ["row 13: Nodule"]),
    ],
)
def test_every_planted_fault_is_found(faulty, kind, severity, places):
    fault = found(faulty, kind)
    assert fault.severity == severity
    assert len(fault.where) == len(places)
    for place, where in zip(places, fault.where):
        assert place in where


def test_a_faulty_set_is_not_ok(faulty):
    assert not faulty.ok
    assert {fault.kind for fault in faulty.faults if fault.severity != "note"} == {
        "missing", "unreadable", "patient leak", "report leak", "duplicate", "near duplicate", "empty report",
        "encoding", "blank", "box outside",
    }  # fmt: skip
    severities = [fault.severity for fault in faulty.faults]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_the_report_is_text_table_and_json(faulty):
    text = faulty.text()
    for fault in faulty.faults:
        assert fault.message in text
    assert "Result: mend the errors before training." in text
    frame = faulty.to_frame()
    assert list(frame.columns) == ["severity", "kind", "message", "where"]
    assert len(frame) == sum(max(1, len(fault.where)) for fault in faulty.faults)
    data = json.loads(faulty.to_json())
    assert data["ok"] is False and len(data["faults"]) == len(faulty.faults)
    assert sum(line["files"] for line in data["tables"]["Pictures"]) == faulty.files - 3


@pytest.mark.parametrize("name", ["covid-chestxray", "vqa-rad", "manifest"])
def test_sound_sets_are_ok(folder, name):
    root = miniature.build(name, folder)
    assert guess_layout(root) == name
    report = check_root(root)
    expected = {"encoding"} if name == "covid-chestxray" else set()
    assert report.ok and {fault.kind for fault in report.faults if fault.severity != "note"} == expected
    assert report.text() == check_root(root, data=name).text()
    assert report.tables["Studies"]["pictures"].sum() >= report.studies


@pytest.mark.parametrize("name", sorted(datasets.ADAPTORS))
def test_every_layout_is_known_by_its_files(folder, name):
    root = miniature.build(name, folder)
    assert guess_layout(root) == name
    assert check_root(root).name == datasets.load(name, root).name


def test_half_a_layout_is_not_that_layout(tmp_path):
    root = miniature.build("dsb2018-nuclei", tmp_path)
    (root / "stage1_train").rename(root / "pictures")
    assert guess_layout(root) == "folder"


def test_mended_notes_are_told(folder):
    report = check_root(miniature.build("covid-chestxray", folder))
    assert len(found(report, "encoding").where) == 2


def test_the_official_split_of_vqa_rad_is_an_error(folder):
    report = check_root(miniature.build("vqa-rad", folder), "vqa-rad", splitting="official")
    assert not report.ok and len(found(report, "patient leak").where) > 5


def test_a_manifest_may_be_named(folder):
    root = miniature.build("manifest", folder)
    report = check_root(root, manifest=root / "manifest.csv")
    assert report.ok and report.studies == 24
    assert check_root(root / "manifest.csv").studies == 24


def test_dicom_headers(folder):
    root = miniature.build("dicom", folder)
    assert guess_layout(root) == "folder"
    report = check_root(root)
    assert found(report, "identifying tags").where == ("named.dcm: PatientID, PatientName",)
    burnt = {fault.severity: fault.where for fault in report.faults if fault.kind == "burnt-in text"}
    assert burnt["warning"] == ("colour-big-endian.dcm",)
    assert len(burnt["note"]) == 5  # of seven, one says YES and one NO
    everything = report.text() + report.to_json() + report.to_frame().to_string()
    assert "Phantom^Paul" not in everything and "P-0001" not in everything


def test_each_identifying_tag_is_seen_and_emptied_ones_are_not(tmp_path):
    from pydicom.uid import ExplicitVRLittleEndian

    values = {"PatientBirthDate": "19500101", "StudyDate": "20200101", "StudyTime": "1200", "OtherPatientIDs": "77"}
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for name in IDENTIFYING_TAGS:
        if name in ("PhysiciansOfRecord", "MedicalRecordLocator"):
            continue
        tag = {name: values.get(name, "X")}
        miniature_files.write_dicom(tmp_path / f"{name}.dcm", pixels, ExplicitVRLittleEndian, **tag)
    empty = {"PatientName": "Anonymized", "PatientID": "", "AccessionNumber": "removed"}
    miniature_files.write_dicom(tmp_path / "clean.dcm", pixels, ExplicitVRLittleEndian, **empty)
    where = found(check_root(tmp_path), "identifying tags").where
    assert sorted(where) == sorted(
        f"{path.name}: {path.stem}" for path in tmp_path.glob("*.dcm") if path.stem != "clean"
    )


def test_a_bare_folder(tmp_path):
    noise = np.random.default_rng(0)
    for name in ("a.png", "deep/b.png", ".hidden.png", ".git/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "deep" / "broken.jpg").write_bytes(b"x")
    report = check_root(tmp_path)
    assert report.files == 3 and "1 .txt" in report.notice
    assert [fault.kind for fault in report.faults] == ["unreadable"]
    with pytest.raises(KitError, match="no image file"):
        check_root((tmp_path / "none").mkdir() or tmp_path / "none")
    with pytest.raises(KitError, match="no such folder"):
        check_root(tmp_path / "gone")


def test_mistakes_are_named(folder):
    with pytest.raises(KitError, match="unknown data set"):
        check_root(folder, data="vqa_radd")
    with pytest.raises(KitError, match="nothing to check"):
        check(datasets.load("phantoms", size=2))


def test_near_pairs_against_every_pair():
    draw = np.random.default_rng(1)
    hashes = draw.random((60, HASH_SIDE**2)) < 0.5
    hashes[40:50] = hashes[:10]
    for copy in range(40, 50):
        hashes[copy, draw.choice(HASH_SIDE**2, copy - 38, replace=False)] ^= True
    slow = [(i, j, int((hashes[i] != hashes[j]).sum())) for i in range(60) for j in range(i + 1, 60)]
    expected = [pair for pair in slow if pair[2] <= 7]
    assert len(expected) == 6
    assert sorted(near_pairs(hashes, limit=7, chunk=4)) == expected
    assert near_pairs(np.zeros((5, HASH_SIDE**2), dtype=bool)) == []  # blank pictures are not copies of each other


def test_the_hash_outlives_scaling_and_jpeg_but_not_another_picture(tmp_path):
    one, two = datasets.load("phantoms", size=2, seed=3).images([0, 1], size=160)
    Image.fromarray((fit(one, 90)[0] * 255).byte().numpy()).save(tmp_path / "x.jpg", quality=50)
    copy = difference_hash(read_image(tmp_path / "x.jpg"))
    assert (difference_hash(one) != copy).sum() <= 10
    assert (difference_hash(two) != copy).sum() > 20
    assert difference_hash(torch.full((3, 50, 40), 0.5)).sum() == 0


def test_real_folders(data_folder):
    covid = check_root(data_folder / "covid-chestxray")
    assert covid.ok and covid.files > covid.studies
    samples = check_root(data_folder / "dicom-samples")
    assert samples.files == 3 and {fault.kind for fault in samples.faults} == {"identifying tags", "burnt-in text"}
    assert "Community" not in samples.text()
