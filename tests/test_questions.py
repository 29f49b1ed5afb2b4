"""Questions about a scene have the answers that the scene gives."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from medvlp_kit.errors import KitError
from medvlp_kit.phantoms.questions import ask
from medvlp_kit.phantoms.sampling import World, scene
from medvlp_kit.phantoms.scene import FINDINGS, Change, Scene, Sign

SCENES = [scene(World(prior_fraction=0.5), 9, index) for index in range(400)]
# Words that tell which finding a question is about, written apart from the lexicon.
NAMES = {
    "Enlarged Cardiomediastinum": "mediastin",
    "Cardiomegaly": "cardiomegaly|cardiac|heart",
    "Lung Lesion": "nodul|lesion|mass",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax|pleural air",
    "Pleural Effusion": "effusion|pleural fluid",
    "Fracture": "fractur",
    "Support Devices": "device",
}


def about(text: str) -> str:
    found = [name for name, words in NAMES.items() if re.search(words, text.lower())]
    assert len(found) == 1, (text, found)
    return found[0]


def by_kind(exam: Scene, kind: str, *, closed: bool | None = None):
    return [q for q in ask(exam) if q.kind == kind and closed in (None, q.closed)]


def test_presence():
    for exam in SCENES:
        normality, *questions = by_kind(exam, "presence")
        assert "normal" in normality.text or "free" in normality.text
        assert normality.answer == ("yes" if exam.normal else "no")
        asked = [about(question.text) for question in questions]
        assert set(asked) >= {sign.finding for sign in exam.signs} and len(asked) == len(set(asked))
        assert any(exam.sign(name) is None for name in asked)
        for name, question in zip(asked, questions, strict=True):
            assert question.closed and question.answer == ("yes" if exam.sign(name) else "no")


def test_side_zone_count_severity_view():
    for exam in SCENES:
        for question in by_kind(exam, "side", closed=False):
            assert question.answer == {"bilateral": "both"}.get(side := exam.sign(about(question.text)).side, side)
        for question in by_kind(exam, "side", closed=True):
            asked = re.findall(r"\b(left|right)\b", question.text)
            assert len(asked) == 1
            assert question.answer == ("yes" if exam.sign(about(question.text)).side == asked[0] else "no")
        for question in by_kind(exam, "zone"):
            assert question.answer == exam.sign(about(question.text)).zone
        for question in by_kind(exam, "count"):
            assert question.answer == str(exam.sign(about(question.text)).count)
        for question in by_kind(exam, "severity"):
            assert question.answer == exam.sign(about(question.text)).severity
        assert [question.answer for question in by_kind(exam, "view")] == [exam.projection]
        kinds = Counter(question.kind for question in ask(exam) if not question.closed)
        assert kinds["side"] == sum(sign.side is not None for sign in exam.signs)
        assert kinds["zone"] == sum(sign.zone is not None for sign in exam.signs)
        assert kinds["count"] == sum(sign.finding in ("Lung Lesion", "Fracture") for sign in exam.signs)


def test_changes():
    seen = set()
    for exam in SCENES:
        kinds = {change.finding: change.kind for change in exam.changes}
        for question in by_kind(exam, "change", closed=False):
            assert question.answer == kinds[about(question.text)]
            seen.add(question.answer)
        for question in by_kind(exam, "change", closed=True):
            (asked,) = re.findall(r"\b(new|resolved|improved|worsened|unchanged)\b", question.text)
            assert question.answer == ("yes" if kinds[about(question.text)] == asked else "no")
        assert len(by_kind(exam, "change", closed=False)) == len(kinds)
    assert seen == {"new", "resolved", "improved", "worsened", "unchanged"}


def test_several_signs_of_one_finding():
    first, second = (
        Sign("Lung Lesion", "left", "upper", "mild", count=2),
        Sign("Lung Lesion", "right", "upper", "severe"),
    )
    exam = Scene(0, 0, "P", (first, second))
    answers = {question.kind: question.answer for question in ask(exam) if not question.closed}
    assert answers["side"] == "both" and answers["zone"] == "upper" and answers["count"] == "3"
    assert "severity" not in answers  # mild and severe: no one word is the whole truth
    same_side = Scene(0, 0, "P", (first, replace(second, side="left", zone="lower")))
    answers = {question.kind: question.answer for question in ask(same_side) if not question.closed}
    assert answers["side"] == "left" and "zone" not in answers
    mixed = Scene(0, 0, "P", (), changes=(Change("Fracture", "new", "left"), Change("Fracture", "resolved", "right")))
    assert not by_kind(mixed, "change")


def test_a_possible_sign_is_there():
    exam = Scene(0, 0, "P", (Sign("Edema", certainty="possible"),))
    assert [q.answer for q in by_kind(exam, "presence") if "edema" in q.text] == ["yes"]


def test_closed_answers_are_balanced_and_phrasings_vary():
    asked = [question for exam in SCENES for question in ask(exam)]
    for kind in ("presence", "side", "change"):
        answers = Counter(question.answer for question in asked if question.kind == kind and question.closed)
        assert set(answers) == {"yes", "no"} and 0.35 < answers["yes"] / answers.total() < 0.65, (kind, answers)
    for kind in ("presence", "side", "zone", "count", "severity", "view", "change"):
        texts = {re.sub("|".join(NAMES.values()), "", q.text) for q in asked if q.kind == kind}
        assert len(texts) >= 3, kind
    assert all(re.fullmatch(r"[A-Z].*\?", q.text) and not re.search(r"[\[\]{}|]|  ", q.text) for q in asked)


def test_questions_are_deterministic_and_speak_spanish():
    assert ask(SCENES[4]) == ask(SCENES[4])
    for exam in SCENES[:100]:
        english, spanish = ask(exam), ask(exam, language="es")
        assert [(q.kind, q.closed) for q in english] == [(q.kind, q.closed) for q in spanish]
        for one, other in zip(english, spanish, strict=True):
            assert (
                other.text.startswith("¿")
                and other.text.endswith("?")
                and not re.search(r"[\[\]{}|]|\bde el\b", other.text)
            )
            if one.closed and one.kind == "presence":
                assert (one.answer == "yes") == (other.answer == "sí")
    with pytest.raises(KitError, match="language 'de'"):
        ask(SCENES[0], language="de")


def test_names_cover_every_finding():
    assert set(NAMES) == set(FINDINGS)
