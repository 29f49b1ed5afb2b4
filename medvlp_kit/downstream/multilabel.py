"""Multi-label scores: AUROC, average precision, F1 and Matthews' correlation, each with bootstrap intervals.

Everything is a weighted statistic (see `intervals`): a resample is a column of counts, so a thousand resamples of any of
the four cost a few matrix products instead of a thousand calls of scikit-learn, and equal them one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..errors import KitError, unknown
from .classification import _checked, weighted_auroc
from .intervals import Intervals, bootstrap
from .result import Estimate, Result

RANKING = ("AUROC", "AP")  # of scores
DECIDED = ("F1", "MCC")  # of decisions, so they need thresholds, chosen on other studies
METRICS = (*RANKING, *DECIDED)


def weighted_average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one score (N,) under R weightings (N, R): (R,), NaN where there is no positive.

    AP = sum_n (recall_n - recall_{n-1}) precision_n over the distinct scores, from the highest down: all cases of one
    score enter together, so ties gain nothing from their order. No interpolation (as in scikit-learn).
    """
    known = ~np.isnan(labels)
    order = np.flatnonzero(known)[np.argsort(-scores[known], kind="stable")]
    if len(order) == 0:
        return np.full(weights.shape[1], np.nan)
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last case of each distinct score
    drawn = weights[order]  # (N, R)
    above = np.cumsum(drawn, axis=0)[last]  # cases at or above each score (K, R)
    true = np.cumsum(drawn * (labels[order] == 1)[:, None], axis=0)[last]
    gained = np.diff(true, axis=0, prepend=0)  # positives that each score brings
    precision = np.divide(true, above, out=np.zeros_like(true), where=above > 0)
    positives = true[-1]
    return np.where(positives > 0, (gained * precision).sum(0) / np.maximum(positives, 1e-300), np.nan)


