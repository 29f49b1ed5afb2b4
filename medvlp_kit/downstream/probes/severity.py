"""Severity order: are the pictures with a finding in the order of how severe it is?

The scale is s(image, "large effusion") - s(image, "small effusion"). It need not be calibrated, only ordered.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ...budget import Budget
from ...errors import KitError
from ...phantoms.scene import FINDINGS, SEVERITIES
from ...study import PRESENT, Collection, Tokenizer
from ..classification import weighted_auroc
from ..encode import Examination
from ..intervals import Intervals, bootstrap
from ..prompts import phrases, wording
from ..result import Estimate, Result
from .cases import mean_scores


def concordance(scores: np.ndarray, grades: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """P[score orders two cases as their grades do], over all pairs of different grade; ties half. (N,), (N,), (N, R) -> (R,)

    The sum, over pairs of grades, of AUROCs times the pairs each rests on; NaN where a resample has one grade only.
    """
    won, pairs = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    present = np.unique(grades)
    for low in present:
        for high in present[present > low]:
            chosen = (grades == low) | (grades == high)
            higher = (grades[chosen] == high).astype(float)
            here = weights[chosen]
            count = (here * higher[:, None]).sum(0) * (here * (1 - higher[:, None])).sum(0)
            won += np.nan_to_num(weighted_auroc(scores[chosen], higher, here)) * count
            pairs += count
    return np.where(pairs > 0, won / np.maximum(pairs, 1e-300), np.nan)


def graded(collection: Collection, *, kind: str = "lexicon") -> dict[str, list[tuple[int, int]]]:
    """finding -> (study, grade 0 to 2) of those present with one severity; findings with two grades and words for them."""
    found: dict[str, list[tuple[int, int]]] = {}
    for i in range(len(collection)):
        severities: dict[str, set] = {}
        for finding in collection.findings(i):
            if finding.status == PRESENT and finding.severity in SEVERITIES:
                severities.setdefault(finding.name, set()).add(SEVERITIES.index(finding.severity))
        for name, some in severities.items():
            if len(some) == 1:
                found.setdefault(name, []).append((i, next(iter(some))))
    return {
        name: cases for name, cases in sorted(found.items())
        if len({grade for _, grade in cases}) > 1 and all(ends(name, kind=kind))
    }  # fmt: skip


def ends(finding: str, *, kind: str = "lexicon") -> tuple[list[str], list[str]]:
    """(mild, severe) sentences, without the wordings that say nothing of severity."""
    silent = set(phrases(finding, kind=kind))
    if kind != "plain" and finding in FINDINGS:
        from ...phantoms import report

        silent = set(report.prompts(finding, held_out=kind == "held out", limit=10**6))  # all of them
    mild, severe = (phrases(finding, severity=grade, kind=kind) for grade in (SEVERITIES[0], SEVERITIES[-1]))
    return [s for s in mild if s not in silent], [s for s in severe if s not in silent]


def severity_order(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, kind: str = "lexicon", examination: Examination | None = None,
) -> Result:  # fmt: skip
    """Concordance of s(image, severe) - s(image, mild) with the true grade, finding by finding; their mean."""
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    cases = graded(exam.collection, kind=kind)
    if not cases:
        raise KitError(f"{exam.collection.name} has no finding in two grades of severity, so their order cannot be probed")
    words = {name: ends(name, kind=kind) for name in cases}
    resamples = exam.budget.resamples

    def intervals(of: Examination) -> Intervals:
        scales = {}
        for name, some in cases.items():
            mild, severe = mean_scores(of, [(i, *words[name]) for i, _ in some]).T
            scales[name] = severe - mild

        def statistic(weights: np.ndarray) -> np.ndarray:
            columns = [
                concordance(scales[name], np.array([grade for _, grade in some]), weights[[i for i, _ in some]])
                for name, some in cases.items()
            ]
            return np.stack(columns, axis=1)  # (R, F)

        return bootstrap(statistic, len(of), resamples=resamples, seed=seed)

    own, random = intervals(exam), intervals(exam.control)
    whole = own.macro
    counts = [len(some) for some in cases.values()]
    rows = [("all", sum(counts), *map(float, (whole.value, whole.low, whole.high, random.macro.value)))]
    rows += list(zip(cases, counts, own.value, own.low, own.high, random.value))
    columns = ["finding", "cases", "concordance", "low", "high", "random weights"]
    first = next(iter(words.values()))
    return Result(
        task="severity order", name="concordance", value=float(whole.value), low=float(whole.low), high=float(whole.high),
        controls=(Estimate("chance", 0.5), Estimate.of("random weights", random.macro)),
        n=sum(counts), unit="findings", studies=len({i for some in cases.values() for i, _ in some}), resamples=resamples,
        split=exam.where, seed=seed, table=pd.DataFrame(rows, columns=columns).set_index("finding"),
        prompts=f"{wording(cases, kind)}, such as {first[1][0]!r} against {first[0][0]!r}",
        rule=(
            "share of pairs of studies with the same finding in different grades that s(image, severe sentences) - "
            "s(image, mild sentences) puts in their order; unweighted mean over findings; equal scores count half; "
            "uncertain findings are left out; the scorer of training; studies resampled"
        ),
    )  # fmt: skip
