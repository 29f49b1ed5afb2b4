"""Augmentation of text alone: another order, or fewer sentences, with the facts kept.

A fact is (finding, polarity, side), as the kit's labeller reads it. A rule check guards every change: where the facts
would differ, the report stays as it was.

What no rule here sees is discourse: "It has grown" means another thing behind another sentence. Phantom reports name
what they speak of; dictated reports do not always.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch

from ..errors import KitError
from ..labeller import label_findings
from ..study import ABSENT, Finding, Report
from ..text import sentences
from .pairs import Pairs, Policy

Fact = tuple[str, str, str | None]  # finding, status, side
HEADS = {"en": ("FINDINGS", "IMPRESSION"), "es": ("HALLAZGOS", "IMPRESIÓN")}


def facts(text: str, *, language: str = "en", denials: bool = True) -> frozenset[Fact]:
    """What a text states: (finding, present | uncertain | absent, side). denials: whether absences count."""
    return facts_of(label_findings(text, language=language).values(), denials=denials)


def facts_of(findings: Iterable[Finding], *, denials: bool = True) -> frozenset[Fact]:
    """The same of findings."""
    return frozenset((f.name, f.status, f.side) for f in findings if denials or f.status != ABSENT)


@lru_cache(maxsize=1 << 16)  # reports repeat their sentences
def sentence_facts(sentence: str, language: str) -> frozenset[Fact]:
    return facts(sentence, language=language)


# ---- editing reports --------------------------------------------------------------------------------------------


def edit_sentences(report: Report, edit: Callable[[list[str]], list[str]]) -> Report:
    """The report with `edit` applied to the sentences of each section, or of the text where sections are not separated.

    A section that `edit` leaves alone keeps its form. The text is put together from the two sections anew.
    """
    if not (report.findings or report.impression):
        return replace(report, text=_edited(report.text, edit))
    found, concluded = _edited(report.findings, edit), _edited(report.impression, edit)
    if (found, concluded) == (report.findings, report.impression):
        return report
    parts = zip(HEADS.get(report.language, HEADS["en"]), (found, concluded), strict=True)
    text = "\n".join(f"{head}: {body}" for head, body in parts if body)
    return replace(report, text=text, findings=found, impression=concluded)


def _edited(section: str, edit: Callable[[list[str]], list[str]]) -> str:
    before = sentences(section)
    after = edit(list(before))
    return section if after == before else " ".join(map(_closed, after))


def _closed(sentence: str) -> str:
    """Two sentences that stood on lines of their own must not run into each other."""
    return sentence if re.search(r"[.!?]['\")\]]*$", sentence) else f"{sentence}."


def drop_sentences(report: Report, wrong: Callable[[Fact], bool]) -> Report:
    """The report without every sentence that states a fact that is `wrong`; its other facts go with it."""

    def edit(section: list[str]) -> list[str]:
        return [one for one in section if not any(map(wrong, sentence_facts(one, report.language)))]

    return edit_sentences(report, edit)


# ---- policies ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShuffleSentences(Policy):
    """Each section's sentences in a random order."""

    guarantee: ClassVar[str] = "facts (finding, polarity, side) stay; not the references from one sentence to the last"

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        def edit(section: list[str]) -> list[str]:
            return [section[i] for i in torch.randperm(len(section), generator=generator).tolist()]

        return pairs.but(reports=tuple(_same_facts(report, edit_sentences(report, edit)) for report in pairs.reports))


@dataclass(frozen=True)
class SampleSentences(Policy):
    """Each section's sentences, each kept with probability `keep`; one that alone states a fact is always kept.

    denials=False lets the sentences go that only deny: fewer facts, but none about what is there.
    """

    keep: float = 0.5
    denials: bool = True
    guarantee: ClassVar[str] = "what is stated present or doubtful, and its side, stays stated; denials if denials=True"

    def __post_init__(self):
        if not 0 <= self.keep <= 1:
            raise KitError(f"SampleSentences(keep={self.keep!r}): give a number from 0 to 1")

    def __call__(self, pairs: Pairs, *, generator: torch.Generator) -> Pairs:
        changed = []
        for report in pairs.reports:
            sampled = edit_sentences(report, lambda section: self._sample(section, report.language, generator))
            changed.append(_same_facts(report, sampled, denials=self.denials))
        return pairs.but(reports=tuple(changed))

    def _sample(self, section: list[str], language: str, generator: torch.Generator) -> list[str]:
        said = [self._counted(sentence, language) for sentence in section]
        kept = set(range(len(section)))
        go = torch.rand(len(section), generator=generator) >= self.keep
        for i in torch.randperm(len(section), generator=generator).tolist():
            others = frozenset().union(*(said[j] for j in kept if j != i))
            if go[i] and said[i] <= others and len(kept) > 1:
                kept.remove(i)
        return [sentence for i, sentence in enumerate(section) if i in kept]

    def _counted(self, sentence: str, language: str) -> frozenset[Fact]:
        return frozenset(fact for fact in sentence_facts(sentence, language) if self.denials or fact[1] != ABSENT)


def _same_facts(before: Report, after: Report, *, denials: bool = True) -> Report:
    """`after`, or `before` where a text or section would state other facts."""
    for name in ("text", "findings", "impression"):
        old, new = (facts(getattr(one, name), language=one.language, denials=denials) for one in (before, after))
        if old != new:
            return before
    return after
