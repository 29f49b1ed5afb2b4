"""Zone: does the model know upper from lower? The true zone against the others, all else in the sentence the same."""

from __future__ import annotations

import numpy as np

from ...budget import Budget
from ...errors import KitError
from ...study import PRESENT, Collection, Tokenizer
from ..encode import Examination
from ..prompts import phrases, wording
from ..result import Result
from .cases import mean_scores, report


def one_zone(collection: Collection) -> list[tuple[int, str, str | None, str]]:
    """(study, finding, side, zone) of every finding present in exactly one zone, where that finding has two zones or more."""
    found = []
    for i in range(len(collection)):
        places: dict[str, set] = {}
        for finding in collection.findings(i):
            if finding.status == PRESENT and finding.zone:
                places.setdefault(finding.name, set()).add((finding.side, finding.zone))
        found += [(i, name, *next(iter(some))) for name, some in places.items() if len(some) == 1]
    zones = choices(found)
    return [case for case in found if len(zones[case[1]]) > 1]


def choices(cases) -> dict[str, list[str]]:
    """finding -> the zones in which the cases have it: among these the model chooses."""
    zones: dict[str, set] = {}
    for _, name, _, zone in cases:
        zones.setdefault(name, set()).add(zone)
    return {name: sorted(some) for name, some in zones.items()}


def zone(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, kind: str = "lexicon", examination: Examination | None = None,
) -> Result:  # fmt: skip
    """P[the true zone scores highest], the side told and the same in every sentence."""
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    cases = one_zone(exam.collection)
    if not cases:
        raise KitError(f"{exam.collection.name} has no finding in several zones of different studies, so zones cannot be probed")
    zones = choices(cases)
    said = {
        (name, side): [phrases(name, side=side, zone=place, kind=kind) for place in zones[name]]
        for _, name, side, _ in cases
    }
    names, true = np.array([case[1] for case in cases]), [zones[name].index(place) for _, name, _, place in cases]

    def right(of: Examination) -> np.ndarray:
        values = np.full(len(cases), np.nan)
        for name in zones:  # findings differ in how many zones there are to choose from
            rows = np.flatnonzero(names == name)
            scores = mean_scores(of, [(cases[row][0], *said[name, cases[row][2]]) for row in rows])  # (k, zones)
            best = scores == scores.max(1, keepdims=True)
            values[rows] = best[np.arange(len(rows)), [true[row] for row in rows]] / best.sum(1)
        return values

    strata = np.array([f"{name} {place}" for _, name, _, place in cases])
    _, name, side, place = cases[0]
    return report(
        exam, task="zone", metric="balanced accuracy", studies=np.array([case[0] for case in cases]), names=names,
        own=right(exam), random=right(exam.control), strata=strata, chance=len(zones) / len(set(strata.tolist())), seed=seed,
        prompts=f"{wording(zones, kind)}, finding, side and zone, such as {said[name, side][zones[name].index(place)][0]!r}",
        rule=(
            "for each finding and zone the share of its cases in which the true zone scores highest among the zones that "
            "occur, on average over the wordings and with the true side in all of them; unweighted mean over findings and "
            "zones, so a favourite zone earns chance; ties share the point; findings in several places are left out; the "
            "scorer of training; studies resampled"
        ),
    )  # fmt: skip
