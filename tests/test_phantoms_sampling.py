"""Which exam is study k, and does every knob of the world do what it says?"""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvlp_kit.errors import KitError
from medvlp_kit.phantoms.sampling import World, scene
from medvlp_kit.phantoms.scene import (
    BILATERAL,
    CERTAINTIES,
    CHANGES,
    FINDINGS,
    SEVERITIES,
    SIDED,
    SIDES,
    ZONED,
    ZONES,
)
from medvlp_kit.phantoms.streams import combine, uniforms


def scenes(count: int, seed: int = 3, **knobs):
    world = World(**knobs)
    return [scene(world, seed, index) for index in range(count)]


def share(exams, *names: str) -> float:
    return sum(all(exam.sign(name) for name in names) for exam in exams) / len(exams)


def splitmix(state: int, count: int) -> list[int]:
    """SplitMix64 written with plain integers, as in the paper."""
    word, numbers = (1 << 64) - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & word
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        numbers.append(z ^ (z >> 31))
    return numbers


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=4), st.integers(1, 9))
def test_streams_are_splitmix64(keys, count):
    expected = [[(number >> 40) / 2**24 for number in splitmix(key, count)] for key in keys]
    assert np.array_equal(uniforms(keys, count), np.array(expected, dtype=np.float32))


def test_splitmix_oracle_gives_the_published_first_number():
    assert splitmix(0, 1) == [0xE220A8397B1DCDAF]


def test_stream_numbers_depend_on_every_part_and_on_order():
    keys = {combine(*parts) for parts in [(0, 1), (1, 0), (0, 0), (0,), (0, 0, 0), (-1, 0), (0, 1 << 40)]}
    assert len(keys) == 7


def test_a_study_is_the_same_whenever_it_is_asked_for():
    world = World()
    forwards = [scene(world, 5, index) for index in range(40)]
    assert [scene(World(), 5, index) for index in reversed(range(40))] == forwards[::-1]
    assert [scene(world, 6, index) for index in range(40)] != forwards


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("normal_fraction", 1.2),
        ("normal_fraction", "half"),
        ("possible_fraction", -0.1),
        ("prior_fraction", float("nan")),
        ("ap_fraction", True),
        ("cooccurrence", 2),
        ("long_tail", -1),
        ("studies_per_patient", 0),
        ("studies_per_patient", 1.5),
        ("severity_mix", (1, 2)),
        ("severity_mix", (0, 0, 0)),
        ("severity_mix", 0.3),
        ("prevalence", {"Edema": 1.5}),
        ("prevalence", {"Edma": 0.1}),
        ("prevalence", {"Edema": 0.0}),
        ("prevalence", 0.2),
        ("change_mix", {"new": -1}),
        ("change_mix", {"gone": 1}),
    ],
)
def test_a_bad_knob_is_named(knob, value):
    with pytest.raises(KitError, match=knob) as caught:
        World(**{knob: value})
    assert "\n" not in str(caught.value)


def test_a_world_can_be_copied_sent_and_written_down():
    world = World(prevalence={"Edema": 0.5}, severity_mix=[1, 0, 0])
    assert pickle.loads(pickle.dumps(world)) == world == copy.deepcopy(world) == World(**asdict(world))
    assert hash(world) == hash(copy.deepcopy(world))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 40), st.integers(0, 1 << 33), st.integers(1, 3))
def test_every_scene_makes_sense(seed, index, many):
    exam = scene(World(bilateral_fraction=0.5, prior_fraction=0.7, studies_per_patient=many), seed, index)
    for each in filter(None, (exam, exam.prior)):
        assert len({sign.finding for sign in each.signs}) == len(each.signs)
        assert [sign.finding for sign in each.signs] == sorted((s.finding for s in each.signs), key=FINDINGS.index)
        for sign in each.signs:
            assert sign.finding in FINDINGS and sign.severity in SEVERITIES and sign.certainty in CERTAINTIES
            assert (sign.side is None) == (sign.finding not in SIDED)
            assert sign.side in (None, *SIDES) or (sign.side == "bilateral" and sign.finding in BILATERAL)
            assert (sign.zone in ZONES) == (sign.finding in ZONED)
            assert 1 <= sign.count <= (3 if sign.finding in ("Lung Lesion", "Fracture") else 1)
        assert 20 <= each.age <= 90 and each.sex in "FM" and each.projection in ("PA", "AP")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000))
