"""Checks of lesson 19, grounding and attribution."""

from __future__ import annotations

import math

from .checking import close, exercise, expect, expect_close, expect_not, expect_shape


@exercise
def signed_cnr(answer):
    """signed_cnr(heat (H, W), inside (H, W) bool) -> a number; NaN pixels take no part. Truth: sums over plain lists."""
    import torch

    hidden = math.nan  # a pixel outside the field of view
    heat = torch.tensor([[9.0, 4.0, 1.0, 2.0], [5.0, 8.0, hidden, 0.0], [hidden, 2.0, 3.0, 1.0]], dtype=torch.float64)
    inside = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    found = answer(heat.clone(), inside.clone())
    expect(found is not None, "your function returns None: does it end with return?")
    inner, outer = _parts(heat, inside)
    truth = _ratio(inner, outer)
    away = answer(-heat, inside.clone())
    expect(
        not (close(found, truth) and close(away, truth)),
        "a negated map points away and has to score below zero: no absolute value",
    )
    means = _mean(inner) - _mean(outer)
    zeros = _parts(heat.nan_to_num(), inside)
    sample = [_variance(values) * len(values) / (len(values) - 1) for values in (inner, outer)]
    deviations = [math.sqrt(_variance(values)) for values in (inner, outer)]
    whole = inner + outer
    expect_not(
        found,
        {
            "your ratio is NaN: pixels that are NaN take no part, neither inside nor outside": math.nan,
            "NaN pixels went in as zeros: leave them out of every mean": _ratio(*zeros),
            "the sign is turned: mean inside minus mean outside": -truth,
            "those are sample variances, divided by n - 1: take the population's, divided by n": means
            / math.sqrt(sum(sample)),
            "you added standard deviations: add the variances, then take the root": means / sum(deviations),
            "the root is missing: divide by the square root of the summed variances": means
            / (_variance(inner) + _variance(outer)),
            "that is the difference of the means: divide it by the noise": means,
            "only the outside's noise is in the denominator: add the variance inside": means / deviations[1],
            "only the inside's noise is in the denominator: add the variance outside": means / deviations[0],
            "you averaged the two variances: add them": means / math.sqrt((_variance(inner) + _variance(outer)) / 2),
            "outside means the rest, not the whole picture": (_mean(inner) - _mean(whole))
            / math.sqrt(_variance(inner) + _variance(whole)),
        },
    )
    expect_close(found, truth, "(mean inside - mean outside) / sqrt(variance inside + variance outside)")
    expect_close(away, -truth, "for the negated map your ratio is not the negated one")
    expect_close(answer(3 * heat + 7, inside), truth, "the ratio must not change when the map is scaled or shifted")


def _parts(heat, inside) -> tuple[list[float], list[float]]:
    pairs = [
        (v, i) for v, i in zip(heat.flatten().tolist(), inside.flatten().tolist(), strict=True) if not math.isnan(v)
    ]
    return [v for v, i in pairs if i], [v for v, i in pairs if not i]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _variance(values: list[float]) -> float:
    return _mean([(value - _mean(values)) ** 2 for value in values])


def _ratio(inner: list[float], outer: list[float]) -> float:
    return (_mean(inner) - _mean(outer)) / math.sqrt(_variance(inner) + _variance(outer))


