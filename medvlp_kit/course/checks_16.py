"""Checks of lesson 16, zero-shot classification and prompts."""

from __future__ import annotations

import math

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def pair_probability(answer):
    """pair_probability(affirmed (N,), denied (N,), temperature) -> probability of "affirmed" (N,). Truth: exponentials."""
    import torch

    affirmed = torch.tensor([0.30, 0.10, -0.20], dtype=torch.float64)
    denied = torch.tensor([0.20, 0.25, -0.10], dtype=torch.float64)
    temperature = 0.05

    def chosen(a, b, t):
        return [math.exp(x / t) / (math.exp(x / t) + math.exp(y / t)) for x, y in zip(a.tolist(), b.tolist())]

    found = answer(affirmed.clone(), denied.clone(), temperature)
    expect_shape(found, (3,), name="the probabilities")
    truth = chosen(affirmed, denied, temperature)
    all_images = torch.softmax(affirmed / temperature, dim=0)
    expect_not(
        found,
        {
            "that is the probability of the denied half: the affirmed one goes above the fraction bar": [1 - p for p in truth],
            "the temperature is not used: cosines differ by tenths, so every probability stays near one half": chosen(
                affirmed, denied, 1.0
            ),
            "you multiplied by the temperature: cosines are divided by it": chosen(affirmed, denied, 1 / temperature),
            "the softmax runs over the images: each image has to choose between its own two numbers": all_images,
            "that is the difference of the cosines: it ranks, but it is no probability": affirmed - denied,
            "that is the difference over the temperature, a logit: put it through a sigmoid": (affirmed - denied)
            / temperature,
            "the denied half is not used: a sigmoid of the affirmed cosine alone": torch.sigmoid(affirmed / temperature),
        },
    )
    expect_close(found, truth, "two exponentials an image, exp(cosine / temperature), and the share of the first")
    far = answer(torch.tensor([1.0]), torch.tensor([-1.0]), 0.001)
    expect(
        bool(torch.isfinite(torch.as_tensor(far)).all()),
        "at temperature 0.001 your probability is not finite: exp overflows, use a sigmoid of the difference or softmax",
    )
    expect_close(far, [1.0], "a cosine of 1 against one of -1 at temperature 0.001 leaves no doubt: the probability is 1")


@exercise
def ensemble_score(answer):
    """ensemble_score(image (N, D), affirmed (A, D), denied (B, D)) -> (N,): cosines with the renormalised mean embeddings."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)

    def unit(rows):
        return F.normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=-1)

    image, affirmed, denied = unit(4), unit(3), unit(2)
    means = affirmed.mean(0), denied.mean(0)
    ends = [mean / mean.norm() for mean in means]
    found = answer(image.clone(), affirmed.clone(), denied.clone())
    expect_shape(found, (4,), name="the scores")
    expect_not(
        found,
        {
            "the means are not renormalised: a mean of unit vectors is shorter than one, the more so the less they agree": image
            @ (means[0] - means[1]),
            "the sign is turned: affirmed minus denied": image @ (ends[1] - ends[0]),
            "the denying half is not used": image @ ends[0],
            "you added embeddings instead of averaging and renormalising: the half with more sentences weighs more": image
            @ (affirmed.sum(0) - denied.sum(0)),
            "that is the greatest cosine of each half: more sentences then mean a greater maximum": (image @ affirmed.T).amax(1)
            - (image @ denied.T).amax(1),
            "you renormalised the difference: each half has its own length to lose": image
            @ F.normalize(means[0] - means[1], dim=0),
            "you renormalised the difference: each half is renormalised on its own, before it is subtracted": image
            @ F.normalize(ends[0] - ends[1], dim=0),
        },
    )
    expect_close(found, image @ ends[0] - image @ ends[1], "mean of each half, renormalise, cosine, subtract")
    one = answer(image, affirmed[:1], denied[:1])
    expect_close(
        one, image @ affirmed[0] - image @ denied[0], "with one sentence a half, the ensemble is the plain difference"
    )


@exercise
def calibration_error(answer):
    """calibration_error(probabilities (N,), labels (N,), bins) -> ECE. Truth: a loop over equal bins of [0, 1]."""
    import numpy as np

    said = np.array([0.05, 0.08, 0.03, 0.32, 0.35, 0.38, 0.62, 0.91, 0.95, 0.97])
    seen = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    bins = 5
    found = answer(said.copy(), seen.copy(), bins)
    expect(found is not None, "your function returns None: does it end with return?")
    groups = [np.flatnonzero((said > k / bins) & (said <= (k + 1) / bins)) for k in range(bins)]
    gaps = [(float(said[g].mean() - seen[g].mean()), len(g)) for g in groups if len(g)]
    middles = [(k + 0.5) / bins for k, g in enumerate(groups) if len(g)]
    truth = sum(abs(gap) * count for gap, count in gaps) / len(said)
    decided = np.maximum(said, 1 - said), (said >= 0.5) == (seen == 1)
    of_decisions = [
        abs(decided[0][g].mean() - decided[1][g].mean()) * len(g) / len(said)
        for k in range(bins)
        for g in [np.flatnonzero((decided[0] > k / bins) & (decided[0] <= (k + 1) / bins))]
        if len(g)
    ]
    expect_not(
        found,
        {
            "every bin counts the same in yours: weight a bin by its share of the cases": float(
                np.mean([abs(gap) for gap, _ in gaps])
            ),
            "every bin counts the same in yours, the empty ones too: weight a bin by its share of the cases": float(
                np.sum([abs(gap) for gap, _ in gaps]) / bins
            ),
            "the gaps cancel: take the absolute value in each bin, before the sum": float(
                sum(gap * count for gap, count in gaps) / len(said)
            ),
            "the gaps cancel: the absolute value belongs inside the sum, bin by bin": abs(
                sum(gap * count for gap, count in gaps) / len(said)
            ),
            "that is the greatest gap, the maximum calibration error: ECE is the mean over cases": max(
                abs(gap) for gap, _ in gaps
            ),
            "you took the middle of each bin for what was said: take the mean probability of its cases": sum(
                abs(middle - (mean_gap_said - gap)) * count
                for middle, (gap, count), mean_gap_said in zip(
                    middles, gaps, [float(said[g].mean()) for g in groups if len(g)]
                )
            )
            / len(said),
            "you compared with whether the decision was right: this error compares with whether the finding is there": float(
                sum(of_decisions)
            ),
            "that is the Brier score, the mean squared error: no bins are in it": float(((said - seen) ** 2).mean()),
            "that is the mean error of single cases: average within a bin first, then compare": float(
                np.abs(said - seen).mean()
            ),
            "you added the gaps times the cases: divide by the number of cases": truth * len(said),
        },
    )
    expect_close(found, truth, "for each bin |mean probability - share present| times its share of the cases, added up")
    expect_close(
        answer(np.full(8, 0.25), np.array([1.0, 0, 0, 0, 1, 0, 0, 0]), bins), 0.0,
        "a model that says 0.25 and is right a quarter of the time has no error; empty bins must not matter",
    )  # fmt: skip
    expect_close(answer(np.array([0.0, 1.0]), np.array([0.0, 1.0]), bins), 0.0, "0 and 1 are probabilities too")
