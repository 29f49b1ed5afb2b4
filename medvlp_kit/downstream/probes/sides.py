"""Side swap: does the model know left from right?

A model trained on flipped images with unchanged reports may keep its AUROC and still be at chance here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ...budget import Budget
from ...errors import KitError
from ...study import PRESENT, Collection, Tokenizer
from ..encode import Examination
from ..prompts import phrases, wording
from ..result import Result
from .cases import preference, report

SIDES = {"left": "right", "right": "left"}
# Spanish adjectives agree in gender and number, so the stem is swapped and the ending kept.
_SIDE_WORDS = re.compile(r"\b(left|right|izquierd|derech)(?=[oa]s?\b|\b|-sided\b)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left", "izquierd": "derech", "derech": "izquierd"}


def swap_sides(text: str) -> str:
    """The text with left and right exchanged (English and Spanish); case is kept; its own inverse."""

    def other(match: re.Match) -> str:
        word = match.group()
        swapped = _OTHER[word.lower()]
        return swapped.upper() if word.isupper() else swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE_WORDS.sub(other, text)


def one_sided(collection: Collection) -> Iterator[tuple[int, str, str]]:
    """(study, finding, side) of every finding that is present on exactly one side of a study."""
    for i in range(len(collection)):
        sides: dict[str, set] = {}
        for finding in collection.findings(i):
            if finding.status == PRESENT and finding.side:
                sides.setdefault(finding.name, set()).add(finding.side)
        for name, found in sides.items():
            if len(found) == 1 and (side := next(iter(found))) in SIDES:
                yield i, name, side


def side_swap(
    model, tokenizer: Tokenizer, collection: Collection, *, budget: str | Budget | None = None,
    split: str | None = "test", seed: int = 0, kind: str = "lexicon", examination: Examination | None = None,
) -> Result:  # fmt: skip
    """P[s(image, true sentence) > s(image, the same with left and right exchanged)] over one-sided findings."""
    exam = examination or Examination(model, tokenizer, collection, budget=budget, split=split, seed=seed)
    cases = list(one_sided(exam.collection))
    if not cases:
        raise KitError(f"{exam.collection.name} says of no finding that it is on one side, so sides cannot be probed")
    true = {case: phrases(case[0], side=case[1], kind=kind) for case in dict.fromkeys(c[1:] for c in cases)}
    false = {case: [swap_sides(sentence) for sentence in sentences] for case, sentences in true.items()}
    pairs = [(i, true[name, side], false[name, side]) for i, name, side in cases]
    studies, names = np.array([i for i, _, _ in cases]), np.array([name for _, name, _ in cases])
    return report(
        exam, task="side swap", studies=studies, names=names, own=preference(exam, pairs),
        random=preference(exam.control, pairs), chance=0.5, seed=seed,
        prompts=f"{wording(names, kind)}, finding and side, such as {pairs[0][1][0]!r} against {pairs[0][2][0]!r}",
        rule=(
            "share of one-sided findings whose true sentences score higher, on average over the wordings, than the "
            "same sentences with left and right exchanged; ties count half; findings on both sides are left out; "
            "the scorer of training; studies resampled"
        ),
    )  # fmt: skip
