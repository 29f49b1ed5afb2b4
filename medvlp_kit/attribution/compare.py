"""Every kind of map scored on the same cases, each beside the controls that it has to beat.

Random weights: the map must be learned. Shuffled text: it must follow the phrase. Centre prior: it must beat a map that
sees neither image nor phrase. A kind that does not beat all three is a picture, not a finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..downstream.encode import randomised
from ..downstream.grounding import METRICS, THRESHOLDS, centre_prior, contrast_to_noise
from ..downstream.intervals import Intervals
from ..errors import KitError
from .gallery import KINDS, Gallery, Kind
from .sanity import seeded_mean

SCORES = {**METRICS, "|CNR|": lambda maps, boxes: contrast_to_noise(maps, boxes, signed=False)}
CONTROLS = ("random weights", "shuffled text", "centre prior")
RULE = (
    "pointing game: the map's maximum lies in a box, equal maxima share the hit; CNR: (mean inside - mean outside) / "
    "sqrt(variance inside + variance outside) of the raw map, population variances, signed: below zero the map points "
    "away; |CNR|: the same with |mean inside - mean outside|, which rewards pointing away; mIoU: map rescaled to "
    f"[-1, 1] by its extremes, mean over thresholds {', '.join(map(str, THRESHOLDS))}; pixels that are NaN take no part, "
    "cases without a pixel in a box are left out; boxes of one finding and side united; mean over cases, 95 % interval "
    "of a bootstrap that draws studies and, for controls, seeds"
)


@dataclass(frozen=True)
class Comparison:
    """What `compare_maps` found.

    table:       (map, condition) x scores with low and high; condition is "model" or a control
    differences: (map, control) x scores: model minus control, case by case, with low and high
    per_seed:    (map, condition, seed) x scores, so that the spread of the control seeds can be seen
    values:      (map, condition) -> (K, S, scores), the score of every case and seed
    rule:        how the numbers are to be read
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    per_seed: pd.DataFrame
    values: dict[tuple[str, str], np.ndarray] = field(repr=False)
    rule: str = RULE

    def beats(self, name: str, *, score: str = "pointing game") -> dict[str, bool]:
        """For each control, whether the interval of the difference lies above zero."""
        part = self.differences.loc[name]
        return {control: bool(part.loc[control, f"{score} low"] > 0) for control in part.index}


def score_cases(maps: Tensor, boxes: Sequence) -> np.ndarray:
    """(K, scores) of maps (K, H, W): the columns of `SCORES`; NaN where a score is not defined."""
    values = torch.stack([score(maps, boxes) for score in SCORES.values()], dim=1).numpy()
    return np.where(np.isfinite(values), values, np.nan)


def compare_maps(
    gallery: Gallery, kinds: Mapping[str, Kind] | None = None, *, seeds: Sequence[int] = (0, 1, 2),
    resamples: int | None = None,
) -> Comparison:  # fmt: skip
    """Score all kinds of map on the gallery's cases, with three controls, the first two once for each seed.

    Random weights are those of the whole model, text side too (`encode.randomised`); shuffled text gives each case the
    phrase of a random case that asks for something else.
    """
    kinds = KINDS if kinds is None else kinds
    if not kinds or not len(seeds):
        raise KitError("nothing to compare: give at least one kind of map and one seed of the controls")
    boxes, clusters = gallery.cases.boxes, gallery.cases.studies
    random = {seed: randomised(gallery.model, seed=seed) for seed in seeds}
    readings = {seed: gallery.asked(model) for seed, model in random.items()}
    orders = {seed: gallery.others(seed=seed, differ="phrase") for seed in seeds}
    prior = score_cases(centre_prior(gallery.size).expand(len(gallery), -1, -1), boxes)[:, None]
    values: dict[tuple[str, str], np.ndarray] = {}
    for name, kind in kinds.items():
        values[name, "model"] = score_cases(gallery.maps(kind), boxes)[:, None]
        drawn = [gallery.maps(kind, model=random[seed], asked=readings[seed]) for seed in seeds]
        values[name, "random weights"] = np.stack([score_cases(maps, boxes) for maps in drawn], axis=1)
        drawn = [gallery.maps(kind, phrases=orders[seed]) for seed in seeds]
        values[name, "shuffled text"] = np.stack([score_cases(maps, boxes) for maps in drawn], axis=1)
        values[name, "centre prior"] = prior

    options = dict(clusters=clusters, resamples=resamples or gallery.budget.resamples, seed=gallery.seed)
    table = {key: _row(each, **options) for key, each in values.items()}
    differences = {
        (name, control): _row(values[name, "model"] - values[name, control], **options)
        for name in kinds for control in CONTROLS
    }  # fmt: skip
    per_seed = {
        (name, condition, seed): dict(zip(SCORES, _means(each[:, place]), strict=True))
        for (name, condition), each in values.items()
        for place, seed in enumerate(seeds if each.shape[1] == len(seeds) > 1 else ["-"])
    }
    return Comparison(
        table=_frame(table, ["map", "condition"]),
        differences=_frame(differences, ["map", "control"]),
        per_seed=_frame(per_seed, ["map", "condition", "seed"]),
        values=values,
    )


def _row(values: np.ndarray, **options) -> dict[str, float]:
    """Mean, low and high of each score, from values (K, S, scores)."""
    row: dict[str, float] = {}
    for column, score in enumerate(SCORES):
        found: Intervals = seeded_mean(values[:, :, column], **options)
        row |= {score: float(found.value), f"{score} low": float(found.low), f"{score} high": float(found.high)}
    return row | {"cases": int((~np.isnan(values[:, :, 0])).any(1).sum())}


def _means(values: np.ndarray) -> list[float]:
    return [float(np.nanmean(column)) if not np.isnan(column).all() else np.nan for column in values.T]


def _frame(rows: dict[tuple, dict], names: list[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows.values(), index=pd.MultiIndex.from_tuples(rows, names=names))
    return frame.astype({"cases": int}) if "cases" in frame else frame
