"""Probes: models that know the answer, models that always say the same, and brute force."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planted import Oracle, Planted, Words

from medvlp_kit.augment.crops import share_inside
from medvlp_kit.budget import budget
from medvlp_kit.downstream.encode import Examination
from medvlp_kit.downstream.probes import (
    blank_image,
    crop_consistency,
    negation,
    severity_order,
    zone,
)
from medvlp_kit.downstream.probes.cases import balanced_mean, verdict
from medvlp_kit.downstream.probes.crops import crop_cases
from medvlp_kit.downstream.probes.severity import concordance, ends, graded
from medvlp_kit.downstream.prompts import denials, negatives, normal_statements, phrases
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.phantoms.scene import FINDINGS, SEVERITIES, ZONED, ZONES

SIZES = budget("tiny").but(test_studies=60, resamples=200)


@pytest.fixture(scope="module")
def phantoms():
    return Phantoms(60, split="test", image_size=32)


def told(collection, score, control=lambda scene, text: 0.0):
    """An examination of a model that is a function of the scene and the text."""

    class Exam(SimpleNamespace):
        budget, where = SIZES, "here"

        def __len__(self):
            return len(collection)

        def scores(self, texts):
            scenes = [collection.scene(i) for i in range(len(collection))]
            return torch.tensor([[float(self.function(scene, text)) for text in texts] for scene in scenes])

    return Exam(collection=collection, function=score, control=Exam(collection=collection, function=control))


def ask(probe, exam):
    return probe(None, None, exam.collection, examination=exam)


# the mean over strata


def test_the_balanced_mean_gives_a_fixed_answer_one_half_and_equals_a_plain_loop():
    generator = np.random.default_rng(0)
    studies, strata = np.repeat(np.arange(40), 3), generator.integers(0, 2, 120)
    assert balanced_mean(strata.astype(float), studies, strata, resamples=50, seed=0).value == 0.5
    values = generator.random(120)
    found = balanced_mean(values, studies, strata, resamples=200, seed=0)
    assert float(found.value) == pytest.approx(np.mean([values[strata == s].mean() for s in (0, 1)]))
    from medvlp_kit.downstream.intervals import resample_counts

    counts = resample_counts(40, resamples=200, generator=np.random.default_rng(0))
    for r in (0, 7, 199):
        weight = counts[studies, r]
        slow = np.mean([np.average(values[strata == s], weights=weight[strata == s]) for s in (0, 1)])
        assert found.samples[r] == pytest.approx(slow)


def test_a_verdict_on_equal_scores_is_one_half():
    assert verdict(np.array([2.0, 1.0, 0.0]), np.ones(3)).tolist() == [1.0, 0.5, 0.0]


# negation

SAYS = {s: (f, True) for f in FINDINGS for s in phrases(f)} | {s: (f, False) for f in FINDINGS for s in denials(f)}


def knows(scene, text):
    finding, affirmed = SAYS[text]
    return (scene.sign(finding) is not None) == affirmed


def test_negation_tells_a_reader_from_a_model_that_is_deaf_to_no_and_from_one_that_always_affirms(phantoms):
    reads = ask(negation, told(phantoms, knows))
    assert reads.value == 1.0 and reads.passed and reads.unit == "statements"
    assert ask(negation, told(phantoms, lambda scene, text: scene.sign(SAYS[text][0]) is not None)).value == 0.5
    always = ask(negation, told(phantoms, lambda scene, text: SAYS[text][1]))
    assert always.value == 0.5 and not always.passed
    common = ("Pleural Effusion", "Cardiomegaly", "Consolidation")  # affirms what is common: still nothing seen
    biased = ask(negation, told(phantoms, lambda scene, text: SAYS[text][1] == (SAYS[text][0] in common)))
    assert biased.value == pytest.approx(0.5)


def test_denials_name_the_finding_and_negatives_add_what_denies_everything():
    assert set(denials("Fracture")) & set(normal_statements()) == set() and len(denials("Fracture")) == 12
    assert negatives("Fracture") == [*denials("Fracture", limit=3), *normal_statements()]
    assert denials("Nodule") == negatives("Nodule") == ["No nodule."]
    with pytest.raises(KitError, match="kind of prompt"):
        denials("Fracture", kind="own")


# zone


PLACES = [(f, side, place) for f in ZONED for side in ("left", "right", "bilateral") for place in ZONES]
WHERE = {s: case for case in PLACES for s in phrases(case[0], side=case[1], zone=case[2])}


def test_zone_tells_a_model_that_knows_from_one_with_a_favourite():
    phantoms = Phantoms(90, split="test", image_size=32)

    def right(scene, text):
        finding, side, place = WHERE[text]
        sign = scene.sign(finding)
        return sign is not None and (sign.side, sign.zone) == (side, place)

    knowing = ask(zone, told(phantoms, right))
    assert knowing.value == 1.0 and knowing.passed
    assert knowing.controls[0].value == pytest.approx(1 / 3)
    for place in ZONES:
        favourite = ask(zone, told(phantoms, lambda scene, text: WHERE[text][2] == place))  # noqa: B023
        assert favourite.value == pytest.approx(1 / 3) and not favourite.passed
    assert ask(zone, told(phantoms, lambda scene, text: 0)).value == pytest.approx(1 / 3)  # ties share the point


# severity


def slow_concordance(scores, grades):
    pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores)) if grades[i] > grades[j]]
    return np.mean([(np.sign(scores[i] - scores[j]) + 1) / 2 for i, j in pairs]) if pairs else np.nan


def test_concordance_equals_all_pairs_also_on_resamples_and_with_ties():
    generator = np.random.default_rng(0)
    for _ in range(30):
        count = int(generator.integers(2, 12))
        scores, grades = generator.integers(0, 4, count).astype(float), generator.integers(0, 3, count)
        drawn = generator.integers(0, count, (5, count))
        weights = np.stack([np.bincount(row, minlength=count) for row in drawn], axis=1).astype(float)
        slow = [slow_concordance(scores[row], grades[row]) for row in drawn]
        np.testing.assert_allclose(concordance(scores, grades, weights), slow)


def test_severity_order_tells_order_from_its_reverse_and_from_none(phantoms):
    grade = {s: (f, k) for f in FINDINGS for k, words in enumerate(ends(f)) for s in words}

    def severe(scene, text):
        finding, end = grade[text]
        sign = scene.sign(finding)
        return 0 if sign is None else (2 * end - 1) * SEVERITIES.index(sign.severity)

    cases = graded(phantoms)
    assert "Support Devices" not in cases and len(cases) >= 6  # a device has no severity
    assert ask(severity_order, told(phantoms, severe)).value == 1.0
    assert ask(severity_order, told(phantoms, lambda scene, text: -severe(scene, text))).value == 0.0
    level = ask(severity_order, told(phantoms, lambda scene, text: grade[text][1]))
    assert level.value == 0.5 and not level.passed


def test_the_ends_of_a_severity_leave_out_what_says_nothing_of_it():
    mild, severe = ends("Pleural Effusion")
    assert mild and severe and not set(mild) & set(severe) and not (set(mild) | set(severe)) & set(phrases("Pleural Effusion"))
    assert any("small" in s for s in mild) and any("large" in s for s in severe)
    assert ends("Support Devices") == ([], [])


# crops and blank pictures


class Blind(Oracle):
    def similarity(self, image, text):
        return torch.zeros(len(image.pooled), len(text.pooled))


def planted(model=Oracle, size=40):
    words = Words()
    return Examination(model(words), words, Planted(size), budget=SIZES)


def test_parts_hold_a_finding_whole_or_show_nothing_of_it(phantoms):
    phantoms = phantoms.subset(range(20))
    cases = list(crop_cases(SimpleNamespace(budget=SIZES, collection=phantoms)))
    assert len(cases) > 5
    for i, name, keep, cut in cases:
        regions = [r for r in phantoms.regions(i, size=SIZES.image_size) if r.label == name]
        assert all(share_inside(r, tuple(part)) == pytest.approx(1) for part in keep for r in regions)
        assert all(share_inside(r, tuple(part)) == 0 for part in cut for r in regions)


def test_crop_consistency_tells_a_model_that_sees_from_a_blind_one_and_draws_each_part_once():
    exam = planted()
    result = ask(crop_consistency, exam)
    assert result.value == 1.0 and result.passed
    same = next(control for control in result.controls if control.name.startswith("same parts"))
    assert same.low <= 0.5 <= same.high  # nothing there to cut away
    assert exam.model.images_seen == 4 * result.n  # two parts with the finding, two without
    blind = ask(crop_consistency, planted(Blind))
    assert blind.value == 0.5 and not blind.passed


@torch.no_grad()
def test_a_blank_picture_is_the_threshold():
    exam = planted()
    result = blank_image(None, None, exam.collection, examination=exam, kind="plain")
    assert exam.model.images_seen == len(exam) + 3
    pictures = exam.collection.images(range(len(exam)), size=SIZES.image_size)
    shares = []
    for finding, present in zip(exam.collection.label_names, exam.collection.labels(range(len(exam))).T == 1):
        pair = [f"There is {finding.lower()}.", f"No {finding.lower()}."]

        def more(images):
            score = exam.model.similarity(exam.model.encode_image(images), exam.prompts(pair))  # noqa: B023
            return score[:, 0] - score[:, 1]

        level = np.mean([float(more(torch.full_like(pictures[:1], grey))) for grey in (0, float(pictures.mean()), 1)])
        right = [(float(e) > level) == bool(there) for e, there in zip(more(pictures), present)]
        shares += [np.mean([r for r, there in zip(right, present) if there == half]) for half in (True, False)]
    assert result.value == pytest.approx(np.mean(shares)) and result.value > 0.9 and result.passed
    assert (result.table["evidence in black"] == 0).all()  # of black nothing can be said
    assert ask(blank_image, planted(Blind)).value == 0.5


@pytest.mark.parametrize("probe", [zone, severity_order])
def test_data_that_do_not_allow_a_probe_give_one_line(probe):
    with pytest.raises(KitError, match="cannot be probed") as caught:
        ask(probe, planted())
    assert "\n" not in str(caught.value)


def test_data_without_boxes_have_nothing_to_cut():
    words = Words()
    exam = Examination(Oracle(words), words, Planted(10, boxes=False), budget=SIZES)
    with pytest.raises(KitError, match="a part of the picture could show"):
        ask(crop_consistency, exam)
