"""Where a report says that a finding is: side, zone and severity of each mention in a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass

Place = tuple[str | None, str | None, str | None]  # side, zone, severity


@dataclass(frozen=True, slots=True)
class Mention:
    """One mention of a finding: characters start to end of the sentence."""

    name: str
    start: int
    end: int


def words(patterns: list[str]) -> re.Pattern:
    """One pattern for many cues, longest first, each on word edges."""
    ordered = sorted(patterns, key=len, reverse=True)
    # a punctuation mark needs no word edge before it
    marks = [pattern for pattern in ordered if not pattern[0].isalnum() and pattern[0] != "("]
    rest = [pattern for pattern in ordered if pattern not in marks]
    return re.compile(rf"(?:(?<![\w-])(?=\w)(?:{'|'.join(rest)})|(?:{'|'.join(marks or ['(?!)'])}))(?![\w-])")


class Places:
    """The rules of one language for places."""

    def __init__(self, data: dict):
        conjunctions = data["conjunctions"]
        self.stop = words(data["stops"])
        self.verb = re.compile(rf"\b(?:{data['verbs']})\b")
        self.companions = data["companions"]
        either = "|".join((conjunctions["and"], conjunctions["or"], *self.companions))
        self.coordinator = re.compile(rf"[,;]|\b(?:{either})\b")
        self.preposition = re.compile(rf"^\W*(?:{data['prepositions']})\b")
        self.generic = re.compile(rf"\b(?:{data['generic']})\b")
        self.sides = [(side, re.compile(pattern)) for side, pattern in data["sides"].items()]
        self.zones = [(zone, re.compile(pattern)) for zone, pattern in data["zones"].items()]
        self.severities = [(severity, re.compile(pattern)) for severity, pattern in data["severities"].items()]

    def __call__(self, text: str, mentions: list[Mention]) -> list[Place]:
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
            if match.group() in self.companions and not (self.verb.search(rest) or self.generic.search(rest)):
                continue  # "pneumothorax with a visible edge on the right"
            opening = rest.strip()[:14]
            placed = self.preposition.search(rest) or self.side_of(opening) or self.only(self.zones, opening)
            if self.verb.search(rest) or not placed:
                return after[: match.start()]
        return after

    def shared(self, text: str, mentions: list[Mention], own: list[Place], number: int) -> Place:
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
