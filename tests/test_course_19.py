"""The checks of lesson 19: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import pytest
import torch

from medvlp_kit.attribution import SCORES
from medvlp_kit.course import checks

lesson = checks.lesson_19


def stub(*arguments, **options):
    raise NotImplementedError


def signed_cnr(heat, inside):
    valid = ~heat.isnan()
    a, b = heat[inside & valid], heat[~inside & valid]
    return (a.mean() - b.mean()) / (a.var(correction=0) + b.var(correction=0)).sqrt()


def grad_cam_cells(activations, gradient):
    return activations @ gradient.mean(0)


def integrated_gradients(gradient_at, x, start, steps):
    points = [start + (k + 0.5) / steps * (x - start) for k in range(steps)]
    return (x - start) * torch.stack([gradient_at(point) for point in points]).mean(0)


def left_rule(gradient_at, x, start, steps):
    """Another sound rule: it must pass too."""
    return (x - start) * sum(gradient_at(start + k / steps * (x - start)) for k in range(steps)) / steps


@pytest.mark.parametrize("reference", [signed_cnr, grad_cam_cells, integrated_gradients], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_another_rule_of_integration_passes():
    assert lesson.integrated_gradients(left_rule).passed, lesson.integrated_gradients(left_rule)


def test_the_reference_of_the_ratio_is_the_librarys():
    heat = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    heat[3, 4] = torch.nan
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[2:7, 3:9] = True
    torch.testing.assert_close(signed_cnr(heat, inside), SCORES["CNR"](heat, inside))


def parts(heat, inside):
    valid = ~heat.isnan()
    return heat[inside & valid], heat[~inside & valid]


def gap(heat, inside):
    a, b = parts(heat, inside)
    return a.mean() - b.mean()


def noise(heat, inside, correction=0):
    return sum(part.var(correction=correction) for part in parts(heat, inside))


def with_nan(heat, inside):
    a, b = heat[inside], heat[~inside]
    return (a.mean() - b.mean()) / (a.var(correction=0) + b.var(correction=0)).sqrt()


def whole_as_outside(heat, inside):
    a, b = parts(heat, inside)[0], heat[~heat.isnan()]
    return (a.mean() - b.mean()) / (a.var(correction=0) + b.var(correction=0)).sqrt()


def deviation(heat, inside, which):
    return parts(heat, inside)[which].std(correction=0)


def plain_mean(gradient_at, x, start, steps):
    return torch.stack([gradient_at(start + (k + 0.5) / steps * (x - start)) for k in range(steps)]).mean(0)


def from_zero(gradient_at, x, start, steps, factor):
    return plain_mean(gradient_at, x, torch.zeros_like(x), steps) * factor


WRONG = [
    ("signed_cnr", lambda h, i: signed_cnr(h, i).abs(), "no absolute value"),
    ("signed_cnr", with_nan, "your ratio is NaN"),
    ("signed_cnr", lambda h, i: with_nan(h.nan_to_num(), i), "went in as zeros"),
    ("signed_cnr", lambda h, i: -signed_cnr(h, i), "sign is turned"),
    ("signed_cnr", lambda h, i: gap(h, i) / noise(h, i, 1).sqrt(), "sample variances"),
    ("signed_cnr", lambda h, i: gap(h, i) / (deviation(h, i, 0) + deviation(h, i, 1)), "added standard deviations"),
    ("signed_cnr", lambda h, i: gap(h, i) / noise(h, i), "root is missing"),
    ("signed_cnr", gap, "divide it by the noise"),
    ("signed_cnr", lambda h, i: gap(h, i) / deviation(h, i, 1), "only the outside's noise"),
    ("signed_cnr", lambda h, i: gap(h, i) / deviation(h, i, 0), "only the inside's noise"),
    ("signed_cnr", lambda h, i: gap(h, i) / (noise(h, i) / 2).sqrt(), "averaged the two variances"),
    ("signed_cnr", whole_as_outside, "not the whole picture"),
    ("signed_cnr", lambda h, i: None, "returns None"),
    ("signed_cnr", lambda h, i: signed_cnr(h, i) * (2 if h.nan_to_num().max() > 20 else 1), "scaled or shifted"),
    ("grad_cam_cells", lambda a, g: grad_cam_cells(a, g).clamp(min=0), "negative cells are cut off"),
    ("grad_cam_cells", lambda a, g: (a * g).sum(1), "gradient times activation"),
    ("grad_cam_cells", lambda a, g: a @ g.sum(0), "summed over the cells"),
    ("grad_cam_cells", lambda a, g: (a * g.mean(0)).mean(1), "averaged over the channels"),
    ("grad_cam_cells", lambda a, g: g @ a.mean(0), "averaged the activations"),
    ("grad_cam_cells", lambda a, g: a.sum(1), "gradient is not used"),
    ("grad_cam_cells", lambda a, g: -grad_cam_cells(a, g), "sign is turned"),
    ("grad_cam_cells", lambda a, g: a @ g.mean(0).abs(), "weights are made positive"),
    ("grad_cam_cells", lambda a, g: a.mean(0) * g.mean(0), "should have shape"),
    ("grad_cam_cells", lambda a, g: a @ g[0], "mean gradient"),
    ("integrated_gradients", plain_mean, "multiply it by (x - start)"),
    ("integrated_gradients", lambda g, x, s, n: g(x) * (x - s), "one gradient, taken at x"),
    ("integrated_gradients", lambda g, x, s, n: g(x) * x, "gradient times input"),
    ("integrated_gradients", lambda g, x, s, n: g(s) * (x - s), "taken at the start"),
    ("integrated_gradients", lambda g, x, s, n: plain_mean(g, x, s, n) * x, "you multiplied by x"),
    ("integrated_gradients", lambda g, x, s, n: from_zero(g, x, s, n, x), "path begins at zero"),
    ("integrated_gradients", lambda g, x, s, n: from_zero(g, x, s, n, x - s), "as the factor does"),
    ("integrated_gradients", lambda g, x, s, n: (x - s) * plain_mean(g, 2 * x - s, x, n), "past the start"),
    ("integrated_gradients", lambda g, x, s, n: n * integrated_gradients(g, x, s, n), "added up along the path"),
    ("integrated_gradients", lambda g, x, s, n: -integrated_gradients(g, x, s, n), "sign is turned"),
    ("integrated_gradients", lambda g, x, s, n: integrated_gradients(g, x, s, n).abs(), "only the size is left"),
    ("integrated_gradients", lambda g, x, s, n: integrated_gradients(g, x, s, 400), "steps is not used"),
    ("integrated_gradients", lambda g, x, s, n: integrated_gradients(g, x, s, 2), "mean gradient at start"),
    ("integrated_gradients", lambda g, x, s, n: integrated_gradients(g, x, s, n).sum(), "should have shape"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
