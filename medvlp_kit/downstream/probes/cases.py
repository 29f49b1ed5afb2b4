"""What probes share: single cases, right (1), wrong (0) or undecided (1/2), and their mean with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ...errors import KitError
from ..encode import Examination
from ..intervals import Intervals, bootstrap_mean
from ..prompts import NO_FINDING
from ..result import Estimate, Result


def preference(exam: Examination, pairs: Sequence[tuple[int, Sequence[str], Sequence[str]]]) -> np.ndarray:
    """For each (study, true sentences, false sentences): does the model score the true ones higher? (K,) 0, ½ or 1.

    The scores of the true and of the false sentences are averaged before they are compared.
    """
    return verdict(*mean_scores(exam, pairs).T)


def mean_scores(exam: Examination, cases: Sequence[tuple]) -> np.ndarray:
    """For each (study, sentences, sentences, ...): the mean score of each list of sentences, (K, lists)."""
    sentences = list(dict.fromkeys(s for _, *lists in cases for some in lists for s in some))
    place = {sentence: i for i, sentence in enumerate(sentences)}
    scores = exam.scores(sentences).double().numpy()  # (N, M)
    return np.array([[scores[i, [place[s] for s in some]].mean() for some in lists] for i, *lists in cases])


def verdict(higher: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """1 where `higher` is the higher one, 1/2 where both are equal, 0 elsewhere."""
    return (np.sign(higher - lower) + 1) / 2


def balanced_mean(values, studies, strata=None, *, resamples: int, seed: int) -> Intervals:
    """The mean over strata of the means within them, with studies resampled; values, studies, strata: (K,).

    A model that always prefers one answer is right in one stratum and wrong in another, so it stays at chance however
    common either is.
    """
    values = np.asarray(values, dtype=float)
    kinds, place = np.unique(np.zeros(len(values)) if strata is None else np.asarray(strata), return_inverse=True)
    columns = np.full((len(values), len(kinds)), np.nan)
    columns[np.arange(len(values)), place] = values
    return bootstrap_mean(columns, clusters=studies, resamples=resamples, seed=seed).macro


def report(
    exam: Examination, *, task: str, studies: np.ndarray, names: np.ndarray, own: np.ndarray, random: np.ndarray,
    chance: float, prompts: str, rule: str, seed: int, strata=None, metric: str = "accuracy", unit: str = "findings",
    controls: Sequence[Estimate] = (), also: Sequence[Estimate] = (),
    columns: Callable[[str], dict] = lambda name: {},
) -> Result:  # fmt: skip
    """The result of K cases: all of them, and finding by finding. own, random: (K,), the model's and random weights'.

    studies, names: the study and the finding of each case; strata: as in `balanced_mean`
    columns:        further columns of the table, given the finding ("all" included)
    """
    strata = np.zeros(len(own), dtype=int) if strata is None else np.asarray(strata)

    def interval(values: np.ndarray, chosen) -> Intervals:
        return balanced_mean(
            values[chosen], studies[chosen], strata[chosen], resamples=exam.budget.resamples, seed=seed
        )

    everything = np.arange(len(own))
    rows = []
    for name in ["all", *sorted(set(names.tolist()))]:
        chosen = everything if name == "all" else np.flatnonzero(names == name)
        mine, other = interval(own, chosen), interval(random, chosen)
        numbers = {metric: float(mine.value), "low": float(mine.low), "high": float(mine.high)}
        rows.append({"finding": name, "cases": len(chosen), **numbers, "random weights": float(other.value), **columns(name)})
    whole = interval(own, everything)
    return Result(
        task=task, name=metric, value=float(whole.value), low=float(whole.low), high=float(whole.high),
        controls=(Estimate("chance", chance), Estimate.of("random weights", interval(random, everything)), *controls),
        also=tuple(also), n=len(own), unit=unit, studies=len(set(studies.tolist())), resamples=exam.budget.resamples,
        split=exam.where, seed=seed, table=pd.DataFrame(rows).set_index("finding"), prompts=prompts, rule=rule,
    )  # fmt: skip


def known_cases(exam: Examination) -> list[tuple[int, str, bool]]:
    """(study, finding, whether it is present) for every known label of findings that are there in some and not in all.

    KitError where there is none.
    """
    collection = exam.collection
    labels = collection.labels(range(len(collection))).numpy()  # (N, F)
    found = []
    for column, name in enumerate(collection.label_names):
        values = labels[:, column]
        if name.casefold() == NO_FINDING.casefold() or not ((values == 1).any() and (values == 0).any()):
            continue
        found += [(int(i), name, bool(values[i])) for i in np.flatnonzero(~np.isnan(values))]
    if not found:
        raise KitError(f"{collection.name} has no label that is both present and absent, so no statement can be true and false")
    return found


def balanced_strata(cases: list[tuple[int, str, bool]]) -> np.ndarray:
    """The stratum of each case: its finding, present or absent. A fixed answer to a finding is right in one of the two."""
    return np.array([f"{name} {there}" for _, name, there in cases])
