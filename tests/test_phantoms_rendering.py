"""Pictures, masks and the collection: does the picture show what the scene says, where it says it?"""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from threading import current_thread

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import FINDINGS, Phantoms, Scene, Sign, World, atlas, chest
from medvlp_kit.phantoms.anatomy import LEFT, Anatomy
from medvlp_kit.phantoms.film import Film
from medvlp_kit.phantoms.frontal import Frontal
from medvlp_kit.phantoms.sampling import scene
from medvlp_kit.phantoms.scene import SEVERITIES, SIDED, SIDES, ZONED, ZONES
from medvlp_kit.phantoms.threads import spread

SIZE = 64


def body(index: int, *signs: Sign) -> Scene:
    return replace(scene(World(normal_fraction=1), 4, index), signs=signs, prior=None, changes=())


def example(name: str, side: str = "left", zone: str = "middle", **more) -> Sign:
    return Sign(name, side if name in SIDED else None, zone if name in ZONED else None, **more)


def difference(with_sign: list[Scene], view: str = "frontal", size: int = SIZE) -> torch.Tensor:
    """(B, H, W): by how much the signs brighten or darken each pixel."""
    without = [replace(each, signs=()) for each in with_sign]
    return (chest.render(with_sign, size=size, view=view) - chest.render(without, size=size, view=view))[:, 0]


@pytest.fixture(scope="module")
def mixture() -> list[Scene]:
    return [scene(World(normal_fraction=0.1), 9, index) for index in range(70)]


@pytest.mark.parametrize("view", chest.VIEWS)
@pytest.mark.parametrize("size", [16, 33, 64])
def test_pictures_are_pictures(mixture, view, size):
    pictures = chest.render(mixture[:6], size=size, view=view)
    assert pictures.shape == (6, 1, size, size) and pictures.dtype == torch.float32
    assert pictures.isfinite().all() and pictures.min() >= 0 and pictures.max() <= 1
    assert (pictures.flatten(1).std(dim=1) > 0.1).all()  # not blank


@pytest.mark.parametrize("view", chest.VIEWS)
def test_a_picture_does_not_depend_on_its_batch(mixture, view, monkeypatch):
    monkeypatch.setattr(chest, "CHUNK", 32 * SIZE**2)  # several chunks of several parts
    monkeypatch.setattr(chest, "PART", 5 * SIZE**2)
    together = chest.render(mixture, size=SIZE, view=view)
    order = [41, 3, 69, 12, 0, 64]
    apart = torch.cat([chest.render([mixture[row]], size=SIZE, view=view) for row in order])
    torch.testing.assert_close(apart, together[order], rtol=0, atol=2e-6)


def test_drawing_leaves_the_global_random_state_alone(mixture):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    chest.render(mixture[:4], size=32)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_scenes_no_pictures():
    assert chest.render([], size=SIZE).shape == (0, 1, SIZE, SIZE)
    assert chest.regions([], size=SIZE) == []


@pytest.mark.parametrize("view", chest.VIEWS)
@pytest.mark.parametrize("name", FINDINGS)
def test_a_sign_changes_the_picture_only_inside_its_regions(name, view):
    exams = [
        body(index, example(name, SIDES[index % 2], ZONES[index % 3], severity=SEVERITIES[index % 3]))
        for index in range(9)
    ]
    energy = difference(exams, view, 96).square()
    for each, found in zip(energy, chest.regions(exams, size=96, view=view), strict=True):
        mask = torch.stack([region.mask for region in found]).any(0)
        near = functional.max_pool2d(mask[None].float(), 7, stride=1, padding=3)[0] > 0
        assert each.sum() > 0.05, "the sign cannot be seen"
        assert each[near].sum() >= 0.95 * each.sum()


@pytest.mark.parametrize("name", [name for name in FINDINGS if name in SIDED])
@pytest.mark.parametrize("side", SIDES)
def test_the_patients_left_is_on_the_pictures_right(name, side):
    exams = [body(index, example(name, side)) for index in range(6)]
    columns = torch.arange(SIZE) + 0.5
    for each, found in zip(difference(exams).abs(), chest.regions(exams, size=SIZE), strict=True):
        mask = torch.stack([region.mask for region in found]).any(0).float()
        for weights in (each, mask):
            middle = (weights.sum(0) * columns).sum() / weights.sum()
            assert (middle > SIZE / 2) == (side == "left")
        assert all(region.side == side and region.label == name for region in found)


