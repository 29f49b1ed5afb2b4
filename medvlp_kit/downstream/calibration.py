"""Calibration: of the studies given 70 %, is the finding there in 70 %?

A score may rank perfectly and still be no probability. The reliability curve shows where, the expected calibration error
(ECE) says how much in one number, and Platt's scaling (1999) mends it with two numbers fitted on validation studies.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import KitError, unknown
from .classification import _checked
from .intervals import Intervals, bootstrap

STRATEGIES = ("uniform", "quantile")


def _probabilities(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    """Flat probabilities and labels of the known cases, checked."""
    probabilities, labels = _checked(probabilities, labels)
    known = ~np.isnan(labels)
    probabilities, labels = probabilities[known], labels[known]  # flat, (N known,)
    if len(labels) == 0:
        raise KitError("no label is known, so there is nothing to calibrate against")
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise KitError(
            f"probabilities reach from {probabilities.min():.3g} to {probabilities.max():.3g}: give numbers from 0 to 1, "
            "such as a softmax or a sigmoid of the scores"
        )
    return probabilities, labels


def bin_edges(probabilities: np.ndarray, *, bins: int, strategy: str) -> np.ndarray:
    """Edges (K + 1,): equal widths, or equal numbers of cases (then equal edges are merged)."""
    if strategy not in STRATEGIES:
        raise unknown("strategy of bins", strategy, STRATEGIES)
    if bins < 1:
        raise KitError(f"bins={bins}: give at least one")
    if strategy == "uniform":
        return np.linspace(0, 1, bins + 1)
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, bins + 1)))
    return edges if len(edges) > 1 else np.repeat(edges, 2)  # one value: one bin


def reliability_curve(probabilities, labels, *, bins: int = 10, strategy: str = "uniform") -> pd.DataFrame:
    """One row a bin that holds cases: mean probability said, share present, cases; a bin is (left, right].

    (N,) or (N, C): all known cases are pooled. Equals `sklearn.calibration.calibration_curve`, which lacks the counts.
    """
    probabilities, labels = _probabilities(probabilities, labels)
    edges = bin_edges(probabilities, bins=bins, strategy=strategy)
    place = np.searchsorted(edges[1:-1], probabilities)
    cases = np.bincount(place, minlength=len(edges) - 1)
    held = cases > 0
    said = np.bincount(place, probabilities, minlength=len(cases))[held] / cases[held]
    seen = np.bincount(place, labels, minlength=len(cases))[held] / cases[held]
    return pd.DataFrame({"said": said, "present": seen, "cases": cases[held]})


def calibration_error(
    probabilities, labels, *, bins: int = 10, strategy: str = "uniform", resamples: int = 1000, seed: int = 0
) -> Intervals:
    """ECE = sum over bins of (cases / all cases) |mean said - share present| (Naeini et al. 2015), with its interval.

    (N,) gives one number; (N, C) pools the known cases of all columns. Studies are resampled, and the bins are those of
    the data. The estimate is biased upwards when bins hold few cases: even a perfect model has an error above 0.
    """
    given, truth = _checked(probabilities, labels)
    pooled, _ = _probabilities(given, truth)
    edges = bin_edges(pooled, bins=bins, strategy=strategy)
    columns, known = given.reshape(len(given), -1), ~np.isnan(truth.reshape(len(truth), -1))
    gap = np.where(known, columns - np.nan_to_num(truth.reshape(columns.shape)), 0.0)
    place = np.searchsorted(edges[1:-1], columns)
    # The gap summed over each bin, study by study: a resample then only weights studies.
    gaps = np.stack([np.where(place == k, gap, 0.0).sum(1) for k in range(len(edges) - 1)], axis=1)  # (N, K)
    cases = known.sum(1).astype(float)

    def statistic(weights: np.ndarray) -> np.ndarray:
        total = weights.T @ cases
        return np.where(total > 0, np.abs(weights.T @ gaps).sum(1) / np.maximum(total, 1e-300), np.nan)

    return bootstrap(statistic, len(columns), resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Platt:
    """p = sigmoid(slope * score + intercept), one pair a column: (C,)."""

    slope: np.ndarray
    intercept: np.ndarray

    def __call__(self, scores) -> np.ndarray:
        from scipy.special import expit

        return expit(np.asarray(scores, dtype=float) * self.slope + self.intercept)


def fit_platt(scores, labels) -> Platt:
    """Platt's scaling of scores (N,) or (N, C), fitted by logistic regression. Give it the validation split.

    It keeps the order of the scores while the slope is positive, so no AUROC changes. A trace of a penalty keeps the
    slope finite where the scores separate the classes without fault.
    """
    from sklearn.linear_model import LogisticRegression

    scores, labels = _checked(scores, labels)
    pairs = []
    for column, truth in zip(scores.reshape(len(scores), -1).T, labels.reshape(len(labels), -1).T):
        known = ~np.isnan(truth)
        if len(set(truth[known])) < 2:
            raise KitError("calibration needs studies with and without each finding: give a larger validation split")
        spread = column[known].std() or 1.0  # scores of a cosine are small: fit on their own scale
        found = LogisticRegression(C=1e4).fit(column[known, None] / spread, truth[known])
        pairs.append((found.coef_[0, 0] / spread, found.intercept_[0]))
    slope, intercept = np.array(pairs).T
    return Platt(slope[0], intercept[0]) if scores.ndim == 1 else Platt(slope, intercept)
