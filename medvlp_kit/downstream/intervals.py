"""Bootstrap intervals without a loop: a resample is a column of counts, so every statistic is a weighted statistic.

Drawing N units with replacement is the same as giving unit i a weight: the number of times it was drawn. A statistic
that accepts weights therefore handles a thousand resamples in one call, and its value on the data themselves is the
same call with all weights one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import KitError

CHUNK = 2**25  # weights held at once (256 MB of float64)


@dataclass(frozen=True)
class Intervals:
    """Percentile bootstrap intervals of one statistic, shape (), or of C statistics, shape (C,).

    value:     on the data themselves
    low, high: the percentiles that enclose `level` of the resamples in which the statistic is defined
    samples:   (R,) or (R, C), NaN where a resample does not define the statistic (such as AUROC of one class)
    undefined: how many resamples that were
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    samples: np.ndarray
    undefined: np.ndarray
    level: float = 0.95

    @classmethod
    def of(cls, value: np.ndarray, samples: np.ndarray, *, level: float = 0.95) -> Intervals:
        """Intervals from the statistic on the data, () or (C,), and on R resamples, (R,) or (R, C)."""
        value, samples = np.asarray(value, dtype=float), np.asarray(samples, dtype=float)
        missing = np.isnan(samples)
        tail = 100 * (1 - level) / 2
        if len(samples) and not missing.any():
            low, high = np.percentile(samples, [tail, 100 - tail], axis=0)
        else:
            columns = samples.reshape(len(samples), -1).T  # (C, R)
            bounds = [_percentiles(column[~np.isnan(column)], tail) for column in columns]
            low, high = np.array(bounds).T.reshape(2, *value.shape)
        return cls(value, np.asarray(low), np.asarray(high), samples, missing.sum(0), level)

    @property
    def macro(self) -> Intervals:
        """The mean over the C statistics; a statistic a resample does not define is left out of that resample."""
        return Intervals.of(_mean_defined(self.value), _mean_defined(self.samples), level=self.level)


def _percentiles(values: np.ndarray, tail: float) -> tuple[float, float]:
    return tuple(np.percentile(values, [tail, 100 - tail])) if len(values) else (np.nan, np.nan)


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without NaN; NaN (and no warning) where nothing is left."""
    present = ~np.isnan(values)
    count = present.sum(-1)
    return np.where(count > 0, np.where(present, values, 0).sum(-1) / np.maximum(count, 1), np.nan)


def resample_counts(units: int, *, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each unit is drawn: (N, R) float64, every column sums to N."""
    drawn = generator.integers(units, size=(resamples, units))
    drawn += np.arange(resamples)[:, None] * units
    counts = np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units)
    # Units lead: then gathering units, and sums over them, walk through memory in order.
    return np.ascontiguousarray(counts.T, dtype=np.float64)


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], units: int, *, resamples: int = 1000, seed: int = 0,
    level: float = 0.95,
) -> Intervals:  # fmt: skip
    """Percentile bootstrap (Efron 1979) of a vectorised statistic over `units` exchangeable units.

    `statistic` takes weights (N, R) float64 and gives (R,) or (R, C); it may give NaN where it is not defined.
    Resamples are made in chunks, so memory stays bounded; the result does not depend on anything but the seed.
    """
    if units < 1:
        raise KitError("nothing to resample: no unit of the data qualifies for this statistic")
    if resamples < 1 or not 0 < level < 1:
        raise KitError(f"a bootstrap needs resamples >= 1 and 0 < level < 1, got {resamples} and {level}")
    generator = np.random.default_rng(seed)
    value = statistic(np.ones((units, 1)))[0]
    chunk = max(1, CHUNK // units)
    parts = []
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        parts.append(statistic(resample_counts(units, resamples=size, generator=generator)))
    return Intervals.of(value, np.concatenate(parts), level=level)


def bootstrap_mean(
    values, *, clusters=None, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> Intervals:
    """The mean of `values` (N,) or (N, C) with its interval; NaN values are left out.

    `clusters` (N,) says which values belong together (all phrases of one study): whole clusters are then resampled,
    because values of one study are not independent and treating them so makes intervals too narrow.
    """
    values = np.asarray(values, dtype=float)
    columns = values.reshape(len(values), -1)  # (N, C)
    present = ~np.isnan(columns)
    total, count = np.where(present, columns, 0.0), present.astype(float)
    if clusters is not None:
        names, place = np.unique(np.asarray(clusters), return_inverse=True)
        sums = np.zeros((2, len(names), columns.shape[1]))
        np.add.at(sums[0], place, total)
        np.add.at(sums[1], place, count)
        total, count = sums

    def statistic(weights: np.ndarray) -> np.ndarray:
        above, below = weights.T @ total, weights.T @ count  # (R, C)
        mean = np.where(below > 0, above / np.maximum(below, 1e-300), np.nan)
        return mean[:, 0] if values.ndim == 1 else mean

    return bootstrap(statistic, len(total), resamples=resamples, seed=seed, level=level)
