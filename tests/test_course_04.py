"""The checks of lesson 04: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import math

import pytest

from medvlp_kit.course import checks

lesson = checks.lesson_04


def stub(*arguments, **options):
    raise NotImplementedError


def output_size(size, *, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def seen_pixels(layers, unit):
    first = last = unit
    for kernel, stride, padding in reversed(layers):
        first, last = first * stride - padding, last * stride - padding + kernel - 1
    return first, last


def convolution_cost(size, *, channels, filters, kernel, bias):
    weights = filters * channels * kernel**2
    return weights + bias * filters, weights * size**2


@pytest.mark.parametrize("reference", [output_size, seen_pixels, convolution_cost], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_inclusive_lists_are_accepted():
    assert lesson.seen_pixels(lambda layers, unit: list(seen_pixels(layers, unit))).passed


def sized(formula):
    """An answer from `formula(n, k, s, p, d)`."""
    return lambda size, *, kernel, stride, padding, dilation: formula(size, kernel, stride, padding, dilation)


def without_padding(layers, unit):
    return seen_pixels([(kernel, stride, 0) for kernel, stride, _ in layers], unit)


def forwards(layers, unit):
    return seen_pixels(layers[::-1], unit)


def half_open(layers, unit):
    first, last = seen_pixels(layers, unit)
    return first, last + 1


def without_jump(layers, unit):
    """Every filter counts in pixels: the strides move the centre, but do not widen later filters."""
    first, last = seen_pixels(layers[:1], unit)
    for kernel, _, padding in layers[1:]:
        first, last = first - padding, last - padding + kernel - 1
    return first, last


def cut(layers, unit):
    first, last = seen_pixels(layers, unit)
    return max(first, 0), last


def costs(formula):
    """An answer from `formula(n, c, f, k, bias)`."""
    return lambda size, *, channels, filters, kernel, bias: formula(size, channels, filters, kernel, bias)


WRONG = [
    ("output_size", sized(lambda n, k, s, p, d: None), "returns None"),
    ("output_size", sized(lambda n, k, s, p, d: (n + 2 * p - d * (k - 1) - 1) // s), "last place is missing"),
    ("output_size", sized(lambda n, k, s, p, d: n // s), "does not fit at every one"),
    ("output_size", sized(lambda n, k, s, p, d: (n + p - d * (k - 1) - 1) // s + 1), "counts twice"),
    ("output_size", sized(lambda n, k, s, p, d: (n - d * (k - 1) - 1) // s + 1), "padding is not used"),
    ("output_size", sized(lambda n, k, s, p, d: math.ceil((n + 2 * p - d * (k - 1) - 1) / s) + 1), "round down"),
    ("output_size", sized(lambda n, k, s, p, d: (n + 2 * p - d * (k - 1) - 1) / s + 1), "whole number"),
    ("output_size", sized(lambda n, k, s, p, d: (n + 2 * p - k) // s + 1), "dilation is not used"),
    ("output_size", sized(lambda n, k, s, p, d: (n + 2 * p - d * k - (d == 1) * 0) // s + 1), "cover 5 pixels, not 6"),
    ("seen_pixels", lambda layers, unit: None, "returns None"),
    ("seen_pixels", lambda layers, unit: 3, "two numbers"),
    ("seen_pixels", half_open, "both ends count"),
    ("seen_pixels", without_padding, "padding is not used"),
    ("seen_pixels", forwards, "begin at the last layer"),
    ("seen_pixels", without_jump, "are 2 pixels apart"),
    ("seen_pixels", cut, "do not cut at the border"),
    ("convolution_cost", costs(lambda n, c, f, k, b: f * c * k**2), "two numbers"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2, f * c * k**2 * n**2)), "bias is missing"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2 + b * c, f * c * k**2 * n**2)), "not one a channel"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * k**2 + b * f, f * c * k**2 * n**2)), "reads all channels"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k + b * f, f * c * k**2 * n**2)), "filter is square"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2 * n**2 + b * f, 0)), "weights are shared"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2 + f, f * c * k**2 * n**2)), "no bias to count"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2 + b * f, f * c * k**2)), "used at every place"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2 + b * f, f * c * k**2 * n)), "one row of places"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2 + b * f, 2 * f * c * k**2 * n**2)), "additions too"),
    ("convolution_cost", costs(lambda n, c, f, k, b: (f * c * k**2 + b * f, f * (c * k**2 + 1) * n**2)), "leave it out"),
    (
        "convolution_cost",
        costs(lambda n, c, f, k, b: (f * c * k**2 + b * f, f * c * k**2 * (n - k + 1) ** 2)),
        "size is kept",
    ),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
