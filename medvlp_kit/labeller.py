"""Which findings a report states, denies or doubts: rules in the manner of NegEx and ConText.

Each sentence is searched for mentions of findings and for cues (negation, hedge, not-an-assertion) that stand before
or behind them. A cue reaches a mention unless something between them begins a new statement. The rules are data, in
`assets/lexicon/labels_en.yaml` and `labels_es.yaml`; the labeller never sees how a phantom report was made.

Chapman et al., "A simple algorithm for identifying negated findings and diseases in discharge summaries", 2001;
Harkema et al., "ConText", 2009; Irvin et al., "CheXpert", 2019 (names of the findings, uncertain as a third state).
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import yaml

from medvlp_kit.assets import asset
from medvlp_kit.errors import unknown
from medvlp_kit.labeller_places import Mention, Places, words
from medvlp_kit.phantoms.scene import FINDINGS, SIDED, ZONED
from medvlp_kit.sections import assertions, sentences
from medvlp_kit.study import ABSENT, PRESENT, UNCERTAIN, Finding

LANGUAGES = ("en", "es")


def label_findings(text: str, *, language: str = "en") -> dict[str, Finding]:
    """What a report says of each finding: name -> `Finding` with status, side, zone and severity.

    A finding that is not mentioned is not in the dictionary; `absent` means that the text denies it. Where statements
    differ, present outweighs uncertain and uncertain outweighs absent, and left with right makes bilateral. "likely",
    "possible" and "suggestive of" are uncertain; "consistent with" is present; "unlikely" is absent. Indications,
    history and technique are not read when they stand under heads of their own. `text` may be a whole report, a
    section or a sentence; unknown languages raise `KitError`.
    """
    rules = _rules(language)
    said: dict[str, list[Finding]] = {}
    for sentence in sentences(assertions(text)):
        for finding in rules.read(sentence):
            said.setdefault(finding.name, []).append(finding)
    return {name: _together(said[name]) for name in FINDINGS if name in said}


def _together(said: list[Finding]) -> Finding:
    """One finding from all that is said of it."""
    status = max((finding.status for finding in said), key=(ABSENT, UNCERTAIN, PRESENT).index)
    said = [finding for finding in said if finding.status == status]

    def all_of(field: str, several: str | None) -> str | None:
        values = {value for finding in said if (value := getattr(finding, field)) is not None}
        return several if len(values) > 1 else next(iter(values), None)

    side, zone, severity = all_of("side", "bilateral"), all_of("zone", None), all_of("severity", None)
    return Finding(said[0].name, status, side=side, zone=zone, severity=severity)


Cue = tuple[int, int, str]  # start, end, kind: ignore | hedge | negation


class Rules:
    """The compiled rules of one language."""

    def __init__(self, data: dict):
        self.rewrite = [(re.compile(pattern), replacement) for pattern, replacement in data["rewrite"]]
        self.findings = [
            (name, re.compile("|".join(f"(?:{_gap(pattern)})" for pattern in patterns)))
            for name, patterns in data["findings"].items()
        ]
        self.normal = [(re.compile(_gap(pattern)), names) for pattern, names in data["normal"]]
        kinds = ("ignore", "hedge", "negation")
        self.before = [(kind, words(data["cues"][f"{kind}_before"])) for kind in kinds]
        self.after = [(kind, words(data["cues"][f"{kind}_after"])) for kind in kinds]
        conjunctions, openers = data["conjunctions"], data["openers"]
        self.stop = words(data["stops"])
        self.stop_before = words(data["stops"] + data["stops_before"])
        self.verb = re.compile(rf"\b(?:{data['verbs']})\b")
        self.or_ahead = re.compile(rf"\b(?:{conjunctions['or']})\b")
        self.opener_after_comma = re.compile(rf",\s*(?:(?:{conjunctions['and']})\s+)?(?=(?:{openers})\b)")
        self.opener_after_and = re.compile(rf"(?<!\w)(?:{conjunctions['and']})\s+(?=(?:{openers})\b)")
        self.capitals = data["capitals"]
        names = "|".join(sorted(self.capitals, key=len, reverse=True))
        self.capital = re.compile(rf"(?<![\w/.])(?<!\d )(?:{names})(?![\w/])")
        self.places = Places(data)
        self.read = lru_cache(maxsize=1 << 16)(self._read)  # reports repeat their sentences

    def _read(self, sentence: str) -> tuple[Finding, ...]:
        """Every statement of one sentence about a finding."""
        text = self.normalise(sentence)
        found = [Finding(name, ABSENT) for pattern, names in self.normal if pattern.search(text) for name in names]
        if mentions := self.mentions(text):
            before, after = self.cues(self.before, text), self.cues(self.after, text)
            for mention, (side, zone, severity) in zip(mentions, self.places(text, mentions), strict=True):
                status = self.status(text, mention, before, after)
                if mention.name == "Other" or status is None:
                    continue
                side, zone = side if mention.name in SIDED else None, zone if mention.name in ZONED else None
                found.append(Finding(mention.name, status, side=side, zone=zone, severity=severity))
        return tuple(found)

    def normalise(self, sentence: str) -> str:
        """Lower case, no accents, abbreviations of sides written out, look-alikes of cues rewritten."""
        text = self.capital.sub(lambda match: self.capitals[match.group()], sentence)
        text = unicodedata.normalize("NFKD", text.lower())
        text = " ".join("".join(letter for letter in text if not unicodedata.combining(letter)).split())
        for pattern, replacement in self.rewrite:
            text = pattern.sub(replacement, text)
        return text.replace("?", " ? ").replace("¿", " ¿ ")

    def mentions(self, text: str) -> list[Mention]:
        """Mentions in reading order, longest first where they overlap."""
        every = [Mention(name, *match.span()) for name, pattern in self.findings for match in pattern.finditer(text)]
        kept: list[Mention] = []
        for mention in sorted(every, key=lambda mention: (mention.start - mention.end, mention.name == "Other")):
            if all(mention.end <= other.start or mention.start >= other.end for other in kept):
                kept.append(mention)
        return sorted(kept, key=lambda mention: mention.start)

    def cues(self, table: list[tuple[str, re.Pattern]], text: str) -> list[Cue]:
        """Cues in reading order; one inside a longer one does not count: "cannot exclude" is not "exclude"."""
        every = [(*match.span(), kind) for kind, pattern in table for match in pattern.finditer(text)]
        return sorted(
            (start, end, kind)
            for start, end, kind in every
            if not any(a <= start and end <= b and b - a > end - start for a, b, _ in every)
        )

    def status(self, text: str, mention: Mention, before: list[Cue], after: list[Cue]) -> str | None:
        """present, uncertain or absent; None when the mention is no statement about this exam."""
        # cues between the words of a mention, as in "heart is not enlarged"
        kinds = {kind for start, end, kind in before if mention.start <= start and end <= mention.end}
        kinds.discard("ignore")
        # behind it, every cue that reaches back; in front of it, the nearest that reaches
        for start, _, kind in after:
            if start >= mention.end and self.reaches_back(text[mention.end : start], text[start]):
                kinds.add(kind)
        for _, end, kind in reversed(before):
            if end <= mention.start and self.reaches(text, end, mention):
                kinds.add(kind)
                break
        if "ignore" in kinds:
            return None
        return ABSENT if "negation" in kinds else UNCERTAIN if "hedge" in kinds else PRESENT

    def reaches(self, text: str, start: int, mention: Mention) -> bool:
        """Whether nothing between a cue that ends at `start` and the mention begins a new statement."""
        between = text[start : mention.start]
        if self.stop_before.search(between) or self.verb.search(between) or self.opener_after_and.search(between):
            return False
        comma = self.opener_after_comma.search(between)
        # "no effusion, large pneumothorax or fracture" is one list; without the "or" a new statement follows the comma
        return comma is None or self.or_ahead.search(text, start + comma.end()) is not None

    def reaches_back(self, between: str, first: str) -> bool:
        """Whether a cue behind a mention, with `between` in between and starting with `first`, speaks of it."""
        if first == "?" and between.strip():
            return False
        openers = (self.stop, self.verb, self.opener_after_and, self.opener_after_comma)
        return not any(pattern.search(between) for pattern in openers)


def _gap(pattern: str) -> str:
    """`_` is up to four words in between, `_2` up to two that deny nothing; both stay within one statement."""
    few, many = ("and|y|but|pero|with|con|no|not|sin", 2), ("and|y|but|pero|with|con", 4)
    for mark, (never, most) in (("_2", few), ("_", many)):
        pattern = re.sub(rf"(?<=[)\]\w+*?]){mark}(?=[\s:])", rf"(?: (?!(?:{never})\\b)[\\w'/-]+){{0,{most}}}?", pattern)
    return pattern


@lru_cache(maxsize=None)
def _rules(language: str) -> Rules:
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    with open(asset("lexicon", f"labels_{language}.yaml"), encoding="utf-8") as file:
        return Rules(yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
