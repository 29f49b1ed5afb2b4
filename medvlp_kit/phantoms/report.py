"""From a scene to its report: Findings and Impression in one of five dictation styles, English or Spanish.

The report never disagrees with its scene: every sign is named in both sections with the patient's side, a `possible`
sign only ever behind a hedge, and whatever is said to be absent is absent. It holds no name, date, age or number that
could identify anyone. The same scene always gives the same text.
"""

from __future__ import annotations

from random import Random

from medvlp_kit.errors import unknown
from medvlp_kit.phantoms.lexicon import Lexicon, NounPhrase, capitalise, lexicon
from medvlp_kit.phantoms.scene import FINDINGS, Change, Scene, Sign
from medvlp_kit.study import Report

STYLES = ("prose", "terse", "structured", "telegraphic", "verbose")
_WEIGHTS = (0.35, 0.6, 0.75, 0.88, 1.0)  # cumulative: how often each style is dictated


def write(scene: Scene, *, style: str | None = None, language: str = "en") -> Report:
    """The report of a scene. `style` is one of `STYLES`, or None for the one this scene's reader happens to use."""
    words = lexicon(language)
    stream = Random(f"report {scene.seed} {scene.index} {scene.draw}")
    habit = stream.random()
    if style is None:
        style = next(name for name, edge in zip(STYLES, _WEIGHTS, strict=True) if habit < edge)
    elif style not in STYLES:
        raise unknown("report style", style, STYLES)
    writer = _Writer(words, stream, scene, style)
    findings, impression = writer.findings(), writer.impression()
    heads = words["section_heads"]
    text = f"{heads['findings']}: {findings}\n{heads['impression']}: {impression}"
    return Report(text=text, findings=findings, impression=impression, language=language)


def phrase(sign: Sign, *, language: str = "en", stream: Random | None = None) -> str:
    """A noun phrase for a sign, without article: "small left pleural effusion". The first wording, or a random one."""
    phrases = _phrases(lexicon(language), sign)
    return (stream.choice(phrases) if stream else phrases[0]).bare


def _phrases(words: Lexicon, sign: Sign, *, register: str = "full") -> tuple[NounPhrase, ...]:
    return words.noun_phrases(sign.finding, sign.side, sign.zone, sign.severity, sign.count, register)


