"""Linear probe: logistic regression on frozen features, its penalty chosen on the validation studies."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import KitError
from .classification import _checked, auroc
from .frozen import Part, Transfer
from .label_fractions import FRACTIONS, nested_subsets
from .multilabel import best_thresholds, multilabel
from .result import Result

STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # scikit-learn's C: the greater, the weaker the penalty


@dataclass(frozen=True)
class LinearProbe:
    """score = ((x - mean) / deviation) @ weight + intercept: a logit a finding.

    weight (D, C), intercept (C,), mean and deviation (D,) of the training features; strength: the chosen C; chosen_from:
    validation macro-AUROC of every strength. Findings whose training labels are of one class have weight 0 (`unfit`).
    """

    weight: np.ndarray
    intercept: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    strength: float
    chosen_from: dict[float, float]
    unfit: tuple[int, ...] = ()

    def scores(self, features) -> np.ndarray:
        """Logits (N, C) of features (N, D)."""
        return (np.asarray(features, dtype=np.float64) - self.mean) / self.deviation @ self.weight + self.intercept


def fit_logistic(features: np.ndarray, labels: np.ndarray, *, strength: float) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One logistic regression a column on features (N, D), labels (N, C): weight (D, C), intercept (C,), unfit columns."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    weight, intercept, unfit = np.zeros((features.shape[1], labels.shape[1])), np.zeros(labels.shape[1]), []
    for column in range(labels.shape[1]):
        known = ~np.isnan(labels[:, column])
        truth = labels[known, column]
        if len(set(truth)) < 2:
            unfit.append(column)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a weak penalty on separable cases has no optimum
            found = LogisticRegression(C=strength, max_iter=200).fit(features[known], truth)
        weight[:, column], intercept[column] = found.coef_[0], found.intercept_[0]
    return weight, intercept, unfit


def fit_linear_probe(
    features, labels, *, validation: tuple[np.ndarray, np.ndarray], strengths: Sequence[float] = STRENGTHS,
    standardise: bool = True,
) -> LinearProbe:  # fmt: skip
    """The probe whose strength has the best validation macro-AUROC; one strength for all findings.

    features (N, D), labels (N, C) with NaN for unknown. standardise: to mean 0 and deviation 1 of the training features,
    without which one penalty means something else for every encoder.
    """
    features, labels = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if features.ndim != 2 or labels.ndim != 2 or len(features) != len(labels):
        raise KitError(f"features {features.shape} and labels {labels.shape}: give (N, D) and (N, C) of the same studies")
    if not strengths:
        raise KitError("no strength to choose from: give at least one, such as strengths=[1.0]")
    mean, deviation = np.zeros(features.shape[1]), np.ones(features.shape[1])
    if standardise:
        mean, deviation = features.mean(0), features.std(0)
        deviation[deviation < 1e-12] = 1.0
    ready = (features - mean) / deviation
    held, truth = (np.asarray(part, dtype=np.float64) for part in validation)
    best, chosen_from = None, {}
    for strength in strengths:
        weight, intercept, unfit = fit_logistic(ready, labels, strength=strength)
        if len(unfit) == labels.shape[1]:
            raise KitError(
                f"none of the {labels.shape[1]} findings is both present and absent among the {len(labels)} training "
                "studies: give more of them, or a larger label fraction"
            )
        probe = LinearProbe(weight, intercept, mean, deviation, strength, chosen_from, tuple(unfit))
        values = auroc(*_checked(probe.scores(held), truth))
        if np.isnan(values).all():
            raise KitError("no finding has both classes among the validation studies: give a larger validation split")
        chosen_from[strength] = float(np.nanmean(values))
        if best is None or chosen_from[strength] > chosen_from[best.strength]:
            best = probe
    return best


def shuffled(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """The labels dealt to other studies, row by row: all that is known of a study but the study itself."""
    return labels[np.random.default_rng(seed).permutation(len(labels))]


def linear_probe(
    data: Transfer, *, fraction: float = 1.0, features: str = "pooled", strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Result:  # fmt: skip
    """Macro-AUROC of a linear probe on a share of the training labels.

    Controls: the same probe on the features of the same architecture with random weights, and a probe fitted to shuffled
    labels. F1 and MCC use thresholds chosen on the validation studies.
    """
    rows = nested_subsets(len(data.train), fractions=(fraction,), seed=seed)[fraction]

    def fitted(train: Part, validation: Part, labels=None) -> LinearProbe:
        return fit_linear_probe(
            train.features(features), train.labels if labels is None else labels,
            validation=(validation.features(features), validation.labels), strengths=strengths,
        )  # fmt: skip

    probe = fitted(data.train.at(rows), data.validation)
    other = data.control
    noise = fitted(data.train.at(rows), data.validation, shuffled(data.train.labels[rows], seed=seed))
    controls = {
        "random weights": fitted(other.train.at(rows), other.validation).scores(other.test.features(features)),
        "shuffled labels": noise.scores(data.test.features(features)),
    }
    thresholds = best_thresholds(probe.scores(data.validation.features(features)), data.validation.labels)
    unfit = f", {len(probe.unfit)} findings without both classes scored 0" if probe.unfit else ""
    return multilabel(
        probe.scores(data.test.features(features)), data.test.labels, data.names, task="linear probe", controls=controls,
        thresholds=thresholds, split=data.where, resamples=data.budget.resamples, seed=seed,
        rule=(
            f"logistic regression on standardised frozen features ({features}) of {len(rows)} training studies "
            f"({100 * fraction:g} %){unfit}; C = {probe.strength:g}, of {len(strengths)} the best on validation, and the F1 "
            "thresholds too"
        ),
    )  # fmt: skip


def probe_curve(
    data: Transfer, *, fractions: Sequence[float] = FRACTIONS, draws: int = 3, features: str = "pooled",
    strengths: Sequence[float] = STRENGTHS, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Test macro-AUROC of the probe over nested label fractions and draws: columns fraction, studies, draw, AUROC.

    Draw d orders the studies by `seed + d`; all of them (100 %) are the same in every draw, and fitted once.
    """
    held, tested, rows = data.validation, data.test, []
    whole = None
    for draw in range(draws):
        for fraction, chosen in nested_subsets(len(data.train), fractions=fractions, seed=seed + draw).items():
            if fraction < 1 or whole is None:
                part = data.train.at(chosen)
                probe = fit_linear_probe(
                    part.features(features), part.labels, validation=(held.features(features), held.labels),
                    strengths=strengths,
                )  # fmt: skip
                value = float(np.nanmean(auroc(probe.scores(tested.features(features)), tested.labels)))
                whole = value if fraction == 1 else whole
            rows.append({
                "fraction": fraction, "studies": len(chosen), "draw": draw, "AUROC": whole if fraction == 1 else value,
            })  # fmt: skip
    return pd.DataFrame(rows)
