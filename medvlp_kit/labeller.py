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
from dataclasses import dataclass, replace
from functools import lru_cache

import yaml

from medvlp_kit.assets import asset
from medvlp_kit.errors import unknown
from medvlp_kit.phantoms.scene import FINDINGS, SIDED, ZONED
from medvlp_kit.sections import assertions, sentences
from medvlp_kit.study import ABSENT, PRESENT, UNCERTAIN, Finding

LANGUAGES = ("en", "es")
_RANK = {ABSENT: 0, UNCERTAIN: 1, PRESENT: 2}


def label_findings(text: str, *, language: str = "en") -> dict[str, Finding]:
    """What a report says of each finding: name -> `Finding` with status, side, zone and severity.

    A finding that is not mentioned is not in the dictionary; `absent` means that the text denies it. Where statements
    differ, present outweighs uncertain and uncertain outweighs absent, and left with right makes bilateral. "likely",
    "possible" and "suggestive of" are uncertain; "consistent with" is present; "unlikely" is absent. Indications,
    history and technique are not read when they stand under heads of their own. `text` may be a whole report, a
    section or a sentence; unknown languages raise `KitError`.
    """
    rules = _rules(language)
    found: dict[str, Finding] = {}
    for sentence in sentences(assertions(text)):
        for finding in rules.read(sentence):
            found[finding.name] = _merge(found[finding.name], finding) if finding.name in found else finding
    return {name: found[name] for name in FINDINGS if name in found}


def _merge(first: Finding, second: Finding) -> Finding:
    if _RANK[first.status] != _RANK[second.status]:
        return first if _RANK[first.status] > _RANK[second.status] else second
    sides = {first.side, second.side} - {None}
    side = next(iter(sides), None) if len(sides) < 2 else "bilateral"
    zones, severities = {first.zone, second.zone} - {None}, {first.severity, second.severity} - {None}
    return replace(
        first,
        side=side,
        zone=zones.pop() if len(zones) == 1 else None,
        severity=severities.pop() if len(severities) == 1 else None,
    )


@dataclass(frozen=True, slots=True)
class Mention:
    name: str
    start: int
    end: int


