"""The checks of lesson 03: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.augment import mix_features
from medvlp_kit.augment.crops import share_inside
from medvlp_kit.course import checks
from medvlp_kit.study import Region
from medvlp_kit.text import swap_sides

lesson = checks.lesson_03
OTHER = {"left": "right", "right": "left"}


def stub(*arguments):
    raise NotImplementedError


def swap_words(text):
    def other(match):
        word = OTHER[match.group().lower()]
        return word.capitalize() if match.group()[0].isupper() else word

    return re.sub(r"\b(left|right)\b", other, text, flags=re.IGNORECASE)


def area(box):
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def overlap(box, frame):
    return area((max(box[0], frame[0]), max(box[1], frame[1]), min(box[2], frame[2]), min(box[3], frame[3])))


def kept_sentences(sentences, boxes, frame, inside):
    def kept(name):
        return name is None or overlap(boxes[name], frame) >= inside * area(boxes[name])

    return [text for text, name in sentences if kept(name)]


def mix_pairs(image, text, other, share):
    return tuple(F.normalize(share * part + (1 - share) * part[other], dim=-1) for part in (image, text))


@pytest.mark.parametrize("reference", [swap_words, kept_sentences, mix_pairs], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_the_library_passes_its_own_exercises():
    assert lesson.swap_words(swap_sides).passed

    def kept(sentences, boxes, frame, inside):
        return [t for t, name in sentences if name is None or share_inside(Region(name, boxes[name]), frame) >= inside]

    assert lesson.kept_sentences(kept).passed
    image, text = F.normalize(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    mixed = mix_features(image, text, generator=torch.Generator().manual_seed(1))
    chance = torch.Generator().manual_seed(1)
    order = torch.randperm(5, generator=chance)
    other = torch.empty_like(order)
    other[order] = order.roll(-1)
    share = 0.5 + 0.5 * torch.rand(5, 1, generator=chance)
    torch.testing.assert_close(mixed, mix_pairs(image, text, other, share))


def one_after_another(text):
    return text.replace("left", "right").replace("right", "left")


def small_letters(text):
    return re.sub(r"\b(left|right)\b", lambda m: OTHER[m.group()], text.lower())


def letters(text):
    return re.sub("left|right|Left|Right", lambda m: swap_words(m.group()), text)


def whole_words_between_spaces(text):
    return " ".join(swap_words(word) if re.fullmatch(r"\w+[.,]?", word) else word for word in text.split(" "))


def both_become_one(text):
    return swap_words(text).replace("bilateral", "right-sided")


def any_overlap(sentences, boxes, frame, inside):
    return [text for text, name in sentences if name is None or overlap(boxes[name], frame) > 0]


def share_of_frame(sentences, boxes, frame, inside):
    return [text for text, name in sentences if name is None or overlap(boxes[name], frame) >= inside * area(frame)]


def the_lost(sentences, boxes, frame, inside):
    return [text for text, name in sentences if text not in kept_sentences(sentences, boxes, frame, inside)]


def by_width(sentences, boxes, frame, inside):
    def part(box):
        across = (min(box[2], frame[2]) - max(box[0], frame[0])) / (box[2] - box[0])
        return across if min(box[3], frame[3]) > max(box[1], frame[1]) else 0

    return [text for text, name in sentences if name is None or part(boxes[name]) >= inside]


def negative_areas(sentences, boxes, frame, inside):
    def part(box):
        across = min(box[2], frame[2]) - max(box[0], frame[0])
        return across * (min(box[3], frame[3]) - max(box[1], frame[1]))

    return [text for text, name in sentences if name is None or part(boxes[name]) >= inside * area(boxes[name])]


WRONG = [
    ("swap_words", lambda text: text, "left does not become right"),
    ("swap_words", lambda text: text.replace("left", "right"), "right does not become left"),
    ("swap_words", one_after_another, "second undoes the first"),
    ("swap_words", lambda text: text.replace("right", "#").replace("left", "right").replace("#", "left"), "capital"),
    ("swap_words", lambda text: re.sub("left|right", lambda m: "right" if "left" in text else "left", text),
     "both sides have become the same"),
    ("swap_words", small_letters, "capital"),
    ("swap_words", letters, "letters are not words"),
    ("swap_words", whole_words_between_spaces, "hyphen ends a word"),
    ("swap_words", both_become_one, "both sides stays"),
    ("swap_words", lambda text: None, "end with return"),
    ("kept_sentences", any_overlap, "any overlap is enough"),
    ("kept_sentences", share_of_frame, "not of the frame"),
    ("kept_sentences", lambda s, b, f, i: [t for t, _ in s], "that is every sentence"),
    ("kept_sentences", lambda s, b, f, i: kept_sentences(s[1:], b, f, i), "true of every crop"),
    ("kept_sentences", lambda s, b, f, i: kept_sentences(s, b, f, 1.0), "only whole boxes"),
    ("kept_sentences", lambda s, b, f, i: kept_sentences(s, b, f, i + 1e-6), "is enough: 6 of 10"),
    ("kept_sentences", the_lost, "kept what was cut"),
    ("kept_sentences", by_width, "a quarter of its area"),
    ("kept_sentences", negative_areas, "looks like an area"),
    ("mix_pairs", lambda v, t, o, s: (v, t), "nothing is mixed"),
    ("mix_pairs", lambda v, t, o, s: (s * v + (1 - s) * v[o], s * t + (1 - s) * t[o]), "normalise after mixing"),
    ("mix_pairs", lambda v, t, o, s: mix_pairs(v, t, o, 1 - s), "turned round"),
    ("mix_pairs", lambda v, t, o, s: mix_pairs(v, t, o.argsort(), s), "chose i"),
    ("mix_pairs", lambda v, t, o, s: (mix_pairs(v, t, o, s)[0], t), "texts are not mixed"),
    ("mix_pairs", lambda v, t, o, s: (mix_pairs(v, t, o, s)[0], mix_pairs(v, t, o.argsort(), s)[1]), "other partners"),
    ("mix_pairs", lambda v, t, o, s: (mix_pairs(v, t, o, s)[0], mix_pairs(v, t, o, 1 - s)[1]), "another weight"),
    ("mix_pairs", lambda v, t, o, s: (F.normalize(s * v + (1 - s) * t[o], dim=-1), t), "an image mixes with an image"),
    ("mix_pairs", lambda v, t, o, s: (mix_pairs(v, t, o, s)[0], s * t + (1 - s) * t[o]), "lengths of the texts"),
    ("mix_pairs", lambda v, t, o, s: mix_pairs(v, t, o, s)[0], "return two tensors"),
]  # fmt: skip


@pytest.mark.parametrize("name, wrong, words", WRONG, ids=[f"{name}-{words}" for name, _, words in WRONG])
def test_wrong_answers_are_named(name, wrong, words):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed and words in verdict.message, verdict.message
