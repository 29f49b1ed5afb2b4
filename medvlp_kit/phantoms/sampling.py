"""Sampling scenes: what a world of exams is like (`World`) and which exam study k is (`scene`).

Findings are drawn as a tree of Bernoulli variables (effusion brings atelectasis, a large heart brings edema, ...)
whose margins do not depend on how strongly they go together. Studies that are not normal and drew nothing are drawn
again, so among abnormal studies every finding is a little more frequent than its `prevalence`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType

from ..errors import KitError, unknown
from .scene import BILATERAL, CHANGES, FINDINGS, SEVERITIES, SIDED, SIDES, ZONED, ZONES, Change, Scene, Sign
from .streams import combine, uniforms

PREVALENCE = MappingProxyType({
    "Enlarged Cardiomediastinum": 0.16,
    "Cardiomegaly": 0.24,
    "Lung Lesion": 0.20,
    "Edema": 0.18,
    "Consolidation": 0.22,
    "Atelectasis": 0.22,
    "Pneumothorax": 0.18,
    "Pleural Effusion": 0.26,
    "Fracture": 0.16,
    "Support Devices": 0.22,
})  # fmt: skip
# finding -> the finding that brings it along, and how strongly (times the knob `cooccurrence`)
COMPANIONS = MappingProxyType({
    "Enlarged Cardiomediastinum": ("Cardiomegaly", 0.3),
    "Edema": ("Cardiomegaly", 0.8),
    "Pleural Effusion": ("Edema", 0.7),
    "Atelectasis": ("Pleural Effusion", 0.8),
    "Pneumothorax": ("Fracture", 0.6),
    "Support Devices": ("Cardiomegaly", 0.4),
})  # fmt: skip
CHANGE_MIX = MappingProxyType({"new": 0.25, "resolved": 0.15, "improved": 0.2, "worsened": 0.2, "unchanged": 0.35})
GRADED = tuple(name for name in FINDINGS if name not in ("Fracture", "Support Devices"))  # may improve or worsen
_ORDER = ("Cardiomegaly", "Fracture", "Lung Lesion", "Consolidation", "Enlarged Cardiomediastinum", "Edema",
          "Pleural Effusion", "Atelectasis", "Pneumothorax", "Support Devices")  # fmt: skip
_ATTEMPTS = 6
_PER_SIGN = 7  # uniforms a sign


@dataclass(frozen=True)
class World:
    """What the exams are like. Every knob is checked; a bad value is a `KitError` that names the knob."""

    normal_fraction: float = 0.25  # share of studies without any finding
    prevalence: Mapping[str, float] = field(default_factory=lambda: dict(PREVALENCE))  # among abnormal studies
    long_tail: float = 0.0  # prevalences times rank**-long_tail (rank in `prevalence`, commonest first)
    cooccurrence: float = 0.35  # 0: findings are independent; 1: companions nearly always come together
    severity_mix: tuple[float, float, float] = (0.3, 0.4, 0.3)  # weights of mild, moderate, severe
    possible_fraction: float = 0.12  # share of signs only "possible": drawn fainter, hedged in reports
    bilateral_fraction: float = 0.25  # of the signs that may be on both sides
    several_fraction: float = 0.35  # share of lesions and fractures with a count of two or three
    prior_fraction: float = 0.1  # share of studies with a prior exam of the same patient
    # what became of each finding since the prior exam
    change_mix: Mapping[str, float] = field(default_factory=lambda: dict(CHANGE_MIX))  # weights
    ap_fraction: float = 0.3  # share of AP (bedside) frontal views
    female_fraction: float = 0.5
    studies_per_patient: int = 1  # consecutive studies that share patient and anatomy

    def __post_init__(self):
        for knob in fields(self):
            value = getattr(self, knob.name)
            if knob.name.endswith("_fraction") or knob.name == "cooccurrence":
                _check(knob.name, _number(value) and 0 <= value <= 1, value, "a number from 0 to 1")
        _check("long_tail", _number(self.long_tail) and self.long_tail >= 0, self.long_tail, "a number, at least 0")
        many = self.studies_per_patient
        whole = isinstance(many, int) and not isinstance(many, bool)
        _check("studies_per_patient", whole and many >= 1, many, "a whole number, at least 1")
        mix = self.severity_mix
        good = isinstance(mix, (tuple, list)) and len(mix) == len(SEVERITIES) and _weights(mix)
        _check("severity_mix", good, mix, "three weights (mild, moderate, severe), none negative, not all 0")
        object.__setattr__(self, "severity_mix", tuple(map(float, mix)))
        for knob, names, kind in (("prevalence", FINDINGS, "finding"), ("change_mix", CHANGES, "change")):
            table = getattr(self, knob)
            _check(knob, isinstance(table, Mapping), table, f"a mapping from {kind} to number")
            for name in table:
                if name not in names:
                    raise unknown(f"{kind} in {knob}", name, names)
            _check(knob, all(map(_number, table.values())), dict(table), "numbers")
            object.__setattr__(self, knob, {name: float(table.get(name, 0)) for name in names})
        rates = self.prevalence.values()
        _check("prevalence", all(0 <= rate <= 1 for rate in rates), self.prevalence, "numbers from 0 to 1")
        if self.normal_fraction < 1:
            _check("prevalence", any(rates), self.prevalence, "above 0 for at least one finding")
        _check("change_mix", _weights(tuple(self.change_mix.values())), self.change_mix, "weights, not all 0")

    def __hash__(self):
        return hash((self.normal_fraction, self.long_tail, self.cooccurrence, *self.prevalence.values()))


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _weights(values) -> bool:
    return all(_number(v) and v >= 0 for v in values) and sum(values) > 0


def _check(knob: str, good: bool, value, wanted: str) -> None:
    if not good:
        raise KitError(f"World({knob}=...) is {value!r}: give {wanted}")


@lru_cache(maxsize=64)
def _tree(world: World) -> tuple[tuple[str, str | None, float, float], ...]:
    """Per finding, parents first: (name, parent, probability when the parent is present, when it is absent)."""
    names = sorted(FINDINGS, key=lambda name: -world.prevalence[name])
    tail = {name: (rank + 1) ** -world.long_tail for rank, name in enumerate(names)}
    total = sum(world.prevalence.values()) or 1.0
    scale = total / (sum(world.prevalence[name] * tail[name] for name in names) or 1.0)  # keeps the mean number
    rate = {name: min(0.95, world.prevalence[name] * tail[name] * scale) for name in names}
    rows = []
    for name in _ORDER:
        parent, strength = COMPANIONS.get(name, (None, 0.0))
        if parent is None or not 0 < rate[parent] < 1 or not rate[name]:
            rows.append((name, None, rate[name], rate[name]))
            continue
        pull = world.cooccurrence * strength * (1 - rate[name])
        # with the parent absent the finding is rarer by as much as keeps its margin, so the pull is capped
        pull = min(pull, rate[name] * (1 - rate[parent]) / rate[parent])
        rows.append((name, parent, rate[name] + pull, rate[name] - pull * rate[parent] / (1 - rate[parent])))
    return tuple(rows)


@lru_cache(maxsize=256)
def _cumulative(weights: tuple[float, ...]) -> tuple[float, ...]:
    total, run, steps = sum(weights), 0.0, []
    for weight in weights:
        run += weight / total
        steps.append(run)
    # numbers below 1 must always fall on a choice of positive weight
    last = max(i for i, weight in enumerate(weights) if weight > 0)
    return tuple(step if i < last else 1.0 for i, step in enumerate(steps))


def _choose(weights: tuple[float, ...], number: float) -> int:
    for i, step in enumerate(_cumulative(weights)):
        if number < step:
            return i
    return len(weights) - 1


def _found(world: World, stream: int) -> list[str]:
    """The findings of one abnormal study, in the order of FINDINGS; never empty."""
    numbers = uniforms(combine(stream, 1), _ATTEMPTS * len(FINDINGS) + 1)[0].tolist()
    tree = _tree(world)
    for attempt in range(_ATTEMPTS):
        present: set[str] = set()
        for number, (name, parent, with_parent, without) in zip(numbers[attempt * len(tree) :], tree, strict=False):
            if number < (with_parent if parent is None or parent in present else without):
                present.add(name)
        if present:
            return [name for name in FINDINGS if name in present]
    return [FINDINGS[_choose(tuple(world.prevalence.values()), numbers[-1])]]


def _sign(world: World, name: str, numbers: list[float]) -> Sign:
    side, zone, count, severity = None, None, 1, SEVERITIES[_choose(world.severity_mix, numbers[0])]
    if name in SIDED:
        bilateral = name in BILATERAL and numbers[1] < world.bilateral_fraction
        side = "bilateral" if bilateral else SIDES[int(numbers[2] * 2)]
    if name in ZONED:
        zone = ZONES[int(numbers[3] * 3)]
    if name in ("Lung Lesion", "Fracture") and numbers[4] < world.several_fraction:
        count = 2 + int(numbers[5] * 2)
    if name == "Support Devices":
        return Sign(name, side)  # a device is there or not: no severity, no doubt
    certainty = "possible" if numbers[6] < world.possible_fraction else "definite"
    return Sign(name, side, zone, severity, certainty, count)


def _before(world: World, signs: tuple[Sign, ...], stream: int) -> tuple[tuple[Sign, ...], tuple[Change, ...]]:
    """The signs of the prior exam and what became of every finding of either exam."""
    count = len(FINDINGS)
    numbers = uniforms(combine(stream, 3), count * (_PER_SIGN + 1))[0].tolist()
    weights, tree = world.change_mix, {row[0]: row[2] for row in _tree(world)}
    now = {sign.finding: sign for sign in signs}
    prior, changes = [], []
    for i, name in enumerate(FINDINGS):
        number, sign = numbers[i], now.get(name)
        if sign is None:
            # the share of a finding that has gone, against the weight of all that can happen to one that is there
            if number < tree[name] * weights["resolved"] / sum(weights.values()):
                gone = _sign(world, name, numbers[count + i * _PER_SIGN :])
                prior.append(gone)
                changes.append(Change(name, "resolved", gone.side))
            continue
        grade = SEVERITIES.index(sign.severity)
        graded = name in GRADED
        better = graded and grade < 2  # it can only have improved from something worse
        worse = graded and grade > 0
        choice = (weights["new"], weights["improved"] * better, weights["worsened"] * worse, weights["unchanged"])
        kind = ("new", "improved", "worsened", "unchanged")[_choose(choice, number)] if sum(choice) else "unchanged"
        changes.append(Change(name, kind, sign.side))
        if kind != "new":
            then = grade + {"improved": 1, "worsened": -1, "unchanged": 0}[kind]
            prior.append(Sign(name, sign.side, sign.zone, SEVERITIES[then], sign.certainty, sign.count))
    return tuple(prior), tuple(changes)


def scene(world: World, seed: int, index: int) -> Scene:
    """Study `index` of the world's exams under `seed`: the same whenever and in whatever order it is asked for.

    Studies i and j share their patient (anatomy, sex, age) when i // studies_per_patient == j // studies_per_patient.
    """
    if index < 0:
        raise KitError(f"study {index} does not exist: indices start at 0")
    number = index // world.studies_per_patient
    patient = combine(seed, 11, number)
    study = combine(seed, 12, index)
    body = uniforms(patient, 2)[0].tolist()
    exam = uniforms(combine(study, 2), 3 + len(FINDINGS) * _PER_SIGN)[0].tolist()
    signs: tuple[Sign, ...] = ()
    if exam[0] >= world.normal_fraction:
        found = _found(world, study)
        signs = tuple(_sign(world, name, exam[3 + i * _PER_SIGN :]) for i, name in enumerate(found))
    common = dict(
        seed=seed,
        index=index,
        patient=f"P{seed}-{number:06d}",
        sex="F" if body[0] < world.female_fraction else "M",
        age=int(20 + 70 * body[1] ** 0.8),
    )
    anatomy = (patient >> 32) << 32  # the upper half of `draw` is the patient's, the lower half the exam's
    projection = "AP" if exam[1] < world.ap_fraction else "PA"
    prior, changes = None, ()
    if exam[2] < world.prior_fraction:
        before, changes = _before(world, signs, study)
        prior = Scene(**common, signs=before, projection=projection, draw=anatomy | (combine(study, 4) >> 32))
    draw = anatomy | (study >> 32)
    return Scene(**common, signs=signs, projection=projection, draw=draw, prior=prior, changes=changes)
