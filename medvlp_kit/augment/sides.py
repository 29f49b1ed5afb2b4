"""Sides in words: mirrored, removed, or refused where a mirror image would be another patient.

`text.swap_sides` exchanges the words. What it cannot know is whether the mirrored statement makes sense: "left
ventricle" does not become "right ventricle" because the film was turned over, and the right lung has a middle lobe
where the left has a lingula.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..errors import KitError, unknown
from ..study import Report
from ..text import swap_sides

# Words that name what a body has on one side only.
_ONE_SIDED = {
    "en": r"situs|dextrocardia|levocardia|lingul\w*|middle lobes?|RML|LML|(?:left|right) (?:atri|ventric)\w*"
          r"|liver|hepatic|hepatomegaly|spleen|splenic|splenomegaly|stomach|gastric",
    "es": r"situs|dextrocardia|levocardia|l[ií]ngula\w*|l[oó]bulo medio"
          r"|(?:aur[ií]cula|ventr[ií]culo) (?:derech|izquierd)\w+"
          r"|h[ií]gado|hep[aá]tic\w+|hepatomegalia|bazo|espl[eé]nic\w+|esplenomegalia|est[oó]mago|g[aá]stric\w+",
}  # fmt: skip
_ONE_SIDED = {language: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for language, words in _ONE_SIDED.items()}
LANGUAGES = tuple(_ONE_SIDED)


def why_not_mirrored(report: Report, *, view: str = "frontal") -> str | None:
    """Why this study has no honest mirror image, or None where it has one."""
    if view != "frontal":
        return f"in a {view} view both sides lie over each other, so its mirror image changes no side"
    if report.language not in LANGUAGES:
        return f"side words are known in {' and '.join(LANGUAGES)}, not in {report.language!r}"
    found = _ONE_SIDED[report.language].search(report.text)
    return f"the report names {found.group()!r}, which is not the same on the other side" if found else None


def refuse(report: Report, reason: str, *, row: int) -> KitError:
    """The one line for a study that cannot be mirrored."""
    return KitError(
        f"report {row} of the batch ({report.text[:40]!r}...) cannot be mirrored: {reason}; "
        "leave such studies as they are with refused='keep', or do not flip"
    )


def mirrored_text(report: Report) -> Report:
    """The report of the mirrored patient: left and right exchanged in the text and in both sections."""
    return _edited(report, swap_sides)


def without_sides(report: Report) -> Report:
    """The report with no word for left or right: what is said of both sides stays."""
    return _edited(report, drop_sides)


def _edited(report: Report, edit) -> Report:
    parts = {name: edit(getattr(report, name), report.language) for name in ("text", "findings", "impression")}
    return replace(report, **parts)


# ---- dropping sides ---------------------------------------------------------------------------------------------

_SHORT = {  # an abbreviation that names more than a side keeps the rest
    "en": {"LUL": "upper lobe", "RUL": "upper lobe", "LLL": "lower lobe", "RLL": "lower lobe", "LUZ": "upper zone",
           "RUZ": "upper zone", "LMZ": "mid zone", "RMZ": "mid zone", "LLZ": "lower zone", "RLZ": "lower zone",
           "levoscoliosis": "scoliosis", "dextroscoliosis": "scoliosis"},
    "es": {"LSI": "lóbulo superior", "LSD": "lóbulo superior", "LII": "lóbulo inferior", "LID": "lóbulo inferior",
           "levoescoliosis": "escoliosis", "dextroescoliosis": "escoliosis"},
}  # fmt: skip
_GAP = "\0"  # stands where a side word was
_FOLLOW = "and|or|with|without|is|are|was|were|has|have|may|in|of|from|by|on|at|to|cannot|since"
_ENDS = rf"(?=\s*(?:[.,;:)?]|$)|\s+(?:{_FOLLOW})\b)"
_TIDY = {
    "en": [
        (rf"{_GAP} (?:side )?(?:greater|larger|more|worse) than (?:the |on the )?{_GAP}", _GAP),
        (rf"[ \t]*\b(?:on|to|towards?|over) the {_GAP}(?: (?:side|hand side))?{_ENDS}", ""),
        (rf"[ \t]*\b(?:on|to) {_GAP} side\b", ""),
    ],
    "es": [
        (rf"[ \t]*\b(?:en el|del|al) lado {_GAP}", ""),
        (rf"[ \t]*\b(?:a|en|hacia) la {_GAP}(?=\s*(?:[.,;:)?]|$)|\s+(?:y|o|con|sin)\b)", ""),
    ],
}
_ARTICLES = [(r"\b([Aa]) (?=[aeio]|up)", r"\1n "), (r"\b([Aa])n (?=[^aeiouAEIOU\s])", r"\1 ")]


def drop_sides(text: str, language: str = "en") -> str:
    """The text without its words for left and right; the finding, its zone and its severity stay.

    Which words are sides is asked of `swap_sides`: those that it would change. Doing it twice changes nothing more.
    """
    if language not in _TIDY:
        raise unknown("language", language, _TIDY)
    parts, mirror = re.split(r"(\s+)", text), re.split(r"(\s+)", swap_sides(text, language))
    if parts == mirror:
        return text
    text = "".join(part if part == other else _blank(part, language) for part, other in zip(parts, mirror, strict=True))
    for pattern, replacement in _TIDY[language]:
        text = re.sub(pattern, replacement, text)
    starts = rf"(^|[.!?:]\s+|\n\s*|\d\. ){_GAP}[ \t]*(\w)"  # a sentence that began with the side begins with a capital
    text = re.sub(starts, lambda match: match.group(1) + match.group(2).upper(), text)
    text = re.sub(rf"[ \t]*\({_GAP}\)|[ \t]*{_GAP}(?=[.,;:)\n]|$)|{_GAP}[ \t]*", "", text)
    for pattern, replacement in _ARTICLES if language == "en" else ():
        text = re.sub(pattern, replacement, text)
    return text


def _blank(word: str, language: str) -> str:
    """A word that names a side, without it: punctuation and whatever else an abbreviation says are kept."""
    before, core, after = re.fullmatch(r"(\W*)(.*?)(\W*)", word).groups()
    return f"{before}{_SHORT[language].get(core, _GAP)}{after}"
