"""Negation: does the model tell "there is a pneumothorax" from "no pneumothorax"?

An AUROC compares pictures, and is the same however much the model prefers one of the two sentences. This probe compares
the two sentences before one picture, as a reader would have to. A model that reads words without their "no" is at chance.
"""

from __future__ import annotations

import numpy as np

from ...budget import Budget
from ...study import Collection, Tokenizer
from ..encode import Examination
from ..prompts import denials, phrases, wording
from ..result import Result
from .cases import balanced_strata, known_cases, mean_scores, report, verdict


def negation(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, kind: str = "lexicon", examination: Examination | None = None,
) -> Result:  # fmt: skip
    """P[s(image, true statement) > s(image, its denial)], where the finding is present and where it is absent."""
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    cases = known_cases(exam)
    names = np.array([name for _, name, _ in cases])
    halves = {name: (phrases(name, kind=kind), denials(name, kind=kind)) for name in dict.fromkeys(names.tolist())}
    there = np.array([present for *_, present in cases])
    asked = [(i, *halves[name]) for i, name, _ in cases]

    def right(of: Examination) -> np.ndarray:
        affirmed, denied = mean_scores(of, asked).T  # (K,) each
        return np.where(there, verdict(affirmed, denied), verdict(denied, affirmed))

    first = next(iter(halves.values()))
    return report(
        exam, task="negation", metric="balanced accuracy", studies=np.array([i for i, _, _ in cases]), names=names,
        own=right(exam), random=right(exam.control), strata=balanced_strata(cases), chance=0.5, seed=seed,
        unit="statements", prompts=f"{wording(halves, kind)}, such as {first[0][0]!r} against {first[1][0]!r}",
        rule=(
            "for each finding the share of studies with it, and of those without it, before which the true statement "
            "scores higher than its denial by name, on average over the wordings; unweighted mean over findings and both "
            "shares, so a fixed preference for either statement gives one half; ties count half; unknown labels left "
            "out; the scorer of training; studies resampled"
        ),
    )  # fmt: skip
