"""How far a zero-shot result moves when only its wording changes: AUROC over many sampled prompt sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..budget import Budget
from ..errors import KitError
from ..study import Collection, Tokenizer
from .classification import bootstrap_auroc, zero_shot_scores
from .encode import Examination
from .intervals import Intervals
from .prompt_sets import FEWEST_SETS, sample_prompt_sets
from .prompts import PromptSet
from .result import Estimate, Result


def spread_scores(exam: Examination, sets: Sequence[PromptSet], *, ensemble: str | None = None) -> np.ndarray:
    """Zero-shot scores under every prompt set, (S, N, C). Each image and each distinct sentence is encoded once."""
    exam.prompts(list(dict.fromkeys(sentence for one in sets for sentence in one.sentences)))  # in one go
    return np.stack([
        zero_shot_scores(
            exam.model, exam.encoded.image, one, text=exam.prompts(one.sentences), ensemble=ensemble
        ).numpy()
        for one in sets
    ])  # fmt: skip


def _macro(scores: np.ndarray, labels: np.ndarray, *, resamples: int, seed: int) -> list[Intervals]:
    """Macro-AUROC of every set; all sets share the resamples."""
    return [bootstrap_auroc(one, labels, resamples=resamples, seed=seed).macro for one in scores]


def _median(found: Sequence[Intervals]) -> Intervals:
    """The median over sets, resample by resample: its interval is about studies, not about words."""
    value = np.median([one.value for one in found])
    return Intervals.of(value, np.median([one.samples for one in found], axis=0))


def prompt_spread(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", sets: Sequence[PromptSet] | None = None, count: int = 50, seed: int = 0,
    ensemble: str | None = None, resamples: int | None = None, examination: Examination | None = None,
) -> Result:  # fmt: skip
    """The median over prompt sets of the zero-shot macro-AUROC; its spread (least, quarters, greatest) beside.

    sets: at least 30, sampled by `sample_prompt_sets` when None. The interval is of the median, over studies; the spread
    is over wordings: the first shrinks with more patients, the second does not.
    """
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    names = list(exam.collection.label_names)
    if not names:
        raise KitError(f"{exam.collection.name} has no labels, so zero-shot classification has nothing to be scored on")
    sets = sample_prompt_sets(names, count=count, seed=seed) if sets is None else list(sets)
    if len(sets) < FEWEST_SETS:
        raise KitError(f"{len(sets)} prompt sets: the ends of a spread need at least {FEWEST_SETS}; raise count=")
    sets = [one.only(names) for one in sets]
    labels = exam.encoded.labels.numpy().astype(float)
    resamples = resamples or exam.budget.resamples
    own = spread_scores(exam, sets, ensemble=ensemble)
    found = _macro(own, labels, resamples=resamples, seed=seed)
    values = np.array([float(one.value) for one in found])
    order = np.random.default_rng(seed).permutation(labels.shape[0])
    few = min(resamples, 200)  # a control needs no sharper an interval
    controls = {
        "shuffled images": _median(_macro(own[:, order], labels, resamples=few, seed=seed)),
        "random weights": _median(
            _macro(spread_scores(exam.control, sets, ensemble=ensemble), labels, resamples=few, seed=seed)
        ),
    }
    quarters = dict(zip(("least", "first quarter", "third quarter", "greatest"), np.quantile(values, (0, 0.25, 0.75, 1))))
    table = pd.DataFrame(
        {
            "AUROC": values, "low": [float(one.low) for one in found], "high": [float(one.high) for one in found],
            "sentences": [len(one.sentences) for one in sets],
            "affirmed, first finding": [one.pairs[names[0]][0][0] for one in sets],
            "denied, first finding": [one.pairs[names[0]][1][0] for one in sets],
        },
        index=pd.Index([one.name for one in sets], name="prompt set"),
    )  # fmt: skip
    middle = _median(found)
    return Result(
        task="zero-shot over prompt sets", name="median macro-AUROC", value=float(middle.value), low=float(middle.low),
        high=float(middle.high), controls=tuple(Estimate.of(name, one) for name, one in controls.items()),
        also=tuple(Estimate(f"{name} of {len(sets)} sets", value) for name, value in quarters.items()),
        n=len(exam), unit="studies", resamples=resamples, split=exam.where, seed=seed, table=table,
        prompts=f"{len(sets)} sets, such as {sets[0]}",
        rule=(
            f"macro-AUROC under each of {len(sets)} prompt sets, then the median; score = similarity with the affirming "
            "minus similarity with the denying sentences, the scorer of training; ties count half; unknown labels left "
            "out; the interval resamples studies and keeps the sets, the spread is over the sets"
        ),
    )  # fmt: skip