@exercise
def grad_cam_cells(answer):
    """grad_cam_cells(activations (N, C), gradient (N, C)) -> map (N,), signed. Truth: loops over cells and channels."""
    import torch

    activations = torch.tensor(
        [[1.0, 2.0, -1.0], [0.5, -1.0, 3.0], [2.0, 0.0, 1.0], [-1.0, 4.0, 0.5]], dtype=torch.float64
    )
    gradient = torch.tensor(
        [[0.4, -0.2, 0.1], [0.0, 0.6, -0.5], [-0.2, 0.2, 0.3], [1.0, -0.8, -0.7]], dtype=torch.float64
    )
    cells, channels = activations.shape
    found = answer(activations.clone(), gradient.clone())
    expect_shape(found, (cells,), name="the map")
    weights = [sum(gradient[n, c].item() for n in range(cells)) / cells for c in range(channels)]
    truth = [sum(weights[c] * activations[n, c].item() for c in range(channels)) for n in range(cells)]
    means = [sum(activations[n, c].item() for n in range(cells)) / cells for c in range(channels)]
    expect_not(
        found,
        {
            "negative cells are cut off: here the map keeps what speaks against the text": [max(0.0, v) for v in truth],
            "that is gradient times activation, cell by cell: Grad-CAM averages the gradient over all cells first": (
                activations * gradient
            ).sum(1),
            "the weights are summed over the cells: take their mean": [cells * v for v in truth],
            "you averaged over the channels: add them up": [v / channels for v in truth],
            "you averaged the activations over the cells instead of the gradient": [
                sum(means[c] * gradient[n, c].item() for c in range(channels)) for n in range(cells)
            ],
            "the gradient is not used: each channel has its own weight": activations.sum(1),
            "the sign is turned: a channel that raises the score counts positive": [-v for v in truth],
            "the weights are made positive: a channel can also speak against the text": [
                sum(abs(weights[c]) * activations[n, c].item() for c in range(channels)) for n in range(cells)
            ],
        },
    )
    expect_close(found, truth, "weight each channel by its mean gradient, then add the weighted channels in each cell")


@exercise
def integrated_gradients(answer):
    """integrated_gradients(gradient_at, x (D,), start (D,), steps) -> (D,). Truth: a cubic score, integrated on paper."""
    import torch

    factor = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    start = torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64)

    def gradient_at(point):  # of score(x) = sum of factor * x³ / 3, which no feature shares with another
        return factor * point**2

    steps = 400
    found = answer(gradient_at, x.clone(), start.clone(), steps)
    expect_shape(found, (3,), name="the attributions")
    truth = factor * (x**3 - start**3) / 3
    line = [start + (k + 0.5) / steps * (x - start) for k in range(steps)]
    from_zero = [(k + 0.5) / steps * x for k in range(steps)]
    mean = sum(map(gradient_at, line)) / steps
    mean_from_zero = sum(map(gradient_at, from_zero)) / steps
    expect_not(
        found,
        {
            "that is the mean gradient: multiply it by (x - start)": mean,
            "that is one gradient, taken at x: average it along the path": gradient_at(x) * (x - start),
            "that is gradient times input: average along the path, and multiply by (x - start)": gradient_at(x) * x,
            "that is one gradient, taken at the start: average it along the path": gradient_at(start) * (x - start),
            "you multiplied by x: what counts is the way from the start, (x - start)": mean * x,
            "your path begins at zero: it has to begin at start": mean_from_zero * x,
            "your path begins at zero: it has to begin at start, as the factor does": mean_from_zero * (x - start),
            "your path runs from x past the start: the points are start + a * (x - start)": sum(
                gradient_at(x + (k + 0.5) / steps * (x - start)) for k in range(steps)
            )
            / steps
            * (x - start),
            "the gradients are added up along the path: take their mean": steps * mean * (x - start),
            "the sign is turned: it is (x - start)": -truth,
            "only the size is left: a feature may also lower the score": truth.abs(),
        },
        tolerance=0.01,
    )
    expect_close(
        found, truth, "the mean gradient at start + a * (x - start), a from 0 to 1, times (x - start)", tolerance=0.01
    )
    owed = float((factor * (x**3 - start**3) / 3).sum())
    expect(abs(float(found.sum()) - owed) < 0.05, "the attributions have to sum to score(x) - score(start)")
    rough = answer(gradient_at, x.clone(), start.clone(), 4)
    expect(
        not close(rough, found, tolerance=1e-9),
        "steps is not used: with 4 points on the path the rule is rougher than with 400",
    )