def test_changes_agree_with_both_exams(index):
    """The changes are worked out again from the two lists of signs alone."""
    exam = scene(World(prior_fraction=1, normal_fraction=0.1, possible_fraction=0.3), 1, index)
    before = exam.prior
    assert before.patient == exam.patient and (before.sex, before.age) == (exam.sex, exam.age)
    assert before.prior is None and before.changes == ()
    assert before.draw >> 32 == exam.draw >> 32 and before.draw != exam.draw
    expected = {}
    for name in FINDINGS:
        now, then = exam.sign(name), before.sign(name)
        if now is None and then is None:
            continue
        if then is None:
            kind = "new"
        elif now is None:
            kind = "resolved"
        else:
            assert (now.side, now.zone, now.count) == (then.side, then.zone, then.count)
            better = SEVERITIES.index(then.severity) - SEVERITIES.index(now.severity)
            kind = "improved" if better > 0 else "worsened" if better < 0 else "unchanged"
        expected[name] = (kind, (now or then).side)
    assert {change.finding: (change.kind, change.side) for change in exam.changes} == expected
    assert len(exam.changes) == len(expected)


def test_every_kind_of_change_happens_and_the_mix_moves_it():
    def kinds(**mix):
        exams = scenes(300, prior_fraction=1, normal_fraction=0, **({"change_mix": mix} if mix else {}))
        return Counter(change.kind for exam in exams for change in exam.changes)

    assert set(kinds()) == set(CHANGES)
    assert set(kinds(new=1)) == {"new"}
    assert set(kinds(unchanged=1)) == {"unchanged"}


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_shares_of_normal_studies_priors_and_projections(fraction):
    exams = scenes(1500, normal_fraction=fraction, prior_fraction=fraction, ap_fraction=fraction)
    for value in (
        sum(exam.normal for exam in exams),
        sum(exam.prior is not None for exam in exams),
        sum(exam.projection == "AP" for exam in exams),
    ):
        assert abs(value / 1500 - fraction) < 0.04


def test_margins_do_not_depend_on_how_findings_go_together():
    loose, tight = (scenes(6000, normal_fraction=0, cooccurrence=value) for value in (0.0, 1.0))
    for name in FINDINGS:
        assert abs(share(loose, name) - share(tight, name)) < 0.06, name
    for pair in (("Pleural Effusion", "Atelectasis"), ("Cardiomegaly", "Edema")):
        assert share(tight, *pair) > 1.8 * share(loose, *pair)


def test_prevalence_and_its_long_tail():
    assert {s.finding for exam in scenes(200, prevalence={"Edema": 0.3}) for s in exam.signs} == {"Edema"}
    flat, steep = (scenes(4000, normal_fraction=0, long_tail=tail, cooccurrence=0) for tail in (0.0, 1.0))
    assert share(steep, "Pleural Effusion") > 1.5 * share(flat, "Pleural Effusion")  # the commonest
    assert share(steep, "Fracture") < 0.6 * share(flat, "Fracture")  # among the rarest


def test_shares_among_signs():
    exams = scenes(3000, possible_fraction=0.5, severity_mix=(1, 0, 3), bilateral_fraction=0.7, several_fraction=0)
    signs = [sign for exam in exams for sign in exam.signs]
    graded = [sign for sign in signs if sign.finding != "Support Devices"]
    assert abs(sum(sign.certainty == "possible" for sign in graded) / len(graded) - 0.5) < 0.04
    assert abs(sum(sign.severity == "mild" for sign in graded) / len(graded) - 0.25) < 0.04
    both = [sign.side == "bilateral" for sign in signs if sign.finding in BILATERAL]
    assert abs(sum(both) / len(both) - 0.7) < 0.05
    assert {sign.count for sign in signs} == {1}
    sides = Counter(sign.side for sign in signs if sign.side in SIDES)
    assert abs(sides["left"] / sides.total() - 0.5) < 0.05


def test_studies_of_one_patient_share_the_body():
    exams = scenes(12, studies_per_patient=4)
    for group in (exams[0:4], exams[4:8], exams[8:12]):
        assert len({(exam.patient, exam.draw >> 32, exam.sex, exam.age) for exam in group}) == 1
        assert len({exam.draw for exam in group}) == 4
    assert len({exam.patient for exam in exams}) == 3


def test_there_is_no_study_before_the_first():
    with pytest.raises(KitError, match="start at 0"):
        scene(World(), 0, -1)
