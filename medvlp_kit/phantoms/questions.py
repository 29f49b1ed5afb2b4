"""Questions about a scene, with answers that are exact because the scene is known.

A `possible` sign is in the picture, only fainter, so the answer to "is there ...?" is yes for it too, as in the label
table. In every scene about as many absent findings are asked about as present ones.
"""

from __future__ import annotations

from random import Random

from medvlp_kit.phantoms.lexicon import NounPhrase, lexicon
from medvlp_kit.phantoms.scene import CHANGES, FINDINGS, SEVERITIES, SIDES, Scene, Sign
from medvlp_kit.study import Question

GRADED = tuple(name for name in FINDINGS if name not in ("Fracture", "Support Devices"))  # severity can be told by eye


def ask(scene: Scene, *, language: str = "en") -> tuple[Question, ...]:
    """Every question this scene answers: presence, side, zone, count, severity, view and change since the prior exam.

    Closed questions are answered yes or no. Where a finding has several signs, side, zone and severity are asked only
    if one word is the whole truth.
    """
    return tuple(_Asker(scene, language).all())


def true_side(signs: list[Sign]) -> str | None:
    """left, right or bilateral for all signs of one finding together; None when it has no side."""
    sides = {sign.side for sign in signs}
    return None if sides == {None} or not sides else sides.pop() if len(sides) == 1 else "bilateral"


class _Asker:
    def __init__(self, scene: Scene, language: str):
        self.scene, self.words = scene, lexicon(language)
        self.text, self.stream = self.words["questions"], Random(f"questions {scene.seed} {scene.index} {scene.draw}")
        self.present: dict[str, list[Sign]] = {}
        for sign in scene.signs:
            self.present.setdefault(sign.finding, []).append(sign)

    def all(self):
        absent = [name for name in FINDINGS if name not in self.present]
        yield self.closed("presence", self.stream.choice(self.text["abnormal"]), self.scene.normal)
        asked = self.stream.sample(absent, min(len(absent), max(1, len(self.present))))
        for name in sorted([*self.present, *asked], key=FINDINGS.index):
            yield self.closed("presence", self.about("presence", name), name in self.present)
        for name, signs in self.present.items():
            yield from self.where(name, signs)
            yield from self.how(name, signs)
        yield Question(self.stream.choice(self.text["view"]), self.scene.projection, "view")
        yield from self.since()

    def closed(self, kind: str, text: str, answer: bool) -> Question:
        return Question(text, self.text["yes" if answer else "no"], kind, closed=True)

    def about(self, kind: str, name: str, **slots: str) -> str:
        phrase = self.stream.choice(self.names(name))
        return self.words.say(self.stream.choice(self.text[kind]), phrase, **slots)

    def names(self, finding: str) -> tuple[NounPhrase, ...]:
        """General names of a finding; the first of the lexicon are the most general."""
        return self.words.noun_phrases(finding)[:3]

    def where(self, name: str, signs: list[Sign]):
        side, zones = true_side(signs), {sign.zone for sign in signs}
        if side is not None:
            yield Question(self.about("side", name), self.text["sides"][side], "side")
            if side in SIDES:
                asked = self.stream.choice(SIDES)
                word = self.words["sides"][asked].get("noun", self.words["sides"][asked]["word"])
                yield self.closed("side", self.about("is_side", name, side=word), asked == side)
        if len(zones) == 1 and None not in zones:
            yield Question(self.about("zone", name), self.text["zones"][zones.pop()], "zone")

    def how(self, name: str, signs: list[Sign]):
        if plurals := self.text["plurals"].get(name):
            text = self.stream.choice(self.text["count"]).replace("{plural}", self.stream.choice(plurals))
            yield Question(text, str(sum(sign.count for sign in signs)), "count")
        severities = {sign.severity for sign in signs}
        if name in GRADED and len(severities) == 1 and severities <= set(SEVERITIES):
            yield Question(self.about("severity", name), self.text["severities"][severities.pop()], "severity")

    def since(self):
        """What became of each finding; asked only where all its changes agree."""
        kinds: dict[str, set[str]] = {}
        for change in self.scene.changes:
            kinds.setdefault(change.finding, set()).add(change.kind)
        for name, found in kinds.items():
            if len(found) > 1:
                continue
            (kind,) = found
            yield Question(self.about("change", name), self.text["changes"][kind], "change")
            asked = self.stream.choice((kind, self.stream.choice([other for other in CHANGES if other != kind])))
            phrase = self.stream.choice(self.names(name))
            template = self.words.frame(self.stream.choice(self.text["is_change"]), phrase.plural, phrase.feminine)
            word = self.words.frame(self.text["changes"][asked], phrase.plural, phrase.feminine)
            yield self.closed("change", self.words.say(template, phrase, change=word), asked == kind)
