"""Sets of boxes, masks and classes as image-text pairs: their official layouts, their oddities, and what captions say."""

from __future__ import annotations

import pytest
import torch
from test_datasets import all_studies, assert_is_sound

from medvlp_kit import datasets
from medvlp_kit.datasets import miniature
from medvlp_kit.datasets.bccd import ANNOTATIONS, LISTS, Bccd, read_boxes
from medvlp_kit.datasets.captions import caption, count_caption, listed, quantity
from medvlp_kit.datasets.lc25000 import CLASSES, FOLDER
from medvlp_kit.datasets.nuclei import NUCLEUS
from medvlp_kit.datasets.splits import crossing
from medvlp_kit.errors import KitError
from medvlp_kit.study import SPLITS

NAMES = ("bccd", "dsb2018-nuclei", "lc25000")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    return {name: miniature.build(name, folder, studies=24) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_collections_are_sound_and_deal_every_split(roots, name):
    collection = datasets.load(name, roots[name])
    studies = assert_is_sound(collection)
    assert len(collection) == 24 and collection.channels == 3
    splits = [study.split for study in studies]
    assert set(splits) == set(SPLITS) and not crossing([study.patient for study in studies], splits)
    assert "captions" in collection.notice and all(study.report.text for study in studies)


@pytest.mark.parametrize("name", NAMES)
def test_captions_say_what_the_labels_say(roots, name):
    collection = datasets.load(name, roots[name])
    for index, study in enumerate(all_studies(collection)):
        text = study.report.text.lower()
        if name == "lc25000":
            assert [finding.name.lower() in text for finding in study.findings if finding.status == "present"] == [True]
            continue
        for label in collection.label_names:
            count = sum(region.label == label for region in study.regions)
            if name == "dsb2018-nuclei":
                count = len(collection.records[index].masks)
            assert quantity(count, label.lower()) in text


def test_voc_boxes_are_half_open_and_cut_at_the_edges(tmp_path):
    path = tmp_path / "a.xml"

    def written(*objects):
        items = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
            "</object>"
            for name, a, b, c, d in objects
        )
        path.write_text(f"<annotation><size><width>40</width><height>30</height></size>{items}</annotation>")
        return read_boxes(path)

    boxes, faults = written(("RBC", 1, 1, 10, 20), ("WBC", 0, 5, 41, 31), ("Platelets", 7, 7, 7, 9))
    assert [box.box for box in boxes] == [(0, 0, 10, 20), (0, 4, 40, 30)]
    assert boxes[0].shape == (30, 40) and len(faults) == 1 and "encloses nothing" in faults[0]
    with pytest.raises(KitError, match="unknown cell 'Yeast'"):
        written(("Yeast", 1, 1, 2, 2))
    path.write_text("<annotation><size>")
    with pytest.raises(KitError, match="not a readable annotation"):
        read_boxes(path)


def test_boxes_lie_on_the_cells(roots):
    """White cells are drawn dark violet: their boxes are darker than the rest of the picture."""
    collection = datasets.load("bccd", roots["bccd"])
    size, seen = 96, 0
    pictures = collection.images(range(len(collection)), size=size).mean(1)
    for index in range(len(collection)):
        for region in collection.regions(index, size=size):
            if region.label == "White blood cell":
                x0, y0, x1, y1 = map(round, region.box)
                assert pictures[index, y0:y1, x0:x1].mean() < pictures[index].mean()
                seen += 1
    assert seen > 5


def test_masks_of_nuclei_become_regions(roots):
    collection = datasets.load("dsb2018-nuclei", roots["dsb2018-nuclei"])
    pictures = collection.images([0], size=96).mean(1)[0]
    regions = collection.regions(0, size=96)
    assert len(regions) == len(collection.records[0].masks) and {r.label for r in regions} == {NUCLEUS}
    inside = torch.stack([region.mask for region in regions]).any(0)
    assert pictures[inside].mean() < pictures[~inside].mean() - 0.3


def test_official_lists_of_smears(roots, tmp_path):
    collection = Bccd(roots["bccd"], splitting="official")
    assert {name: len(collection.split(name)) for name in SPLITS} == {"train": 12, "validation": 6, "test": 6}
    root = miniature.build("bccd", tmp_path, studies=12)
    (root / LISTS / "test.txt").write_text("")
    assert "smear that no list names" in Bccd(root, splitting="official").notice
    (root / LISTS / "test.txt").write_text("BloodImage_00000\n")
    with pytest.raises(KitError, match="also listed for train"):
        Bccd(root, splitting="official")


def test_what_is_left_out_is_counted(tmp_path):
    root = miniature.build("bccd", tmp_path, studies=12)
    (root / "BCCD/JPEGImages/BloodImage_00003.jpg").unlink()
    collection = Bccd(root)
    assert len(collection) == 11 and "picture is missing" in collection.notice and len(collection.problems) >= 1
    nuclei = miniature.build("dsb2018-nuclei", tmp_path, studies=12)
    for mask in (nuclei / "stage1_train" / f"{2:064x}" / "masks").iterdir():
        mask.unlink()
    assert "1 field without masks" in datasets.load("dsb2018-nuclei", nuclei).notice


@pytest.mark.parametrize(("name", "gone"), [("bccd", ANNOTATIONS), ("lc25000", f"{FOLDER}/lung_n")])
def test_an_incomplete_layout_is_named(tmp_path, name, gone):
    root = miniature.build(name, tmp_path, studies=12)
    (root / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(KitError, match="is missing"):
        datasets.load(name, root)


def test_words_of_captions():
    assert [quantity(n, "platelet") for n in (0, 1, 2, 12)] == ["no platelets", "one platelet", "two platelets", "12 platelets"]
    assert quantity(3, "nucleus") == "three nuclei"
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert caption(["x"], picture="slide", key="k") == caption(["x"], picture="slide", key="k")
    wordings = {count_caption({"platelet": 1}, picture="blood smear", key=str(key)) for key in range(30)}
    assert len(wordings) == 3 and all("one platelet" in text.lower() for text in wordings)


def test_real_sets_of_labels(data_folder):
    bccd = datasets.load("bccd", data_folder / "bccd")
    assert len(bccd) == 292 and "without an area" in bccd.notice
    nuclei = datasets.load("dsb2018-nuclei", data_folder / "dsb2018-nuclei")
    assert len(nuclei) == 130 and sum(len(record.masks) for record in nuclei.records) == 5_823
    lung = datasets.load("lc25000", data_folder / "lc25000-lung")
    assert len(lung) == 480 and lung.labels(range(480)).sum(0).tolist() == [160.0] * len(CLASSES)
    for collection in (bccd, nuclei, lung):
        assert collection.images(range(8), size=48).std() > 0.05
        assert all(len(collection.split(name)) > 5 for name in SPLITS)
