"""The checks of lesson 14: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvlp_kit.course import checks

lesson = checks.lesson_14


def stub(*arguments, **options):
    raise NotImplementedError


def pull_shares(norms, weights):
    lengths = norms * weights
    return lengths / lengths.sum()


def scheduled_weight(step, points):
    steps, weights = zip(*points)
    return float(np.interp(step, steps, weights))


def equal_pull(norms):
    pulls = norms > 0
    inverse = torch.where(pulls, 1 / norms.clamp(min=1e-30), 0.0)
    return torch.where(pulls, inverse * pulls.sum() / inverse.sum(), 1.0)


def change_of_loss(norms, cosines, weights, k):
    return -(weights * norms * cosines[k]).sum() * norms[k]


@pytest.mark.parametrize(
    "reference", [pull_shares, scheduled_weight, equal_pull, change_of_loss], ids=lambda f: f.__name__
)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def shares(values):
    return values / values.sum()


def jump(step, points):
    return [weight for at, weight in points if at <= max(step, points[0][0])][-1]


def following(step, points):
    return next((weight for at, weight in points if at >= step), points[-1][1])


def extrapolated(step, points):
    """Right between the points; the first and the last line go on for ever."""
    place = min(max(1, sum(at <= step for at, _ in points)), len(points) - 1)
    (start, low), (end, high) = points[place - 1], points[place]
    return low + (high - low) * (step - start) / (end - start)


def level_before(step, points):
    return extrapolated(max(step, points[0][0]), points)


def from_zero(step, points):
    (_, low), (end, high) = points[:2]
    return low + (high - low) * step / end


def ends_only(step, points):
    return scheduled_weight(step, (points[0], points[-1]))


def rising(step, points):
    """Takes the end of a line for its greater weight."""
    (start, low), (end, high) = next(pair for pair in zip(points, points[1:]) if pair[1][0] >= min(step, points[-1][0]))
    low, high = sorted((low, high))
    return low + (high - low) * min(max((step - start) / (end - start), 0), 1) if step <= end else points[-1][1]


def infinite(norms):
    return len(norms) / norms / (1 / norms).sum()


def silenced(norms):
    """Right but for the objective without a gradient, which gets zero."""
    return equal_pull(norms) * (norms > 0)


def without_own(norms, cosines, weights, k):
    return change_of_loss(norms, cosines, weights, k) + weights[k] * norms[k] ** 2


def of_the_sum(norms, cosines, weights, k):
    return sum(weights[j] * change_of_loss(norms, cosines, weights, j) for j in range(len(norms)))


WRONG = [
    ("pull_shares", lambda n, w: shares(n), "weights are not used"),
    ("pull_shares", lambda n, w: shares(w), "share of the weights"),
    ("pull_shares", lambda n, w: n * w, "not yet shares"),
    ("pull_shares", lambda n, w: n * w / (n * w).norm(), "as one vector"),
    ("pull_shares", lambda n, w: n * w / n.sum(), "before weighting"),
    ("pull_shares", lambda n, w: shares((n * w) ** 2), "squared"),
    ("pull_shares", lambda n, w: shares(n / w), "they multiply"),
    ("pull_shares", lambda n, w: (n * w).softmax(0), "softmax"),
    ("pull_shares", lambda n, w: n * w / (n * w).max(), "greatest length"),
    ("pull_shares", lambda n, w: shares(n * w + 1e-2), "0.5, 0.1 and 0.4"),
    ("pull_shares", lambda n, w: shares(n * w) if (n > 0).all() else torch.full((3,), 1 / 3), "share of zero"),
    ("pull_shares", lambda n, w: None, "is None"),
    ("pull_shares", lambda n, w: shares(n * w).sum(), "should have shape"),
    ("scheduled_weight", jump, "weight jumps"),
    ("scheduled_weight", following, "comes next"),
    ("scheduled_weight", from_zero, "measured from step 0"),
    ("scheduled_weight", lambda s, p: 1 - scheduled_weight(s, p), "runs backwards"),
    ("scheduled_weight", ends_only, "one line from the first point to the last"),
    ("scheduled_weight", extrapolated, "before the first point you went on"),
    ("scheduled_weight", level_before, "after the last point you went on"),
    ("scheduled_weight", lambda s, p: scheduled_weight(s, p) if s > p[0][0] else 1.0, "is the first point's"),
    ("scheduled_weight", lambda s, p: scheduled_weight(s, p) if s < p[-1][0] else 1.0, "is the last point's"),
    ("scheduled_weight", rising, "may also fall"),
    ("scheduled_weight", lambda s, p: scheduled_weight(s, p) if s != 300 else 0.0, "at a point"),
    ("scheduled_weight", lambda s, p: scheduled_weight(s, p) if len(p) > 1 else 0.0, "single point"),
    ("scheduled_weight", lambda s, p: None, "returns None"),
    ("equal_pull", lambda n: len(n) * shares(n), "loudest"),
    ("equal_pull", lambda n: shares(1 / n), "add up to one"),
    ("equal_pull", lambda n: 1 / n, "mean is not one"),
    ("equal_pull", lambda n: len(n) * shares(1 / n**2), "square of the norm"),
    ("equal_pull", lambda n: n.mean() / n, "scale the weights"),
    ("equal_pull", lambda n: len(n) * (-n).softmax(0), "softmax"),
    ("equal_pull", lambda n: len(n) * shares(n**-0.5), "root of the norm"),
    ("equal_pull", torch.ones_like, "no weight differs"),
    ("equal_pull", lambda n: equal_pull(n) + 0.01, "same for all"),
    ("equal_pull", infinite, "infinite or NaN"),
    ("equal_pull", silenced, "keeps the weight one"),
    ("equal_pull", lambda n: None, "is None"),
    ("change_of_loss", lambda n, c, w, k: -change_of_loss(n, c, w, k), "sign is turned"),
    ("change_of_loss", lambda n, c, w, k: -w[k] * n[k] ** 2, "only its own"),
    ("change_of_loss", lambda n, c, w, k: -(w * n).sum() * n[k], "cosines are not used"),
    ("change_of_loss", lambda n, c, w, k: -(w * n * c[k]).sum(), "gradient of loss k is missing"),
    ("change_of_loss", lambda n, c, w, k: change_of_loss(n, c, torch.ones_like(w), k), "weights are not used"),
    ("change_of_loss", without_own, "left out"),
    ("change_of_loss", of_the_sum, "whole weighted sum"),
    ("change_of_loss", lambda n, c, w, k: -(w * c[k]).sum() * n[k], "other gradients are missing"),
    ("change_of_loss", lambda n, c, w, k: 0.9 * change_of_loss(n, c, w, k), "minus the sum over j"),
    ("change_of_loss", lambda n, c, w, k: -(w * n * c[0]).sum() * n[k], "k = 1"),
    ("change_of_loss", lambda n, c, w, k: None, "returns None"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
