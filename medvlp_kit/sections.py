"""Sections, sentences and sides of a report, by rules: no model, no training, the same answer every time."""

from __future__ import annotations

import re

from medvlp_kit.study import Report

# The heads seen in public report collections, English and Spanish, and what stands under them.
HEADS = {
    "findings": ("findings", "finding", "report", "description", "observations", "findings and impression",
                 "hallazgos", "hallazgo", "descripcion", "descripción", "informe"),
    "impression": ("impression", "impressions", "conclusion", "conclusions", "opinion", "summary", "assessment",
                   "diagnosis", "findings/impression", "impresion", "impresión", "impresión diagnóstica",
                   "impresion diagnostica", "conclusión", "conclusiones", "juicio diagnóstico", "diagnóstico"),
    "other": ("final report", "wet read", "preliminary report", "addendum", "final addendum", "examination", "exam",
              "exam type", "study", "type of examination", "procedure", "indication", "indications",
              "clinical indication", "clinical information", "clinical history", "clinical data", "clinical details",
              "reason for exam", "reason for examination", "reason for study", "history", "comparison", "comparisons",
              "comparison study", "technique", "views", "view", "notification", "recommendation", "recommendations",
              "date", "contrast",
              "técnica", "tecnica", "indicación", "indicacion", "motivo", "motivo de consulta", "datos clínicos",
              "datos clinicos", "información clínica", "antecedentes", "comparación", "comparacion", "estudio",
              "exploración", "exploracion", "recomendación", "recomendaciones", "radiografía de tórax"),
}  # fmt: skip
_KIND = {head: kind for kind, heads in HEADS.items() for head in heads}
_NAMES = "|".join(sorted((re.escape(head).replace(r"\ ", r"\s+") for head in _KIND), key=len, reverse=True))
# A head is one of the names at the start of a line or sentence with a colon or a dash behind it, or alone on its line.
_HEAD = re.compile(
    rf"(?:^|(?<=\n)|(?<=[.;:]\s)|(?<=\s\s))[ \t>*#_]*(?P<name>{_NAMES})"
    r"[*_]*(?:[ \t]*:[*_]*|[ \t]+[-–—][ \t]+|[ \t]*(?=\n|$))",
    re.IGNORECASE,
)


def _parts(text: str) -> list[tuple[str, str, str]]:
    """(kind, head, body) in reading order; the text before the first head has the kind "body" and an empty head."""
    matches = [match for match in _HEAD.finditer(text) if _is_head(match, text)]
    edges = [*(match.start() for match in matches), len(text)]
    parts = [("body", "", text[: edges[0]])]
    for match, end in zip(matches, edges[1:], strict=True):
        head = " ".join(match["name"].lower().split())
        parts.append((_KIND[head], head, text[match.end() : end]))
    return parts


def _is_head(match: re.Match, text: str) -> bool:
    """A head in the middle of a line must be in capitals or capitalised: "...the study: normal" is prose."""
    line_start = text.rfind("\n", 0, match.start("name")) + 1
    return not text[line_start : match.start("name")].strip(" \t>*#_") or match["name"][0].isupper()


def _tidy(body: str) -> str:
    """Join lines broken for width; keep the breaks before items, bullets and sub-heads."""
    body = re.sub(r"[ \t]+", " ", body.replace("\r\n", "\n").replace("\r", "\n"))
    body = re.sub(r" ?\n ?(?=\d{1,2}[.)] |[-*•] |[A-ZÁÉÍÓÚÑ][\w /]{1,40}: )", "\0", body)
    body = re.sub(r"\s*\n\s*", " ", body)
    return body.replace("\0", "\n").strip()


def split_sections(text: str, *, language: str | None = None) -> Report:
    """A report from its text: what stands under FINDINGS and under IMPRESSION, whatever the heads are called.

    A section named twice is joined. When only an impression is headed, the text in front of every head counts as
    findings. When nothing is headed both sections stay empty: the source does not separate them. The language is
    guessed from accents and frequent words unless given.
    """
    found: dict[str, list[str]] = {"findings": [], "impression": [], "body": [], "other": []}
    for kind, head, body in _parts(text):
        body = _tidy(body)
        if head in ("final report", "wet read", "preliminary report"):
            kind = "body"  # these announce a report; what follows unheaded is its body
        if body:
            found[kind].append(body)
    findings, impression = "\n".join(found["findings"]), "\n".join(found["impression"])
    if impression and not findings:
        findings = "\n".join(found["body"])
    return Report(text=text, findings=findings, impression=impression, language=language or guess_language(text))


def assertions(text: str) -> str:
    """The parts of a report that state what is seen: without indication, history, technique and recommendation.

    A text with no heads is returned whole.
    """
    parts = _parts(text)
    if len(parts) == 1:
        return text
    announced = ("final report", "wet read", "preliminary report", "addendum", "final addendum")
    kept = [_tidy(body) for kind, head, body in parts if kind != "other" or head in announced]
    return "\n".join(body for body in kept if body)


_SPANISH = re.compile(r"\b(el|los|las|una|del|sin|con|derech[oa]s?|izquierd[oa]s?|se|derrame|y)\b", re.IGNORECASE)
_ENGLISH = re.compile(r"\b(the|of|is|are|with|and|no evidence|left|right|there|without)\b", re.IGNORECASE)