def confusion(decisions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """(true positives, false positives, false negatives, true negatives), each (R,) or (R, C)."""
    decisions = np.asarray(decisions, dtype=bool)
    positive, negative = labels == 1, labels == 0

    def count(which: np.ndarray) -> np.ndarray:
        return weights.T @ which.astype(float)

    return (
        count(decisions & positive), count(decisions & negative), count(~decisions & positive), count(~decisions & negative)
    )  # fmt: skip


def f1_of(true_positive, false_positive, false_negative, true_negative=None):
    """2 TP / (2 TP + FP + FN); NaN where nothing is present and nothing was called present."""
    below = 2 * true_positive + false_positive + false_negative
    return np.where(below > 0, 2 * true_positive / np.maximum(below, 1e-300), np.nan)


def mcc_of(true_positive, false_positive, false_negative, true_negative):
    """Matthews' correlation of decision and label: 0 where every decision is the same, NaN where every label is."""
    present, absent = true_positive + false_negative, true_negative + false_positive
    called, passed = true_positive + false_positive, true_negative + false_negative
    below = np.sqrt(present) * np.sqrt(absent) * np.sqrt(called) * np.sqrt(passed)
    above = true_positive * true_negative - false_positive * false_negative
    value = np.where(below > 0, above / np.maximum(below, 1e-300), 0.0)
    return np.where((present > 0) & (absent > 0), value, np.nan)


_OF_CONFUSION: dict[str, Callable] = {"F1": f1_of, "MCC": mcc_of}


def best_thresholds(scores, labels, *, metric: str = "F1") -> np.ndarray:
    """The threshold of each column that is best on these studies: (C,), or a float for (N,). "present" is score >= it.

    Choose it on the validation split. Every distinct score is tried; of equally good ones the highest is taken. A
    column without both classes has nothing to choose by and raises KitError.
    """
    if metric not in DECIDED:
        raise unknown("metric that needs a threshold", metric, DECIDED)
    scores, labels = _checked(scores, labels)
    if scores.ndim == 1:
        return float(_best_threshold(scores, labels, metric))
    return np.array([_best_threshold(s, y, metric) for s, y in zip(scores.T, labels.T)])


def _best_threshold(scores: np.ndarray, labels: np.ndarray, metric: str) -> float:
    known = ~np.isnan(labels)
    if len(set(labels[known])) < 2:
        raise KitError(
            "a threshold needs studies with and without the finding: give a larger validation split, or thresholds"
        )
    scores, labels = scores[known], labels[known]
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true = np.cumsum(labels[order] == 1)[last].astype(float)
    called = last + 1.0
    present = float((labels == 1).sum())
    values = _OF_CONFUSION[metric](true, called - true, present - true, len(labels) - called - (present - true))
    return ranked[last][int(np.nanargmax(values))]


def bootstrap_metric(
    scores, labels, *, metric: str, thresholds=None, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Intervals:
    """One of `METRICS` with percentile bootstrap intervals over studies; `.macro` averages columns in each resample.

    scores, labels: (N,) or (N, C); NaN labels are left out, column by column. thresholds: a number or (C,), for F1 and
    MCC. All metrics of one seed share their resamples. Undefined resamples are NaN, counted in `.undefined`: AUROC and
    MCC of one class, AP without a positive, F1 with nothing present and nothing called present.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    scores, labels = _checked(scores, labels)
    if metric in DECIDED:
        if thresholds is None:
            raise KitError(f"{metric} needs thresholds: choose them on the validation split with best_thresholds")
        decisions = scores >= np.asarray(thresholds, dtype=float)

        def statistic(weights: np.ndarray) -> np.ndarray:
            return _OF_CONFUSION[metric](*confusion(decisions, labels, weights))

    else:
        one = weighted_auroc if metric == "AUROC" else weighted_average_precision

        def statistic(weights: np.ndarray) -> np.ndarray:
            if scores.ndim == 1:
                return one(scores, labels, weights)
            return np.stack([one(s, y, weights) for s, y in zip(scores.T, labels.T)], axis=1)

    return bootstrap(statistic, len(scores), resamples=resamples, seed=seed, level=level)


def metric_table(
    scores, labels, names: Sequence[str], *, thresholds=None, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """One row a finding and one "macro" row: the four metrics with their intervals, and how often it is present.

    Without `thresholds` (C,) only AUROC and AP are given. AP of a useless score is the prevalence, so it stands beside.
    """
    scores, labels = _checked(scores, labels)
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise KitError(f"{len(names)} names for scores of shape {scores.shape}: give one name a column")
    columns: dict[str, np.ndarray] = {}
    for metric in METRICS if thresholds is not None else RANKING:
        found = bootstrap_metric(
            scores, labels, metric=metric, thresholds=thresholds, resamples=resamples, seed=seed
        )
        for key, part in (("", "value"), (" low", "low"), (" high", "high")):
            columns[metric + key] = np.append(getattr(found, part), getattr(found.macro, part))
    known = ~np.isnan(labels)
    prevalence = (labels == 1).sum(0) / np.maximum(known.sum(0), 1)
    columns["prevalence"] = np.append(prevalence, prevalence.mean())
    return pd.DataFrame(columns, index=pd.Index([*names, "macro"], name="finding"))


def multilabel(
    scores, labels, names: Sequence[str], *, task: str, controls: Mapping[str, np.ndarray], rule: str, split: str,
    prompts: str = "none", also: Mapping[str, np.ndarray] | None = None, thresholds=None, resamples: int = 1000,
    seed: int = 0,
) -> Result:  # fmt: skip
    """Scores of any classifier as a `Result`: macro-AUROC, beside the same of `controls` (name -> scores (N, C)).

    also: further scores of the same studies, for comparison and not as controls, such as training from scratch
    rule: how the scores came about; what was averaged and left out is added here
    """
    scores, labels = _checked(scores, labels)

    def macro(of, metric: str = "AUROC", name: str = "") -> Estimate:
        found = bootstrap_metric(of, labels, metric=metric, thresholds=thresholds, resamples=resamples, seed=seed)
        return Estimate.of(name, found.macro)

    own = macro(scores)
    others = [macro(scores, metric, f"macro-{metric}") for metric in METRICS[1:] if thresholds is not None or metric == "AP"]
    others += [macro(of, name=name) for name, of in (also or {}).items()]
    both = ((labels == 1).any(0) & (labels == 0).any(0)).sum()
    return Result(
        task=task, name="macro-AUROC", value=own.value, low=own.low, high=own.high,
        controls=tuple(macro(of, name=name) for name, of in controls.items()), also=tuple(others),
        n=len(scores), unit="studies", resamples=resamples, split=split, prompts=prompts, seed=seed,
        table=metric_table(scores, labels, names, thresholds=thresholds, resamples=resamples, seed=seed),
        rule=(
            f"{rule}; unweighted mean over the {both} of {len(names)} findings with both classes; ties count half; "
            "unknown labels left out; studies resampled, a finding with one class in a resample is left out of it"
        ),
    )  # fmt: skip