class Rules:
    """The compiled rules of one language."""

    def __init__(self, data: dict):
        self.rewrite = [(re.compile(pattern), replacement) for pattern, replacement in data["rewrite"]]
        self.findings = [
            (name, re.compile("|".join(f"(?:{_gap(pattern)})" for pattern in patterns)))
            for name, patterns in data["findings"].items()
        ]
        self.normal = [(re.compile(_gap(pattern)), names) for pattern, names in data["normal"]]
        self.upper_limit = re.compile(data["upper_limit"])
        kinds = ("ignore", "hedge", "negation")
        self.before = [(kind, _words(data["cues"][f"{kind}_before"])) for kind in kinds]
        self.after = [(kind, _words(data["cues"].get(f"{kind}_after", ["(?!)"]))) for kind in kinds]
        conjunctions, openers, verbs = data["conjunctions"], data["openers"], data["verbs"]
        either = f"(?:{conjunctions['and']}|{conjunctions['or']})"
        self.stop = _words(data["stops"])
        self.stop_before = _words(data["stops"] + data["stops_before"])
        self.verb = re.compile(rf"\b(?:{verbs})\b")
        self.or_ahead = re.compile(rf"\b(?:{conjunctions['or']})\b")
        self.opener_after_comma = re.compile(rf",\s*(?:and\s+|y\s+)?(?=(?:{openers})\b)")
        self.opener_after_and = re.compile(rf"(?<!\w)(?:{conjunctions['and']})\s+(?=(?:{openers})\b)")
        self.companions = data["companions"]
        self.coordinator = re.compile(rf"[,;]|\b{either}\b|\b(?:{'|'.join(self.companions)})\b")
        self.preposition = re.compile(rf"^\W*(?:{data['prepositions']})\b")
        self.generic = re.compile(rf"\b(?:{data['generic']})\b")
        self.sides = [(side, re.compile(pattern)) for side, pattern in data["sides"].items()]
        self.zones = [(zone, re.compile(pattern)) for zone, pattern in data["zones"].items()]
        self.severities = [(severity, re.compile(pattern)) for severity, pattern in data["severities"].items()]
        self.capitals = data["capitals"]
        names = "|".join(sorted(self.capitals, key=len, reverse=True))
        self.read = lru_cache(maxsize=1 << 16)(self._read)  # reports repeat their sentences
        self.capital = re.compile(rf"(?<![\w/.])(?<!\d )(?:{names})(?![\w/])")

    # ---- one sentence -----------------------------------------------------------------------------------------

    def _read(self, sentence: str) -> list[Finding]:
        """Every statement of one sentence about a finding."""
        text = self.normalise(sentence)
        found = [Finding(name, ABSENT) for name in self.denied(text)]
        mentions = self.mentions(text)
        places = self.places(text, mentions)
        for number, mention in enumerate(mentions):
            status = self.status(text, mention)
            if mention.name == "Other" or status is None:
                continue
            side, zone, severity = places[number]
            found.append(
                Finding(
                    mention.name,
                    status,
                    side=side if mention.name in SIDED else None,
                    zone=zone if mention.name in ZONED else None,
                    severity=severity,
                )
            )
        return found

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

    def denied(self, text: str) -> list[str]:
        """Findings that a statement of normality denies."""
        found = []
        for pattern, names in self.normal:
            for match in pattern.finditer(text):
                said = match.group()
                if not self.upper_limit.search(text) and not re.search(r"\b(?:not|no)\b(?! enlarged)", said[:-1] if said.startswith("no ") else said) or said.startswith("no "):
                    found += names
        return found

    # ---- status -----------------------------------------------------------------------------------------------

    def status(self, text: str, mention: Mention) -> str | None:
        """present, uncertain or absent; None when the mention is no statement about this exam."""
        kinds = {self.nearest_before(text, mention), *self.behind(text, mention), *self.inside(text, mention)}
        if "ignore" in kinds:
            return None
        return ABSENT if "negation" in kinds else UNCERTAIN if "hedge" in kinds else PRESENT

    def inside(self, text: str, mention: Mention) -> set[str]:
        """Cues between the words of a mention, as in "heart is not enlarged"."""
        said = text[mention.start : mention.end]
        return {kind for kind, pattern in self.before if kind != "ignore" and pattern.search(said)}

    def nearest_before(self, text: str, mention: Mention) -> str | None:
        """The kind of the nearest cue in front whose reach includes the mention."""
        cues = [
            (match.start(), match.end(), kind)
            for kind, pattern in self.before
            for match in pattern.finditer(text, 0, mention.start)
        ]
        for start, end, kind in sorted(cues, key=lambda cue: (-cue[1], cue[0])):
            longer = any(first <= start and end <= last and last - first > end - start for first, last, _ in cues)
            if not longer and self.reaches(text, end, mention):  # "cannot exclude" is not "exclude"
                return kind
        return None

    def reaches(self, text: str, start: int, mention: Mention) -> bool:
        """Whether nothing between a cue that ends at `start` and the mention begins a new statement."""
        between = text[start : mention.start]
        if self.stop_before.search(between) or self.verb.search(between) or self.opener_after_and.search(between):
            return False
        comma = self.opener_after_comma.search(between)
        # "no effusion, large pneumothorax or fracture" is one list; without the "or" a new statement follows the comma
        return comma is None or self.or_ahead.search(text, start + comma.end()) is not None

    def behind(self, text: str, mention: Mention) -> set[str]:
        """Kinds of the cues behind whose reach goes back to the mention."""
        kinds, taken = set(), []
        for kind, pattern in self.after:
            for match in pattern.finditer(text, mention.end):
                if any(match.start() < end and match.end() > start for start, end in taken):
                    continue
                taken.append(match.span())
                between = text[mention.end : match.start()]
                if match.group() == "?" and between.strip():
                    continue
                if not (
                    self.stop.search(between)
                    or self.verb.search(between)
                    or self.opener_after_and.search(between)
                    or self.opener_after_comma.search(between)
                ):
                    kinds.add(kind)
        return kinds

    # ---- place ------------------------------------------------------------------------------------------------

    def places(self, text: str, mentions: list[Mention]) -> list[tuple[str | None, str | None, str | None]]:
        """(side, zone, severity) of every mention."""
        gaps = self.gaps(text, mentions)
        own = []
        for number, mention in enumerate(mentions):
            before, after = gaps[number]
            said = text[mention.start : mention.end]
            near, last = self.near(before, mention.name)
            side = self.side_of(f"{near} {said}") or self.side_of(after)
            zone = self.only(self.zones, f"{near} {said} {after}")
            severity = self.only(self.severities, f"{last} {said}") or self.only(self.severities, after)
            own.append((side, zone, severity))
        return [self.shared(text, mentions, own, number) for number in range(len(mentions))]

    def near(self, before: str, name: str) -> tuple[str, str]:
        """Of the text in front of a mention the part that places it, and the piece right before it.

        The part is the last piece between commas and conjunctions. If that names no side, the piece before it counts
        too when it opens with a place ("on the left, there is ..."), adds an adjective ("bilateral patchy and
        confluent ...") or is an opacity that the finding explains ("left basal opacity, possibly ...").
        """
        marks = list(self.coordinator.finditer(before))
        last = before[marks[-1].end() :] if marks else before
        if self.side_of(last) or not marks:
            return last, last
        piece = before[marks[-2].end() if len(marks) > 1 else 0 : marks[-1].start()]
        front = self.verb.split(piece)[-1]
        placed = self.preposition.search(piece) and not self.verb.search(piece)
        if self.generic.search(front):
            joined = name != "Support Devices" and len(last.split()) <= 5
        else:
            joined = marks[-1].group() not in ",;" and len(last.split()) <= 2
        return (f"{front} {last}" if placed or joined else last), last

    def gaps(self, text: str, mentions: list[Mention]) -> list[tuple[str, str]]:
        """For each mention the text before and behind it that can say where it is."""
        bounds = []
        for number, mention in enumerate(mentions):
            start = mentions[number - 1].end if number else 0
            between = text[start : mention.start]
            if number == 0:
                bounds.append((0, 0))
                continue
            stop = list(self.stop.finditer(between))
            marks = stop or list(self.coordinator.finditer(between))
            if marks:
                cut = start + marks[-1].start()
                bounds.append((cut, start + marks[-1].end()))
            elif self.preposition.search(between):
                bounds.append((mention.start, mention.start))
            else:
                bounds.append((start, start))
        result = []
        for number, mention in enumerate(mentions):
            end = bounds[number + 1][0] if number + 1 < len(mentions) else len(text)
            before = text[bounds[number][1] : mention.start]
            result.append((before, self.trim(text[mention.end : end])))
        return result

    def trim(self, after: str) -> str:
        """The part behind a mention that still speaks of it: up to a stop, or a comma or "and" with a new statement."""
        stop = self.stop.search(after)
        after = after[: stop.start()] if stop else after
        for match in self.coordinator.finditer(after):
            rest = after[match.end() :]
            if match.group() in self.companions and not self.verb.search(rest):
                continue  # "pneumothorax with a visible edge on the right"
            opening = rest.strip()[:14]
            placed = self.preposition.search(rest) or self.side_of(opening) or self.only(self.zones, opening)
            if self.verb.search(rest) or not placed:
                return after[: match.start()]
        return after

    def shared(self, text: str, mentions: list[Mention], own: list, number: int):
        """A mention without a side takes that of the one it is joined to: "left effusion and atelectasis"."""
        side, zone, severity = own[number]
        if side is None:
            for other in (number - 1, number + 1):
                if 0 <= other < len(mentions) and own[other][0] is not None:
                    first, second = sorted((number, other))
                    between = text[mentions[first].end : mentions[second].start]
                    if self.coordinator.search(between) and not self.verb.search(between) and len(between.split()) <= 3:
                        return own[other][0], zone if zone else own[other][1], severity
        return side, zone, severity

    def side_of(self, text: str) -> str | None:
        sides = [side for side, pattern in self.sides if pattern.search(text)]
        return None if not sides else sides[0] if len(sides) == 1 else "bilateral"

    @staticmethod
    def only(table: list[tuple[str, re.Pattern]], text: str) -> str | None:
        """The one name whose pattern occurs; None when none or several do."""
        names = [name for name, pattern in table if pattern.search(text)]
        return names[0] if len(names) == 1 else None


def _gap(pattern: str) -> str:
    """`_` is up to four words in between, `_2` up to two; they must stay within one statement."""
    pattern = re.sub(r"(?<![\w\\])_2|(?<=[)\]\w+*?])_2(?=[\s:])", r"(?: (?!and\\b|but\\b|with\\b|no\\b)[\\w'/-]+){0,2}?", pattern)
    return re.sub(r"(?<=[)\]\w+*?])_(?=\s)", r"(?: (?!and\\b|but\\b|with\\b)[\\w'/-]+){0,4}?", pattern)


def _words(patterns: list[str]) -> re.Pattern:
    """One pattern for many cues, longest first, each on word edges."""
    ordered = sorted(patterns, key=len, reverse=True)
    edged = (pattern if pattern[0] in "\\?:;,- " else rf"(?<![\w-])(?:{pattern})" for pattern in ordered)
    return re.compile(rf"(?:{'|'.join(edged)})(?![\w-])")


@lru_cache(maxsize=None)
def _rules(language: str) -> Rules:
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    with open(asset("lexicon", f"labels_{language}.yaml"), encoding="utf-8") as file:
        return Rules(yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