def guess_language(text: str) -> str:
    """"es" or "en", by the more frequent small words."""
    return "es" if len(_SPANISH.findall(text)) > len(_ENGLISH.findall(text)) else "en"


# ---- sentences --------------------------------------------------------------------------------------------------

_ABBREVIATIONS = frozenset(
    "dr dra mr mrs ms prof st approx ca cf eg e.g i.e ie etc vs no fig figs resp max min incl excl s.p a.m p.m lt rt "
    "r.t l.t sup inf ant post lat mm cm sr sra aprox p.ej ej ud núm num pág".split()
)
_END = re.compile(r"(?P<stop>[.!?]+)(?P<close>[\"')\]]*)(?=\s|$)")
_BULLET = re.compile(r"^\s*(?:[-*•·–]\s+|\(?\d{1,2}[.)]\s+|\(?[a-h][)]\s+)")


def sentences(text: str) -> list[str]:
    """The sentences of a report: decimals, abbreviations, numbered items and bullets do not end or join them."""
    found = []
    for line in re.split(r"\n+|(?<=[.;:])\s+(?=\d{1,2}[.)]\s+[A-ZÁÉÍÓÚÑ])", text.replace("\r", "\n")):
        line = _BULLET.sub("", line).strip()
        start = 0
        for match in _END.finditer(line):
            if _ends_sentence(line, match):
                found.append(line[start : match.end()].strip())
                start = match.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if re.search(r"\w", sentence)]


def _ends_sentence(line: str, match: re.Match) -> bool:
    """Whether the full stop at `match` closes a sentence rather than an abbreviation, an initial or an item number."""
    if match["stop"] != ".":
        return True
    before, after = line[: match.start()], line[match.end() :].lstrip()
    word = re.search(r"[\w.\-/]*$", before).group().lower()
    if not after:
        return True
    if word in _ABBREVIATIONS:
        # "no." and "cm." are words and units as well as abbreviations: a capital letter after them starts a sentence.
        return word in ("no", "cm", "mm", "st", "post", "lat", "ca", "max", "min") and after[0].isupper()
    if re.fullmatch(r"[a-z]", word) and not re.search(r"\d\s*$", before[: len(before) - 1]):
        return False  # an initial
    return not re.fullmatch(r"\d{1,2}", word) or bool(before[: len(before) - len(word)].strip())


# ---- sides ------------------------------------------------------------------------------------------------------

_PAIRS = {
    "en": (("left", "right"), ("lefts", "rights"), ("leftward", "rightward"), ("leftwards", "rightwards"),
           ("lt", "rt"), ("levoscoliosis", "dextroscoliosis"), ("levocardia", "dextrocardia"),
           ("levoposition", "dextroposition"), ("levoconvex", "dextroconvex")),
    "es": (("izquierdo", "derecho"), ("izquierda", "derecha"), ("izquierdos", "derechos"), ("izquierdas", "derechas"),
           ("izdo", "dcho"), ("izda", "dcha"), ("izdos", "dchos"), ("izdas", "dchas"), ("izq", "der"),
           ("levoescoliosis", "dextroescoliosis"), ("levocardia", "dextrocardia")),
}  # fmt: skip
_CAPITALS = {
    "en": (("L", "R"), ("LUL", "RUL"), ("LLL", "RLL"), ("LML", "RML"), ("LUZ", "RUZ"), ("LLZ", "RLZ"), ("LMZ", "RMZ")),
    "es": (("LSI", "LSD"), ("LII", "LID"), ("LMI", "LMD")),
}
# "left untreated", "left in place", "right away": not sides. Both words are protected, so that swapping stays its own
# inverse.
_NOT_A_SIDE = {
    "en": r"(?:[ -](?:untreated|alone|behind|out|away|now|after|before|in place|in situ|unchanged by)\b)",
    "es": r"(?!)",
}
_UNIT = r"(?<![\d/]\s)(?<![\d/])"


def _swapper(language: str) -> tuple[re.Pattern, dict[str, str]]:
    table = {}
    for one, other in _PAIRS[language]:
        for form in (str.lower, str.capitalize, str.upper):
            table[form(one)], table[form(other)] = form(other), form(one)
    for one, other in _CAPITALS[language]:
        table[one], table[other] = other, one
    names = "|".join(sorted(map(re.escape, table), key=len, reverse=True))
    return re.compile(rf"{_UNIT}\b({names})\b(?!{_NOT_A_SIDE[language]})(?!['’])"), table


_SWAP = {language: _swapper(language) for language in _PAIRS}


def swap_sides(text: str, language: str = "en") -> str:
    """The same text about the mirrored patient: left <-> right, LLL <-> RLL, leftward <-> rightward.

    Its own inverse: swapping twice gives the text back. Case is kept. Words such as "left untreated" stay.
    """
    from medvlp_kit.errors import unknown

    if language not in _SWAP:
        raise unknown("language", language, _SWAP)
    pattern, table = _SWAP[language]
    return pattern.sub(lambda match: table[match.group(1)], text)
