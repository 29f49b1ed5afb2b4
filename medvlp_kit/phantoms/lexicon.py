"""The words of the phantom reports: YAML under `assets/lexicon/`, read once, and noun phrases built from it.

The notation of the files is explained at the top of `assets/lexicon/en.yaml`. Two ideas do all the work: `{slot}` is
filled with a word, `[one|many]` agrees with the noun phrase in number, or in gender and number when it has four parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import yaml

from medvlp_kit.assets import asset
from medvlp_kit.errors import unknown
from medvlp_kit.phantoms.scene import FINDINGS

LANGUAGES = ("en", "es")
_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_SPACES = re.compile(r"\s+(?=[.,;:])|(?<=\s)\s+|^\s+|\s+$")


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """One way to name a finding: bare, with its indefinite and with its definite article, and what agrees with it."""

    bare: str
    indefinite: str
    definite: str
    plural: bool = False
    feminine: bool = False

    @property
    def agreement(self) -> tuple[bool, bool]:
        return self.plural, self.feminine


def agree(text: str, plural: bool, feminine: bool = False) -> str:
    """Choose in every `[one|many]` or `[masculine|feminine|masculine plural|feminine plural]` of `text`."""
    if "[" not in text:
        return text

    def choose(match: re.Match) -> str:
        forms = match.group(1).split("|")
        return forms[plural if len(forms) == 2 else 2 * plural + feminine]

    return _BRACKETS.sub(choose, text)


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


class Lexicon:
    """The words of one language. Phrases are built on first use and kept: a report costs lookups, not grammar."""

    def __init__(self, data: dict):
        self.data = data
        self._fixes = [(re.compile(pattern), replacement) for pattern, replacement in data.get("fixes", ())]
        region_of = {name: entry["region"] for name, entry in data["findings"].items()}
        self.regions = {region: [name for name in FINDINGS if region_of[name] == region] for region in data["regions"]}
        self.noun_phrases = lru_cache(maxsize=None)(self._noun_phrases)
        self.sentences = lru_cache(maxsize=None)(self._sentences)
        self.frame = lru_cache(maxsize=None)(self._frame)

    def __getitem__(self, key: str):
        return self.data[key]

    def finding(self, name: str) -> dict:
        if name not in self.data["findings"]:
            raise unknown("finding", name, FINDINGS)
        return self.data["findings"][name]

    def tidy(self, text: str) -> str:
        """Close up the spaces left by empty slots and contract (a -> an, de el -> del)."""
        text = _SPACES.sub("", text)
        for pattern, replacement in self._fixes:
            text = pattern.sub(replacement, text)
        return text

    # ---- places -----------------------------------------------------------------------------------------------

    def places(self, finding: str, side: str | None, zone: str | None, *, short: bool = False) -> tuple[list, list]:
        """Ways to say where: before the noun, and behind it. Both empty when nothing is known or there is no place."""
        group = self.finding(finding).get("place")
        if group is None or (side is None and zone is None):
            return [], []
        known = "_".join(part for part in ("both" if side == "bilateral" else side and "side", zone and "zone") if part)
        forms = self.data["places"][group][known]
        before = [*forms["adjective"], *forms.get(f"{zone}_adjective", ())]
        after = [*forms["after"], *forms.get(f"{zone}_after", ())]
        slots = dict(self.data["sides"].get(side, {}))
        slots["side"] = slots.get("short" if short else "word", "")
        slots["sided"] = slots.get("short" if short else "sided", "")
        slots["sides"] = self.data.get("plural_sides", {}).get(side, "")
        slots["zones"] = self.data.get("plural_zones", {}).get(zone, "")
        words = self.data["zones"].get(zone, [""])
        return _fill(before, slots, words), _fill(after, slots, words)

    # ---- noun phrases -----------------------------------------------------------------------------------------

    def _noun_phrases(
        self,
        finding: str,
        side: str | None = None,
        zone: str | None = None,
        severity: str | None = None,
        count: int = 1,
        register: str = "full",
    ) -> tuple[NounPhrase, ...]:
        """Every noun phrase for what is known. `register` is full, telegraphic or held_out."""
        entry = self.finding(finding)
        plural = count > 1 or side == "bilateral"
        before, after = self.places(finding, side, zone, short=register == "telegraphic")
        severities = self.severities(finding, severity)
        nouns = entry["nouns" if register == "full" else register]
        if register == "full" and severity == "severe":
            nouns = nouns + entry.get("severe_nouns", [])
        order = "telegraphic" if register == "telegraphic" else "placed" if before or after else "unplaced"
        placed = self.data["patterns"][order]
        phrases = []
        for noun, pattern, word in product(nouns, placed, severities):
            feminine, noun = noun.startswith("f:"), noun.removeprefix("f:").removeprefix("m:")
            countable = "[" in noun
            number = plural and countable
            spots = before if "{adjective}" in pattern else after if "{after}" in pattern else [""]
            for spot in spots if before or after else [""]:
                text = pattern.replace("{severity}", word).replace("{n}", noun)
                text = text.replace("{adjective}", spot).replace("{after}", spot)
                text = self.tidy(agree(text, number, feminine))
                phrases.append(self._with_articles(text, countable, number, feminine, count))
        return tuple(dict.fromkeys(phrases))

    def _with_articles(self, text: str, countable: bool, plural: bool, feminine: bool, count: int) -> NounPhrase:
        if plural and count > 1:
            text = f"{self.data['numbers'][count]} {text}"
        articles = {kind: agree(article, plural, feminine) for kind, article in self.data["article"].items()}
        indefinite = f"{articles['indefinite']} {text}" if countable and not plural else text
        definite = f"{articles['definite']} {text}"
        return NounPhrase(self.tidy(text), self.tidy(indefinite), self.tidy(definite), plural, feminine)

    def severities(self, finding: str, severity: str | None, key: str = "severity") -> list[str]:
        """The words for a severity, and the empty word: a report may leave it out."""
        words = self.finding(finding).get(key, {}).get(severity, []) if severity else []
        return [*words, *([] if "" in words else [""])]

    # ---- sentences --------------------------------------------------------------------------------------------

    def _sentences(
        self, finding: str, certainty: str, side: str | None, zone: str | None, severity: str | None, count: int
    ) -> tuple[str, ...]:
        """Whole sentences that belong to this finding alone."""
        entry = self.finding(finding)
        _, after = self.places(finding, side, zone)
        plural = count > 1 or side == "bilateral"
        sides = self.data["sides"].get(side, {})
        article = agree(self.data["article"]["indefinite"], False)
        slots = {
            "severity": self.severities(finding, severity),
            "adverb": self.severities(finding, severity, "adverb"),
            "after": after or [""],
            "side": [sides.get("adjective", sides.get("word", ""))],
            "count": [self.data["numbers"][count] if count > 1 else article],
            "number": [self.data["numbers"][count]],
        }
        for name, forms in self.data["side_phrases"].items():
            form = forms.get(f"{side}_zone" if zone else side) or forms.get(side) or forms["none"]
            slots[name] = [form.replace("{zone}", word) for word in self.data["zones"].get(zone, [""])]
        slots["severity_m"] = [agree(word, False) for word in slots["severity"]]
        slots["a_severity"] = [word if plural else f"{article} {word}" for word in slots["severity"]]
        sentences = []
        for template in entry["sentences"][certainty]:
            feminine, template = template.startswith("f:"), template.removeprefix("f:")
            names = list(dict.fromkeys(re.findall(r"\{(\w+)\}", template)))
            for values in product(*(slots[name.lower()] for name in names)):
                text = agree(template, plural)
                for name, value in zip(names, values, strict=True):
                    value = capitalise(value) if name[0].isupper() else value
                    text = text.replace(f"{{{name}}}", agree(value, plural, feminine))
                sentences.append(capitalise(self.tidy(text)))
        return tuple(dict.fromkeys(sentences))

    def _frame(self, template: str, plural: bool, feminine: bool) -> str:
        return agree(template, plural, feminine)

    def say(self, template: str, phrase: NounPhrase, **slots: str) -> str:
        """Put a noun phrase (and other slots) into a frame such as `{Np} [is|are] seen.`"""
        text = self.frame(template, phrase.plural, phrase.feminine)
        for name, value in (("np", phrase.indefinite), ("bare", phrase.bare), ("the", phrase.definite), *slots.items()):
            if (small := f"{{{name}}}") in text:
                text = text.replace(small, value)
            if (capital := f"{{{capitalise(name)}}}") in text:
                text = text.replace(capital, capitalise(value))
        for pattern, replacement in self._fixes:
            text = pattern.sub(replacement, text)
        return text


def _fill(templates: list[str], slots: dict[str, str], zones: list[str]) -> list[str]:
    """Every template with its slots filled, once for each word of the zone; without repetitions, in order."""
    filled = []
    for template, zone in product(templates, zones):
        text = template.replace("{zone}", zone)
        for name, value in slots.items():
            text = text.replace(f"{{{name}}}", value)
        filled.append(text)
    return list(dict.fromkeys(filled))


@lru_cache(maxsize=None)
def lexicon(language: str = "en") -> Lexicon:
    """The lexicon of a language: en or es. Raises `KitError` for any other."""
    if language not in LANGUAGES:
        raise unknown("language", language, LANGUAGES)
    with open(asset("lexicon", f"{language}.yaml"), encoding="utf-8") as file:
        return Lexicon(yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