@pytest.mark.parametrize("name", ["Consolidation", "Atelectasis", "Pleural Effusion"])
def test_a_sign_on_both_sides_has_two_regions(name):
    (found,) = chest.regions([body(1, example(name, "bilateral"))], size=SIZE)
    assert [region.side for region in found] == ["right", "left"]
    right, left = (region.box for region in found)
    assert right[2] <= left[0]


@pytest.mark.parametrize("view", chest.VIEWS)
@pytest.mark.parametrize("name", ZONED)
def test_zones_lie_in_order(name, view):
    heights = []
    for zone in ZONES:
        exams = [body(index, example(name, SIDES[index % 2], zone, severity="mild")) for index in range(12)]
        rows = torch.arange(SIZE) + 0.5
        weight = difference(exams, view).abs().sum(2)
        heights.append((weight * rows).sum(1) / weight.sum(1))
    assert (heights[0] + 4 < heights[1]).all() and (heights[1] + 4 < heights[2]).all()


@pytest.mark.parametrize("name", ["Lung Lesion", "Fracture"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_lesion_and_each_broken_rib_has_a_region(name, count):
    exams = [body(index, example(name, count=count, severity="mild")) for index in range(6)]
    assert [len(found) for found in chest.regions(exams, size=128)] == [count] * 6


def test_boxes_are_half_open_and_tight(mixture):
    for view in chest.VIEWS:
        for region in (region for found in chest.regions(mixture[:20], size=48, view=view) for region in found):
            x0, y0, x1, y1 = map(int, region.box)
            assert region.mask.shape == (48, 48) and region.mask.dtype == torch.bool and region.view == view
            assert region.mask[y0:y1, x0:x1].sum() == region.mask.sum()
            sub = region.mask[y0:y1, x0:x1]
            assert sub[0].any() and sub[-1].any() and sub[:, 0].any() and sub[:, -1].any()


@pytest.mark.parametrize("name", [name for name in FINDINGS if name != "Support Devices"])
def test_graver_is_more_conspicuous_and_possible_is_fainter(name):
    def strength(**more) -> torch.Tensor:
        return difference([body(index, example(name, zone="lower", **more)) for index in range(8)]).square().sum((1, 2))

    mild, moderate, severe = (strength(severity=severity).mean() for severity in SEVERITIES)
    assert mild * 1.1 < moderate and moderate * 1.05 < severe
    assert (strength(certainty="possible") < 0.9 * strength()).all()


def test_signs_of_density_brighten_and_air_darkens():
    for name in FINDINGS:
        change = difference([body(index, example(name, severity="severe")) for index in range(4)]).sum()
        assert (change < 0) == (name == "Pneumothorax"), name


def test_the_radiograph_has_its_landmarks():
    exams = [body(index) for index in range(24)]
    pictures = chest.render(exams, size=SIZE)[:, 0]
    view = Frontal(exams, SIZE, "cpu")
    inside, air = torch.empty((2, 24, 2, SIZE, view.strip))
    view.fields(inside=inside, air=air)
    x, y = view.position()
    lung = torch.zeros_like(pictures, dtype=torch.bool)
    lung[..., : view.strip] |= inside[:, 0] > 0.99
    lung[..., SIZE - view.strip :] |= inside[:, 1] > 0.99
    lung &= (x.abs() > 0.3) & (y > -0.3)
    for row in range(len(exams)):
        air = pictures[row][lung[row]].mean()
        heart = pictures[row][(x[row].abs() < 0.1) & (y[row] > 0.1) & (y[row] < 0.3)].mean()
        belly = pictures[row][(x[row].abs() < 0.4) & (y[row] > 0.75)].mean()
        assert air + 0.25 < heart and air + 0.3 < belly
    assert (view.heart_left.amax(1) > 1.5 * view.heart_right.amax(1)).all()  # the heart is on the patient's left
    assert (view.dome[:, 0].amin(-1) < view.dome[:, LEFT].amin(-1) + 0.03).all()  # the right diaphragm is the higher


def test_the_cardiothoracic_ratio_says_cardiomegaly():
    def ratio(signs) -> torch.Tensor:
        view = Frontal([replace(body(index, *signs), projection="PA") for index in range(30)], SIZE, "cpu")
        return (view.heart_left.amax(1) + view.heart_right.amax(1)).flatten() / view.outer.amax(2).sum(1).flatten()

    assert ratio(()).max() < 0.5 < ratio([Sign("Cardiomegaly", severity="mild")]).min()
    assert ratio([Sign("Cardiomegaly", severity="severe")]).mean() > 0.6


def test_the_marker_tells_the_truth(monkeypatch):
    exams = [body(index) for index in range(40)]
    marker = Anatomy(exams).marker.long()
    with_letter = chest.render(exams, size=128)[:, 0]
    monkeypatch.setattr(Film, "_marker", lambda self, film: None)
    changed = (with_letter - chest.render(exams, size=128)[:, 0]).abs() > 0.02
    assert set(marker.tolist()) == {0, 1, 2}
    for row, letter in enumerate(marker.tolist()):
        columns = changed[row].any(0).nonzero()
        if letter == 0:
            assert not len(columns)
        elif letter == 1:  # R: the patient's right, the picture's left
            assert columns.max() < 50
        else:
            assert columns.min() > 78


def test_nuisance_does_not_know_the_findings():
    """Body, pose and exposure come from `draw` alone, so they cannot give a finding away."""
    plain, ill = Anatomy([body(index) for index in range(9)]), Anatomy([body(i, example("Edema")) for i in range(9)])
    assert torch.equal(plain._columns, ill._columns)


def test_both_views_show_a_sign_at_the_same_height():
    for zone in ZONES:
        exams = [body(index, example("Lung Lesion", zone=zone)) for index in range(8)]
        pairs = zip(*(chest.regions(exams, size=SIZE, view=view) for view in chest.VIEWS), strict=True)
        for frontal, lateral in pairs:
            middles = [(found[0].box[1] + found[0].box[3]) / 2 for found in (frontal, lateral)]
            assert abs(middles[0] - middles[1]) < 0.1 * SIZE


def test_a_prior_exam_is_the_same_body_seen_another_day():
    exam = next(filter(lambda each: each.prior, (scene(World(prior_fraction=1), 2, index) for index in range(9))))
    now, then = Anatomy([exam]), Anatomy([exam.prior])
    assert now.lung_width == then.lung_width and now.page == then.page and now.heart_left == then.heart_left
    assert now.shift_x != then.shift_x and now.contrast != then.contrast


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(KitError, match="did you mean 'lateral'"):
        chest.render([body(0)], size=64, view="lateal")
    for size in (8, 64.0, True):
        with pytest.raises(KitError, match="whole number of pixels"):
            chest.render([body(0)], size=size)


# the collection


def test_labels_are_the_signs_of_the_scene():
    collection = Phantoms(60, world=World(possible_fraction=0.5))
    labels = collection.labels(range(60))
    assert labels.dtype == torch.float32 and collection.label_names == FINDINGS
    for index in range(60):
        signs = {sign.finding for sign in collection.scene(index).signs}
        assert {name for name, value in zip(FINDINGS, labels[index], strict=True) if value == 1} == signs
    assert set(labels.unique().tolist()) == {0.0, 1.0}


def test_study_k_is_the_same_in_a_longer_collection_and_splits_share_no_patient():
    world = World(studies_per_patient=3)
    short, long = Phantoms(5, world=world), Phantoms(50, world=world)
    assert [short.scene(i) for i in range(5)] == [long.scene(i) for i in range(5)]
    parts = {name: long.split(name) for name in ("train", "validation", "test")}
    patients = {name: {part.scene(i).patient for i in range(50)} for name, part in parts.items()}
    assert all(len(ids) == 17 for ids in patients.values())
    assert len(set.union(*patients.values())) == 51
    assert parts["train"].scene(7) == long.scene(7) and parts["test"].study(0).split == "test"


def test_images_by_view_and_of_priors():
    collection = Phantoms(12, world=World(prior_fraction=0.5))
    prior = collection.images(range(12), size=32, view="prior")
    for index in range(12):
        before = collection.scene(index).prior
        expected = torch.zeros(1, 32, 32) if before is None else chest.render([before], size=32)[0]
        torch.testing.assert_close(prior[index], expected, rtol=0, atol=2e-6)
        assert (before is None) == (not collection.regions(index, size=32, view="prior") and not prior[index].any())
    assert not torch.equal(collection.images([0], size=32), collection.images([0], size=32, view="lateral"))
    with pytest.raises(KitError, match="unknown view"):
        collection.images([0], size=32, view="side")


def test_a_study_holds_everything_and_can_be_sent():
    collection = Phantoms(30, world=World(prior_fraction=1, normal_fraction=0), image_size=40)
    for index in (0, 17):
        study = collection.study(index)
        sent = pickle.loads(pickle.dumps(study))
        assert sent.report == study.report == collection.report(index) and study.questions and study.findings
        assert [view.name for view in study.views] == ["frontal", "lateral"]
        torch.testing.assert_close(sent.views[0].load(), collection.images([index], size=40)[0], rtol=0, atol=2e-6)
        assert {region.label for region in study.regions} == {finding.name for finding in study.findings}
        assert all(region.mask.shape == (40, 40) for region in study.regions)
        assert study.prior.patient == study.patient and study.prior.identifier != study.identifier


def test_what_a_collection_refuses():
    for bad, message in (
        ({"size": 0}, "size"),
        ({"size": 5, "split": "dev"}, "split"),
        ({"size": 5, "seed": "x"}, "seed"),
        ({"size": 5, "image_size": 3}, "pixels"),
    ):
        with pytest.raises(KitError, match=message):
            Phantoms(**bad)
    with pytest.raises(KitError, match="indices go from 0 to 4"):
        Phantoms(5).scene(5)


@pytest.fixture
def two_threads():
    """Torch's setting of two threads, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_draw_the_same_pictures(mixture, monkeypatch, two_threads):
    alone = chest.render(mixture, size=64)
    monkeypatch.setattr(chest, "SHARE", 64 * 64)  # a share of one picture: as many threads as there may be
    named = set()
    plain = chest._draw

    def watched(*arguments, **options):
        named.add(current_thread().name)
        return plain(*arguments, **options)

    monkeypatch.setattr(chest, "_draw", watched)
    torch.testing.assert_close(chest.render(mixture, size=64), alone, rtol=0, atol=1e-6)
    assert named and all(name.startswith("phantoms") for name in named)
    assert torch.get_num_threads() == 2, "the threads' own setting must not become everyone's"


def test_half_precision_of_the_caller_changes_nothing(mixture):
    atlas._pages.cache_clear()  # as in a fresh process, where the first picture draws the banks
    atlas.pages.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        pictures, boxes = chest.render(mixture[:4], size=48), chest.regions(mixture[:4], size=48)
    assert torch.equal(pictures, chest.render(mixture[:4], size=48))
    assert [[r.box for r in each] for each in boxes] == [[r.box for r in each] for each in chest.regions(mixture[:4], size=48)]


def test_an_error_in_a_thread_is_raised(two_threads):
    def work(piece: int) -> None:
        raise KitError(f"piece {piece} cannot be drawn")

    with pytest.raises(KitError, match="piece 3"):
        spread(work, [3, 4, 5])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_reader_draws_too(mixture, monkeypatch, two_threads):
    """A forked background reader has none of its parent's threads, and would wait for them for ever."""
    monkeypatch.setattr(chest, "SHARE", 32 * 32)
    expected = chest.render(mixture, size=32)  # starts the parent's threads
    loader = DataLoader([mixture], batch_size=None, num_workers=1, timeout=60, multiprocessing_context="fork",
                        collate_fn=_render_with_threads)  # fmt: skip
    torch.testing.assert_close(next(iter(loader)), expected, rtol=0, atol=1e-6)


def _render_with_threads(scenes: list[Scene]) -> torch.Tensor:
    torch.set_num_threads(2)
    return chest.render(scenes, size=32)
