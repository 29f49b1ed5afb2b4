"""Prompts: the sentences that ask a model for a finding, in pairs of presence and absence.

For the kit's ten findings the sentences come from the phantom lexicon, in the wordings reports use; for any other label
name they are two plain templates. A `PromptSet` has a name because a result is only as good as its wording: the same
model moves by tens of points when the words change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import KitError, unknown
from ..phantoms.scene import FINDINGS

NO_FINDING = "No Finding"  # a label of several public sets; its presence is an absence, so its pair is turned round
NORMAL = ("No abnormality.", "Normal study.")  # plain words for its presence, of any organ
KINDS = ("lexicon", "held out", "plain")


@dataclass(frozen=True)
class PromptSet:
    """Named prompt pairs: finding -> (sentences that affirm it, sentences that deny it)."""

    name: str
    pairs: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

    def __post_init__(self):
        pairs = {}
        for finding, pair in self.pairs.items():
            if isinstance(pair, str) or len(pair) != 2:
                raise KitError(f"prompts for {finding!r}: give a pair (positive, negative), each a sentence or several")
            pairs[finding] = tuple((half,) if isinstance(half, str) else tuple(half) for half in pair)
            if not all(pairs[finding]):
                raise KitError(f"prompts for {finding!r}: both halves of the pair need at least one sentence")
        object.__setattr__(self, "pairs", MappingProxyType(pairs))

    def __str__(self) -> str:
        sizes = [len(positive) + len(negative) for positive, negative in self.pairs.values()]
        positive, negative = next(iter(self.pairs.values()), (("",), ("",)))
        return (
            f"{self.name}: {len(self.pairs)} findings, {sum(sizes)} sentences,"
            f" such as {positive[0]!r} against {negative[0]!r}"
        )

    @property
    def sentences(self) -> list[str]:
        """All distinct sentences, in order."""
        return list(dict.fromkeys(s for pair in self.pairs.values() for half in pair for s in half))

    def only(self, findings: Iterable[str]) -> PromptSet:
        """The same set for some of its findings."""
        for finding in (findings := list(findings)):
            if finding not in self.pairs:
                raise unknown("finding in the prompt set", finding, self.pairs)
        return PromptSet(self.name, {finding: self.pairs[finding] for finding in findings})


def phrases(
    finding: str, *, side: str | None = None, zone: str | None = None, severity: str | None = None,
    language: str = "en", kind: str = "lexicon",
) -> list[str]:  # fmt: skip
    """Sentences that say `finding` is there, on `side` and in `zone` when given."""
    if kind not in KINDS:
        raise unknown("kind of prompt", kind, KINDS)
    if kind != "plain" and finding in FINDINGS:
        from ..phantoms import report

        return report.prompts(
            finding, side=side, zone=zone, severity=severity, language=language, held_out=kind == "held out"
        )
    name = plain_name(finding)
    side = None if side in name.split() else side  # a label such as "right lung" says it already
    words = [severity, side, zone and f"{zone} zone", name]
    return [f"There is {' '.join(word for word in words if word)}."]


def plain_name(finding: str) -> str:
    """A label as it is written inside a sentence: words in small letters, abbreviations such as COVID-19 as they are."""
    return " ".join(word.lower() if word[1:] == word[1:].lower() else word for word in finding.split())


def wording(findings: Iterable[str], kind: str) -> str:
    """Whose words the sentences about `findings` are, for a result's `prompts`."""
    own = {finding in FINDINGS for finding in findings}
    if kind == "plain" or own == {True}:
        return kind
    return "plain" if own == {False} else f"{kind} where it knows the finding, else plain"


def normal_statements(*, language: str = "en") -> list[str]:
    """Sentences that deny every finding at once."""
    from ..phantoms import report

    return report.normal_prompts(language=language)


def denials(finding: str, *, limit: int = 12, language: str = "en", kind: str = "lexicon") -> list[str]:
    """Sentences that deny `finding` by its name, at most `limit` of them."""
    if kind not in KINDS:
        raise unknown("kind of prompt", kind, KINDS)
    if kind != "plain" and finding in FINDINGS:
        from ..phantoms import report

        return report.negative_prompts(finding, language=language, held_out=kind == "held out", limit=limit)
    return [f"No {plain_name(finding)}."]


def negatives(finding: str, *, language: str = "en", kind: str = "lexicon") -> list[str]:
    """Sentences that say `finding` is not there: as many that deny it by name as deny everything.

    Impressions rarely name what is absent; a model trained on them knows "normal" better than "no pneumothorax".
    """
    if kind == "plain" or finding not in FINDINGS:
        return denials(finding, kind=kind)
    normal = normal_statements(language=language)
    return [*denials(finding, limit=len(normal), language=language, kind=kind), *normal]


def all_at_once(sentences: Iterable[str]) -> str:
    """One text of several statements: what denies "No Finding" when they affirm the other findings.

    Neither "There is an abnormality." nor the mean of single findings does: normal studies lie amid all findings, and so
    do that mean and any sentence a model cannot place, so that the two halves of the pair would cancel (lesson 16).
    """
    return " ".join(sentences)


def _no_finding(findings: Iterable[str], *, kind: str, language: str) -> tuple[list[str], list[str]]:
    """The pair for "No Finding": statements of a normal study, against one of all the other findings."""
    others = [finding for finding in findings if finding.casefold() != NO_FINDING.casefold()] or FINDINGS
    normal = list(NORMAL) if kind == "plain" else normal_statements(language=language)
    return normal, [all_at_once(phrases(finding, language=language, kind=kind)[0] for finding in others)]


def prompt_set(findings: Sequence[str], *, kind: str = "lexicon", language: str = "en") -> PromptSet:
    """The pairs for `findings`. kind: "lexicon" (as reports say it), "held out" (as no report says it) or "plain"."""
    pairs = {}
    for finding in findings:
        positive = phrases(finding, language=language, kind=kind)
        negative = negatives(finding, language=language, kind=kind)
        if finding.casefold() == NO_FINDING.casefold():
            positive, negative = _no_finding(findings, kind=kind, language=language)
        pairs[finding] = (tuple(positive), tuple(negative))
    name = wording(findings, kind)
    return PromptSet(name if language == "en" else f"{name}, {language}", pairs)


def as_prompt_set(prompts: PromptSet | Mapping | str | None, findings: Sequence[str]) -> PromptSet:
    """What a user may pass as prompts, as a PromptSet: None (lexicon), a kind, a mapping of pairs, or a PromptSet."""
    if prompts is None or isinstance(prompts, str):
        return prompt_set(findings, kind=prompts or "lexicon")
    return prompts if isinstance(prompts, PromptSet) else PromptSet("own", prompts)