class _Writer:
    """One reader dictating one scene."""

    def __init__(self, words: Lexicon, stream: Random, scene: Scene, style: str):
        self.words, self.scene, self.style, self.random = words, scene, style, stream.random
        self.register = "telegraphic" if style == "telegraphic" else "full"
        self.absent = [name for name in FINDINGS if scene.sign(name) is None]
        self.changes = {(change.finding, change.side): change for change in scene.changes}

    def pick(self, choices):
        return choices[int(self.random() * len(choices))]

    # ---- findings ---------------------------------------------------------------------------------------------

    def findings(self) -> str:
        """The Findings section."""
        said = {region: [] for region in self.words["regions"]}  # region -> sentences about what is there
        for sign in self.scene.signs:
            said[self.words.finding(sign.finding)["region"]] += self.present(sign)
        for change in self.scene.changes:
            if change.kind == "resolved":
                said[self.words.finding(change.finding)["region"]].append(self.resolved(change))
        if self.style == "structured":
            return self.by_region(said)
        regions = [region for region in said if said[region]]
        if len(regions) > 1 and self.random() < 0.4:  # readers do not all go through the regions in one order
            turn = int(self.random() * len(regions))
            regions = regions[turn:] + regions[:turn]
        sentences = self.opening()
        for region in regions:
            sentences += said[region]
        return " ".join(sentences + self.absences())

    def opening(self) -> list[str]:
        """Technique and comparison."""
        opening, view = self.words["opening"], self.words["views"][self.scene.projection]
        sentences = []
        if self.random() < 0.6 and (template := self.pick(opening[self.style])):
            word = self.pick(view["word"])
            text = template.replace("{short_view}", view["short"]).replace("{View}", capitalise(word))
            sentences.append(self.words.tidy(text.replace("{view}", word)))
        prefix = "telegraphic_" if self.style == "telegraphic" else ""
        if self.scene.prior is not None and self.random() < 0.6:
            sentences.append(self.pick(opening[f"{prefix}with_prior"]))
        elif self.scene.prior is None and not prefix and self.random() < 0.08:
            sentences.append(self.pick(opening["without_prior"]))
        return sentences

    def present(self, sign: Sign) -> list[str]:
        """One or two sentences: the sign, and what became of it since the prior exam."""
        words, phrase = self.words, self.pick(_phrases(self.words, sign, register=self.register))
        change = self.changes.get((sign.finding, sign.side)) or self.changes.get((sign.finding, None))
        kind = change.kind if change and change.kind != "resolved" else None
        if kind and sign.certainty == "possible":
            return [words.say(self.pick(words["comparison"]["possible"][kind]), phrase)]
        if self.register == "full" and self.random() < 0.35:
            about = words.sentences(sign.finding, sign.certainty, sign.side, sign.zone, sign.severity, sign.count)
            sentences = [self.pick(about)]
        else:
            region = words["regions"][words.finding(sign.finding)["region"]]["word"]
            sentences = [words.say(self.pick(words["frames"][self.style][sign.certainty]), phrase, region=region)]
        if kind and self.register == "telegraphic":
            sentences = [words.say(self.pick(words["comparison"]["telegraphic"][kind]), phrase)]
        elif kind:
            brief = self.pick(words.noun_phrases(sign.finding, sign.side))
            sentences.append(words.say(self.pick(self.comparisons(sign.finding, kind)), brief))
        return sentences

    def comparisons(self, finding: str, kind: str) -> list[str]:
        """Sentences for a change; a device is placed and removed where a disease comes and goes."""
        comparison = self.words["comparison"]
        special = comparison.get(self.words.finding(finding)["region"], {})
        return special.get(kind) or comparison[kind]

    def resolved(self, change: Change) -> str:
        """What was there before and is gone."""
        words, comparison = self.words, self.words["comparison"]
        phrase = self.pick(words.noun_phrases(change.finding, change.side, None, None, 1, self.register))
        if self.register == "telegraphic":
            return words.say(self.pick(comparison["telegraphic"]["resolved"]), phrase)
        previous = words.say(self.pick(comparison["previous"]), phrase)
        return words.say(self.pick(self.comparisons(change.finding, "resolved")), phrase, the_previous=previous)

    def absences(self) -> list[str]:
        """Normal regions, single "no ..." sentences and one list of them, each for what is truly absent."""
        words, sentences, left = self.words, [], []
        normal = words["normal_short" if self.register == "telegraphic" else "normal"]
        clear = [region for region in words["regions"] if self.clear(region)]
        if {"heart", "mediastinum"} <= set(clear) and self.register == "full" and self.random() < 0.4:
            sentences.append(self.pick(words["normal_both"]))
            clear = [region for region in clear if region not in ("heart", "mediastinum")]
        for region in clear:
            if self.random() < (0.1 if region == "devices" else 0.45):
                sentences.append(self.pick(normal[region]))
            else:
                left += self.words.regions[region]
        left += [name for name in self.absent if not self.clear(words.finding(name)["region"])]
        if len(left) >= 2 and self.random() < 0.5:
            number = 2 if self.random() < 0.6 else min(3, len(left))
            sentences.append(self.negative_list([left.pop(int(self.random() * len(left))) for _ in range(number)]))
        for name in left:
            if self.random() < 0.15:
                sentences.append(self.negative(name))
        return sentences

    def clear(self, region: str) -> bool:
        return all(name in self.absent for name in self.words.regions[region])

    def negative(self, name: str) -> str:
        entry = self.words.finding(name)
        if self.register == "full" and self.random() < 0.3:
            return self.pick(entry["absent"])
        return self.pick(self.words["negation"][self.style]).replace("{x}", self.negated(name))

    def negated(self, name: str) -> str:
        if self.register == "telegraphic":
            return self.words["negation"]["telegraphic_words"][name]
        return self.pick(self.words.finding(name)["negatives"])

    def negative_list(self, names: list[str]) -> str:
        joiners, parts = self.words["joiners"], [self.negated(name) for name in names]
        listed = joiners["comma"].join(parts[:-1]) + joiners["or"] + parts[-1]
        return self.pick(self.words["negative_lists"][self.style]).replace("{xs}", listed)

    def by_region(self, said: dict[str, list[str]]) -> str:
        """The structured style: one line a region, under its head."""
        opening = " ".join(self.opening())
        lines = [opening] if opening else []
        for region, entry in self.words["regions"].items():
            sentences = said[region]
            if self.clear(region) and (region != "devices" or self.random() < 0.3):
                if not sentences or self.random() < 0.5:
                    sentences = [*sentences, self.pick(self.words["normal_structured"][region])]
            else:
                missing = [name for name in self.words.regions[region] if name in self.absent]
                sentences = sentences + [self.negative(name) for name in missing if self.random() < 0.3]
            if sentences:
                lines.append(f"{entry['head']}: {' '.join(sentences)}")
        return "\n".join(lines)

    # ---- impression -------------------------------------------------------------------------------------------

    def impression(self) -> str:
        """What matters, one item a sign."""
        words, items = self.words, []
        for sign in self.scene.signs:
            change = self.changes.get((sign.finding, sign.side)) or self.changes.get((sign.finding, None))
            kind = change.kind if change and change.kind != "resolved" else None
            zone = sign.zone if self.random() < 0.6 else None
            severity = sign.severity if self.random() < 0.6 else None
            phrase = self.pick(words.noun_phrases(sign.finding, sign.side, zone, severity, sign.count, self.register))
            if kind and sign.certainty == "definite" and self.random() < 0.7:
                items.append(words.say(self.pick(words["impression_comparison"][kind]), phrase))
            else:
                items.append(words.say(self.pick(words["frames"]["impression"][sign.certainty]), phrase))
        for change in self.scene.changes:
            if change.kind == "resolved":
                phrase = self.pick(words.noun_phrases(change.finding, change.side, None, None, 1, self.register))
                previous = words.say(self.pick(words["comparison"]["previous"]), phrase)
                templates = words["impression_comparison"]["resolved"] + self.comparisons(change.finding, "resolved")
                items.append(words.say(self.pick(templates), phrase, the_previous=previous))
        if self.scene.normal:
            items.append(self.pick(words["normal_impression"]))
        if self.absent and self.random() < 0.4:  # a pertinent negative, as readers add one for what they were asked
            items.append(capitalise(self.negative(self.pick(self.absent))))
        if len(items) > 1 and self.style in ("structured", "telegraphic", "verbose"):
            return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))
        return " ".join(items)


