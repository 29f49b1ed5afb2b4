"""Phantom reports: true to their scene, complete, varied, grammatical, the same every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from random import Random

import pytest

from medvlp_kit.assets import asset
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms.lexicon import agree, lexicon
from medvlp_kit.phantoms.report import STYLES, caption, negative_prompts, normal_prompts, phrase, prompts, write
from medvlp_kit.phantoms.sampling import World, scene
from medvlp_kit.phantoms.scene import BILATERAL, FINDINGS, SEVERITIES, SIDED, SIDES, ZONED, ZONES, Change, Scene, Sign
from medvlp_kit.text import swap_sides

WORLD = World(prior_fraction=0.5, possible_fraction=0.25, several_fraction=0.5)
SCENES = [scene(WORLD, 5, index) for index in range(600)]
# Words that name a finding, written apart from the lexicon.
NAMED = {
    "en": {
        "Enlarged Cardiomediastinum": "mediastin",
        "Cardiomegaly": "cardiomegaly|heart|cardiac",
        "Lung Lesion": "nodul|lesion|mass",
        "Edema": "edema",
        "Consolidation": "consolidat|airspace",
        "Atelectasis": "atelecta|volume",
        "Pneumothorax": "pneumothora|ptx|pleural air",
        "Pleural Effusion": "effusion|pleural fluid",
        "Fracture": "fractur|fx",
        "Support Devices": "device|catheter",
    },
    "es": {
        "Enlarged Cardiomediastinum": "mediast",
        "Cardiomegaly": "cardiomegalia|coraz|cardiac",
        "Lung Lesion": "nódul|nodular|lesi|masa",
        "Edema": "edema",
        "Consolidation": "consolidaci|condensaci|alveolar",
        "Atelectasis": "atelectasi|volumen",
        "Pneumothorax": "neumotórax|ntx|aérea",
        "Pleural Effusion": "derrame|líquido",
        "Fracture": "fractur|fx",
        "Support Devices": "dispositivo|catéter",
    },
}


def random_sign(stream: Random, finding: str, **fixed) -> Sign:
    sides = SIDES + (("bilateral",) if finding in BILATERAL else ())
    sign = Sign(
        finding,
        side=stream.choice(sides) if finding in SIDED else None,
        zone=stream.choice(ZONES) if finding in ZONED else None,
        severity=stream.choice(SEVERITIES),
        certainty=stream.choice(("definite", "possible")),
        count=stream.choice((1, 2, 3)) if finding in ("Lung Lesion", "Fracture") else 1,
    )
    return replace(sign, **fixed)


def one(sign: Sign, index: int = 0, **more) -> Scene:
    return Scene(seed=0, index=index, patient="P", signs=(sign,), **more)


def mirrored(side: str | None) -> str | None:
    return {"left": "right", "right": "left"}.get(side, side)


def mirror(exam: Scene) -> Scene:
    return replace(
        exam,
        signs=tuple(replace(sign, side=mirrored(sign.side)) for sign in exam.signs),
        changes=tuple(replace(change, side=mirrored(change.side)) for change in exam.changes),
    )


@pytest.mark.parametrize("language", ["en", "es"])
def test_every_sign_is_named_in_both_sections(language):
    for exam in SCENES:
        report = write(exam, language=language)
        for sign in exam.signs:
            for section in (report.findings, report.impression):
                assert re.search(NAMED[language][sign.finding], section.lower()), (sign, section)


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("style", STYLES)
def test_the_report_of_the_mirrored_patient_is_the_report_with_sides_swapped(language, style):
    for exam in SCENES[:150]:
        expected = swap_sides(write(exam, style=style, language=language).text, language)
        assert write(mirror(exam), style=style, language=language).text == expected


@pytest.mark.parametrize(
    "language, left, right", [("en", r"(?i:left)|\bL\b", r"(?i:right)|R\b"), ("es", "izq|izd", "derech|dch")]
)
def test_side_is_stated_and_the_other_side_never(language, left, right):
    stream = Random(1)
    for index in range(200):
        sign = random_sign(stream, stream.choice(SIDED), side="left")
        report = write(one(sign, index), language=language)
        for section in (report.findings, report.impression):
            assert re.search(left, section) and not re.search(rf"\b(?:{right})", section), section


def test_bilateral_is_stated():
    stream = Random(2)
    for index in range(200):
        sign = random_sign(stream, stream.choice(BILATERAL), side="bilateral")
        report = write(one(sign, index))
        for section in (report.findings, report.impression):
            said = re.sub("both (lungs|costophrenic angles) are clear", "", section.lower())
            assert re.search(r"bilateral|both|bibas", said), section
            assert not re.search(r"\b(left|right|L|R)\b", section), section


def test_zone_is_stated_in_findings():
    words = {"upper": "upper", "middle": "mid", "lower": "lower|bas"}
    stream = Random(3)
    for index in range(300):
        sign = random_sign(stream, stream.choice(ZONED), side="left")
        # the normal statements of other regions may hold "mediastinum" and "base", so only this sign's words are read
        findings = re.sub(r"mediastin\w+|widened", "", write(one(sign, index)).findings)
        assert re.search(words[sign.zone], findings), (sign, findings)
        others = "|".join(word for zone, word in words.items() if zone != sign.zone)
        assert not re.search(rf"\b(?:{others})", findings.replace("superior", "")), (sign, findings)


def test_severity_words_never_contradict():
    stream = Random(4)
    wrong = {"mild": r"\b(severe|large|marked|extensive)\b", "severe": r"\b(mild|slight|small|tiny|minimal|minor)\b"}
    for index in range(300):
        sign = random_sign(stream, stream.choice([name for name in FINDINGS if name not in ("Fracture",)]))
        if sign.severity in wrong:
            assert not re.search(wrong[sign.severity], write(one(sign, index)).text), sign


def test_count_is_stated_truly():
    stream = Random(5)
    for index in range(200):
        sign = random_sign(stream, stream.choice(("Lung Lesion", "Fracture")))
        findings = write(one(sign, index), style="prose").findings
        assert ("two" in findings.lower()) == (sign.count == 2) and ("three" in findings.lower()) == (sign.count == 3)


def test_a_possible_sign_is_hedged_wherever_it_is_named():
    hedge = re.compile(
        r"possib|may |could|suspect|cannot|question|\?|query|poss |suspicious|suggest|not certain|raises|not definite"
    )
    stream = Random(6)
    for style in STYLES:
        for index in range(80):
            sign = random_sign(stream, stream.choice(FINDINGS), certainty="possible")
            kinds = ("new", "improved", "worsened", "unchanged")
            change = Change(sign.finding, stream.choice(kinds), sign.side)
            report = write(one(sign, index, changes=(change,) if index % 2 else ()), style=style)
            for section in (report.findings, report.impression):
                assert hedge.search(section.lower()), (style, section)


def test_changes_are_said_and_only_with_a_prior():
    told = {
        "new": "new|developed|not present|placed",
        "improved": "improve|decreas|less",
        "worsened": "wors|increas|progress|more",
        "unchanged": "unchanged|no change|no significant change|no interval change|stable|similar",
    }
    stream = Random(7)
    for index in range(300):
        sign = random_sign(stream, stream.choice([name for name in FINDINGS if name != "Support Devices"]))
        kind = stream.choice(tuple(told))
        text = write(one(sign, index, changes=(Change(sign.finding, kind, sign.side),))).findings.lower()
        assert re.search(told[kind], text), (kind, text)
        text = write(one(replace(sign, certainty="definite"), index)).text.lower()
        assert not re.search(r"since the prior|interval|unchanged|no longer", text), text


@pytest.mark.parametrize("language", ["en", "es"])
def test_a_resolved_finding_is_said_to_be_gone(language):
    gone = {"en": "resol|no longer|cleared|removed|removal", "es": "resuelt|resoluci|ya no|desaparec|retirad"}[language]
    for index, finding in enumerate(FINDINGS * 5):
        side = "left" if finding in SIDED else None
        exam = Scene(0, index, "P", (), changes=(Change(finding, "resolved", side),))
        report = write(exam, language=language)
        for section in (report.findings, report.impression):
            assert re.search(gone, section.lower()) and re.search(NAMED[language][finding], section.lower()), section


def test_a_report_is_the_same_in_another_process():
    code = (
        "from medvlp_kit.phantoms.sampling import World, scene\n"
        "from medvlp_kit.phantoms.report import write\n"
        "from medvlp_kit.phantoms.questions import ask\n"
        "for i in range(20):\n"
        "    s = scene(World(prior_fraction=.5), 5, i)\n"
        "    print(write(s).text, write(s, language='es').text, ask(s))\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1] and len(runs[0]) > 2000


def test_reports_vary():
    texts = [write(exam).text for exam in SCENES]
    assert len(set(texts)) > 0.97 * len(texts)
    normals = {write(Scene(0, index, "P", ())).text for index in range(100)}
    assert len(normals) > 80
    assert len({write(Scene(0, index, "P", ())).impression for index in range(100)}) >= 6


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("finding", FINDINGS)
def test_each_finding_has_many_phrasings(finding, language):
    side, zone = "left" if finding in SIDED else None, "lower" if finding in ZONED else None
    words = lexicon(language)
    phrases = words.noun_phrases(finding, side, zone, "moderate")
    sentences = [
        words.sentences(finding, certainty, side, zone, "moderate", 1) for certainty in ("definite", "possible")
    ]
    assert len(phrases) >= 6 and all(len(found) >= 1 for found in sentences)
    said = {
        write(one(Sign(finding, side, zone), index), language=language).impression.strip("123. ") for index in range(80)
    }
    assert len(said) >= 6


def test_styles_differ():
    def mean_words(style):
        return sum(len(write(exam, style=style).text.split()) for exam in SCENES[:200]) / 200

    length = {style: mean_words(style) for style in STYLES}
    assert length["telegraphic"] < length["terse"] < length["prose"] < length["verbose"]
    texts = [write(SCENES[3], style=style).text for style in STYLES]
    assert len(set(texts)) == len(STYLES)
    assert {line.split(":")[0] for line in write(SCENES[0], style="structured").findings.splitlines()} >= {
        "Lungs",
        "Heart",
    }
    used = {write(exam).text == write(exam, style="prose").text for exam in SCENES[:50]}
    assert used == {True, False}  # None chooses among the styles


@pytest.mark.parametrize("language", ["en", "es"])
@pytest.mark.parametrize("style", STYLES)
def test_texts_are_clean(language, style):
    for exam in SCENES[:300]:
        report = write(exam, style=style, language=language)
        assert not re.search(r"[\[\]{}|]|  | [.,;]|\.\.|,\.", report.text), report.text
        assert not re.search(r"\b(\w+ \w+|\w+) \1\b|lung zone lung", report.text.lower()), report.text
        assert not re.search(r"\d", re.sub(r"^\d+\. ", "", report.text.replace("IMPRES", "\nIMPRES"), flags=re.M)
                             .replace("IMPRESSION: 1.", "").replace("IMPRESIÓN: 1.", "")), report.text  # fmt: skip
        assert exam.patient not in report.text
        assert report.text.startswith("FINDINGS: " if language == "en" else "HALLAZGOS: ")
        assert report.findings in report.text and report.impression in report.text and report.impression
        if language == "en":
            assert not re.search(r"\b[Aa] (?:[aeio]|u(?!ni))|\b[Aa]n [^aeiouA]|\ba AP|lung lung", report.text), report.text
        else:
            assert not re.search(r"\b(?:de|a) el\b|\bUn [^.]* fractura\b(?<!Un fractura)", report.text), report.text


@pytest.mark.parametrize("side", ["left", "right", "bilateral"])
def test_spanish_adjectives_agree_with_their_noun(side):
    stream = Random(8)
    feminine = r"(?:consolidaci|condensaci|atelectasia|fractura|lesi[oó]n|opacidad|c[aá]mara|masa|imagen|p[eé]rdida)"
    masculine = r"(?:n[oó]dulo|neumot[oó]rax|derrame|dispositivo|l[ií]quido|edema)"
    words = lexicon("es")
    seen = set()
    for finding in SIDED:
        if side == "bilateral" and finding not in BILATERAL:
            continue
        for severity in SEVERITIES:
            zone = stream.choice(ZONES) if finding in ZONED else None
            for noun_phrase in words.noun_phrases(finding, side, zone, severity, stream.choice((1, 2))):
                text = noun_phrase.indefinite
                alone = re.sub(
                    r" (?:del|de la|de amb|en) .*", "", text
                )  # without "in the left zone", which has its own
                head = re.match(rf"(?:(?:un|una|dos) )?(?:{feminine}|{masculine})", alone)
                assert head, alone
                adjectives = re.findall(
                    r"(?:izquierd|derech|moderad|pequeñ|extens|marcad|desplazad|mínim)[oa]s?\b", alone
                )
                is_feminine = re.search(feminine, head.group()) is not None
                for adjective in adjectives:
                    assert adjective.rstrip("s")[-1] == ("a" if is_feminine else "o"), text
                    seen.add(adjective)
                assert text.startswith("una ") <= is_feminine and text.startswith("un ") <= (not is_feminine), text
    assert len(seen) >= 2


def test_agreement_marks():
    assert agree("[a|b] x[|s]", False) == "a x" and agree("[a|b] x[|s]", True) == "b xs"
    assert [agree("[o|a|os|as]", plural, feminine) for plural in (False, True) for feminine in (False, True)] == [
        "o", "a", "os", "as",
    ]  # fmt: skip


@pytest.mark.parametrize("language", ["en", "es"])
def test_held_out_prompts_use_words_no_report_uses(language):
    texts = " ".join(write(exam, language=language).text for exam in SCENES).lower()
    for finding in FINDINGS:
        for noun_phrase in lexicon(language).noun_phrases(finding, None, None, None, 1, "held_out"):
            assert noun_phrase.bare.lower() not in texts, noun_phrase
        for side in (None, "left") if finding in SIDED else (None,):
            seen = prompts(finding, side=side, language=language)
            held = prompts(finding, side=side, language=language, held_out=True)
            assert seen and held and not set(seen) & set(held)
            assert seen == prompts(finding, side=side, language=language) and len(seen) <= 12
        denied = negative_prompts(finding, language=language)
        held = negative_prompts(finding, language=language, held_out=True)
        assert len(set(denied)) == len(denied) >= 4 and not set(denied) & set(held)
    assert normal_prompts(language=language)


def test_prompts_say_what_was_asked():
    for sentence in prompts("Consolidation", side="left", zone="lower", severity="severe"):
        assert re.search("left|bas", sentence) and not re.search("right|upper|mild", sentence)
    assert len(prompts("Edema", limit=3)) == 3


def test_phrase_and_caption():
    sign = Sign("Pleural Effusion", "left", None, "mild")
    assert re.search("left", phrase(sign)) and "derrame" in phrase(sign, language="es")
    assert phrase(sign, stream=Random(0)) == phrase(sign, stream=Random(0))
    said = caption(one(sign))
    assert "left" in said and "effusion" in said and said.endswith(".")
    assert "possible" in caption(one(replace(sign, certainty="possible")))
    assert "normal" in caption(Scene(0, 0, "P", ())).lower()


def test_errors_name_what_is_wrong():
    with pytest.raises(KitError, match="report style 'prosa'.*prose"):
        write(SCENES[0], style="prosa")
    with pytest.raises(KitError, match="language 'fr'"):
        write(SCENES[0], language="fr")
    with pytest.raises(KitError, match="finding 'Pneumothorx'.*Pneumothorax"):
        prompts("Pneumothorx")
    with pytest.raises(KitError, match="asset 'lexicon/xx.yaml' not found"):
        asset("lexicon", "xx.yaml")
