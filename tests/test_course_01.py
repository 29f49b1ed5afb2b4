"""The checks of lesson 01 accept the right answer and name the mistake in wrong ones."""

import re

import pytest

from medvlp_kit.course import checks_01 as checks


def right_box(box, width):
    return (width - box[2], box[1], width - box[0], box[3])


WRONG_BOXES = {
    "unchanged": lambda box, width: box,
    "old right edge": lambda box, width: (width - box[0], box[1], width - box[2], box[3]),
    "half-open": lambda box, width: (width - 1 - box[2], box[1], width - 1 - box[0], box[3]),
    "rows have moved": lambda box, width: (width - box[2], 8 - box[3], width - box[0], 8 - box[1]),
    "four numbers": lambda box, width: None,
}


def right_denial(sentence):
    sentence = sentence.lower()
    return bool(re.search(r"\b(no|without)\b", sentence)) and "no change" not in sentence


WRONG_DENIALS = {
    "'without'": lambda s: bool(re.search(r"\bno\b", s.lower())) and "no change" not in s.lower(),
    "middle of the sentence": lambda s: s.lower().startswith("no ") or "without" in s,
    "denies the change": lambda s: bool(re.search(r"\b(no|without)\b", s.lower())),
    "letters are not words": lambda s: ("no" in s.lower() or "without" in s.lower()) and "no change" not in s.lower(),
    "capitals": lambda s: bool(re.search(r"\b([Nn]o|without)\b", s)) and "No change" not in s,
    "affirmation": lambda s: True,
    "plainest": lambda s: False,
}


def stub(*_):
    raise NotImplementedError


@pytest.mark.parametrize("check, right", [(checks.mirror_box, right_box), (checks.is_denial, right_denial)])
def test_the_right_answer_passes_and_a_stub_is_not_written_yet(check, right):
    assert check(right).passed
    assert not check(stub).passed and "not written yet" in check(stub).message


@pytest.mark.parametrize("words", WRONG_BOXES)
def test_a_wrong_box_is_named(words):
    verdict = checks.mirror_box(WRONG_BOXES[words])
    assert not verdict.passed and words in verdict.message


@pytest.mark.parametrize("words", WRONG_DENIALS)
def test_a_wrong_denial_is_named(words):
    verdict = checks.is_denial(WRONG_DENIALS[words])
    assert not verdict.passed and words in verdict.message
