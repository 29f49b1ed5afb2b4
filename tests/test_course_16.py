"""The checks of lesson 16: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.course import checks
from medvlp_kit.downstream.calibration import calibration_error as of_the_kit

lesson = checks.lesson_16


def stub(*arguments, **options):
    raise NotImplementedError


def pair_probability(affirmed, denied, temperature):
    return torch.sigmoid((affirmed - denied) / temperature)


def ensemble_score(image, affirmed, denied):
    return image @ (F.normalize(affirmed.mean(0), dim=0) - F.normalize(denied.mean(0), dim=0))


def calibration_error(probabilities, labels, bins):
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], probabilities)
    gaps = np.bincount(place, probabilities - labels, minlength=bins)
    return np.abs(gaps).sum() / len(labels)


@pytest.mark.parametrize("reference", [pair_probability, ensemble_score, calibration_error], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_the_library_passes_too():
    assert lesson.calibration_error(lambda p, y, bins: float(of_the_kit(p, y, bins=bins, resamples=1).value)).passed


def overflowing(affirmed, denied, temperature):
    above, below = torch.exp(affirmed / temperature), torch.exp(denied / temperature)
    return above / (above + below)


def groups(p, bins):
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p)
    return [np.flatnonzero(place == k) for k in range(bins) if (place == k).any()]


def unweighted(p, y, bins):
    return np.mean([abs(p[g].mean() - y[g].mean()) for g in groups(p, bins)])


def signed(p, y, bins):
    return sum((p[g].mean() - y[g].mean()) * len(g) for g in groups(p, bins)) / len(p)


def of_middles(p, y, bins):
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p)
    return sum(
        abs((k + 0.5) / bins - y[place == k].mean()) * (place == k).mean() for k in range(bins) if (place == k).any()
    )


def of_decisions(p, y, bins):
    return calibration_error(np.maximum(p, 1 - p), ((p >= 0.5) == (y == 1)).astype(float), bins)


def shut_out(p, y, bins):
    """Half-open bins from the left: a probability of 1 falls into none of them."""
    place = np.floor(p * bins)
    return sum(abs((p - y)[place == k].sum()) for k in range(bins)) / (place < bins).sum() + (p >= 1).any()


def means(rows):
    return rows.mean(0)


WRONG = [
    ("pair_probability", lambda a, d, t: pair_probability(d, a, t), "probability of the denied half"),
    ("pair_probability", lambda a, d, t: pair_probability(a, d, 1.0), "temperature is not used"),
    ("pair_probability", lambda a, d, t: pair_probability(a, d, 1 / t), "multiplied by the temperature"),
    ("pair_probability", lambda a, d, t: (a / t).softmax(0), "runs over the images"),
    ("pair_probability", lambda a, d, t: a - d, "no probability"),
    ("pair_probability", lambda a, d, t: (a - d) / t, "a logit"),
    ("pair_probability", lambda a, d, t: torch.sigmoid(a / t), "denied half is not used"),
    ("pair_probability", overflowing, "not finite"),
    ("pair_probability", lambda a, d, t: None, "is None"),
    ("ensemble_score", lambda x, a, d: x @ (means(a) - means(d)), "not renormalised"),
    ("ensemble_score", lambda x, a, d: ensemble_score(x, d, a), "sign is turned"),
    ("ensemble_score", lambda x, a, d: x @ F.normalize(a.mean(0), dim=0), "denying half is not used"),
    ("ensemble_score", lambda x, a, d: x @ (a.sum(0) - d.sum(0)), "added embeddings"),
    ("ensemble_score", lambda x, a, d: (x @ a.T).amax(1) - (x @ d.T).amax(1), "greatest cosine"),
    ("ensemble_score", lambda x, a, d: x @ F.normalize(means(a) - means(d), dim=0), "renormalised the difference"),
    (
        "ensemble_score",
        lambda x, a, d: x @ F.normalize(F.normalize(means(a), dim=0) - F.normalize(means(d), dim=0), dim=0),
        "on its own, before",
    ),
    ("ensemble_score", lambda x, a, d: None, "is None"),
    ("calibration_error", unweighted, "every bin counts the same"),
    ("calibration_error", lambda p, y, b: unweighted(p, y, b) * len(groups(p, b)) / b, "the empty ones too"),
    ("calibration_error", signed, "take the absolute value"),
    ("calibration_error", lambda p, y, b: abs(signed(p, y, b)), "the gaps cancel"),
    ("calibration_error", lambda p, y, b: max(abs(p[g].mean() - y[g].mean()) for g in groups(p, b)), "greatest gap"),
    ("calibration_error", of_middles, "middle of each bin"),
    ("calibration_error", of_decisions, "whether the decision was right"),
    ("calibration_error", lambda p, y, b: ((p - y) ** 2).mean(), "Brier score"),
    ("calibration_error", lambda p, y, b: np.abs(p - y).mean(), "error of single cases"),
    ("calibration_error", lambda p, y, b: calibration_error(p, y, b) * len(p), "divide by the number of cases"),
    ("calibration_error", lambda p, y, b: calibration_error(p, y, b) + 0.1 * (len(p) == 8), "empty bins must not matter"),
    ("calibration_error", shut_out, "0 and 1 are probabilities too"),
    ("calibration_error", lambda p, y, b: None, "returns None"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