# ---- prompts and captions ---------------------------------------------------------------------------------------


def prompts(
    finding: str,
    *,
    side: str | None = None,
    zone: str | None = None,
    severity: str | None = None,
    language: str = "en",
    held_out: bool = False,
    limit: int = 12,
) -> list[str]:
    """Sentences that say a finding is there, for a zero-shot prompt ensemble; at most `limit`, always the same ones.

    `held_out` gives wordings that no report ever uses (other nouns in other frames), to tell recognition of a wording
    from recognition of the finding.
    """
    words = lexicon(language)
    phrases = words.noun_phrases(finding, side, zone, severity, 1, "held_out" if held_out else "full")
    frames = words["prompts"]["held_out" if held_out else "seen"]
    stream = Random(f"prompts {finding} {side} {zone} {severity} {held_out}")
    every = list(dict.fromkeys(words.say(frame, phrase) for phrase in phrases for frame in frames))
    return every if len(every) <= limit else stream.sample(every, limit)


def negative_prompts(finding: str, *, language: str = "en", held_out: bool = False, limit: int = 12) -> list[str]:
    """Sentences that say a finding is not there, for the other half of the ensemble."""
    words = lexicon(language)
    entry, frames = words.finding(finding), words["prompts"]["negative_held_out" if held_out else "negative"]
    every = [] if held_out else list(entry["absent"])
    every += [frame.replace("{x}", name) for name in entry["negatives"] for frame in frames]
    every = list(dict.fromkeys(every))
    return every if len(every) <= limit else Random(f"negative prompts {finding}").sample(every, limit)


def normal_prompts(*, language: str = "en") -> list[str]:
    """Sentences that say nothing is wrong."""
    return list(lexicon(language)["normal_prompts"])


def caption(scene: Scene, *, language: str = "en") -> str:
    """One sentence that names everything in the scene."""
    words, joiners = lexicon(language), lexicon(language)["joiners"]
    parts = []
    for sign in scene.signs:
        phrase = _phrases(words, sign)[0]
        parts.append(phrase.indefinite if sign.certainty == "definite" else words.say(words["possible"], phrase))
    if not parts:
        return words["normal_caption"]
    listed = parts[0] if len(parts) == 1 else joiners["comma"].join(parts[:-1]) + joiners["and"] + parts[-1]
    view = words["views"][scene.projection]["short"]
    return words["caption"].replace("{view}", view).replace("{np}", listed)
