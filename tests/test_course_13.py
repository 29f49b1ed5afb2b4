"""The checks of lesson 13: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from medvlp_kit.course import checks

lesson = checks.lesson_13


def stub(*arguments, **options):
    raise NotImplementedError


def beam_step(scores, log_probabilities):
    beams, vocabulary = log_probabilities.shape
    best, places = (scores[:, None] + log_probabilities).flatten().topk(beams)
    return best, places // vocabulary, places % vocabulary


def own_best(scores, words):
    best, added = (scores[:, None] + words).max(dim=1)
    return best, torch.arange(len(scores)), added


def last_word_alone(scores, words):
    best, places = words.flatten().topk(len(scores))
    return best, places // words.shape[1], places % words.shape[1]


def turned(combine, largest=True):
    """The beam step with the sums made by `combine`."""

    def step(scores, words):
        best, places = combine(scores[:, None], words).flatten().topk(len(scores), largest=largest)
        return best, places // words.shape[1], places % words.shape[1]

    return step


def by_beams(scores, words):
    best, places = (scores[:, None] + words).flatten().topk(len(scores))
    return best, places // len(scores), places % len(scores)


def whole_place(scores, words):
    best, places = (scores[:, None] + words).flatten().topk(len(scores))
    return best, places // words.shape[1], places


def only_two(scores, words):
    best, places = (scores[:, None] + words).flatten().topk(2)
    return best, places // words.shape[1], places % words.shape[1]


def grams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def clipped_precision(written, reference, n):
    mine = grams(written, n)
    return sum((mine & grams(reference, n)).values()) / max(1, sum(mine.values()))


def unclipped(written, reference, n):
    mine, theirs = grams(written, n), grams(reference, n)
    return sum(count for gram, count in mine.items() if gram in theirs) / max(1, sum(mine.values()))


def as_sets(written, reference, n):
    return len(set(grams(written, n)) & set(grams(reference, n))) / max(1, len(grams(written, n)))


def set_above(written, reference, n):
    return len(set(grams(written, n)) & set(grams(reference, n))) / max(1, grams(written, n).total())


def matches(written, reference, n):
    return (grams(written, n) & grams(reference, n)).total()


def stepping(written, reference, n):
    steps = Counter(tuple(written[i : i + n]) for i in range(0, len(written) - n + 1, n))
    return (steps & grams(reference, n)).total() / max(1, steps.total())


def fact_scores(said, true):
    both = (said & true).sum(axis=0)
    precision, recall = both / np.maximum(said.sum(axis=0), 1), both / np.maximum(true.sum(axis=0), 1)
    return precision, recall, 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)


def by_report(said, true):
    return fact_scores(said.T, true.T)


def with_nan(said, true):
    with np.errstate(invalid="ignore"):
        precision = (said & true).sum(axis=0) / said.sum(axis=0)
    _, recall, f1 = fact_scores(said, true)
    return precision, recall, f1


def accuracy(said, true):
    return (said == true).mean(axis=0), *fact_scores(said, true)[1:]


def with_f1(combine):
    def scores(said, true):
        precision, recall, _ = fact_scores(said, true)
        return precision, recall, combine(precision, recall)

    return scores


def sampling_weights(normal, share):
    if normal.all() or not normal.any():
        return np.full(len(normal), 1 / len(normal))
    return np.where(normal, share / normal.sum(), (1 - share) / (~normal).sum())


def unguarded(normal, share):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(normal, share / normal.sum(), (1 - share) / (~normal).sum())


def by_position(normal, share):
    """The right sum on each kind, unequally shared."""
    weights = np.where(normal, np.arange(1, len(normal) + 1), 1.0)
    weights = np.where(normal, share * weights / weights[normal].sum(), (1 - share) / max(1, (~normal).sum()))
    return weights


REFERENCES = [beam_step, clipped_precision, fact_scores, sampling_weights]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_right_answers_written_otherwise_pass():
    def with_sklearn(said, true):
        return precision_recall_fscore_support(true, said, zero_division=0)[:3]

    assert lesson.fact_scores(with_sklearn).passed
    tensors = lesson.sampling_weights(lambda normal, share: torch.tensor(sampling_weights(normal, share)))
    assert tensors.passed, tensors


WRONG = [
    ("beam_step", own_best, "two greedy searches"),
    ("beam_step", last_word_alone, "score of the beam so far"),
    ("beam_step", turned(lambda s, w: s * w), "multiplied logarithms"),
    ("beam_step", turned(lambda s, w: s + w.exp()), "added the probability"),
    ("beam_step", turned(lambda s, w: s + w, largest=False), "least probable"),
    ("beam_step", turned(lambda s, w: (s + w).exp()), "leave them as logarithms"),
    ("beam_step", by_beams, "number of beams"),
    ("beam_step", whole_place, "place among all"),
    ("beam_step", lambda s, w: [beam_step(s, w)[k] for k in (0, 2, 1)], "parents and words are swapped"),
    ("beam_step", only_two, "four beams"),
    ("beam_step", lambda s, w: beam_step(s, w)[0], "three tensors"),
    ("beam_step", lambda s, w: None, "returns None"),
    ("clipped_precision", unclipped, "repeated word counts each time"),
    ("clipped_precision", set_above, "each distinct word counts once"),
    ("clipped_precision", lambda w, r, n: matches(w, r, n) / len(r), "that is recall"),
    ("clipped_precision", lambda w, r, n: matches(w, r, n) / len(set(w)), "number of distinct words"),
    ("clipped_precision", matches, "that is a count"),
    ("clipped_precision", lambda w, r, n: clipped_precision(w, r, 1), "n is not used"),
    ("clipped_precision", lambda w, r, n: matches(w, r, n) / len(w), "T - n + 1"),
    ("clipped_precision", stepping, "step by one word"),
    ("clipped_precision", lambda w, r, n: matches(w, r, n) / (len(w) - n + 1), "ZeroDivisionError"),
    ("clipped_precision", lambda w, r, n: None, "returns None"),
    ("fact_scores", lambda s, t: fact_scores(t, s), "precision and recall are swapped"),
    ("fact_scores", by_report, "one number a report"),
    ("fact_scores", lambda s, t: [v.mean() for v in fact_scores(s, t)], "one number for all findings"),
    ("fact_scores", accuracy, "that is accuracy"),
    ("fact_scores", with_f1(lambda p, r: (p + r) / 2), "harmonic mean"),
    ("fact_scores", with_f1(lambda p, r: p * r), "that is the product"),
    ("fact_scores", with_f1(lambda p, r: p * r / (p + r)), "factor 2 is missing"),
    ("fact_scores", with_nan, "the rule here is 0"),
    ("fact_scores", lambda s, t: fact_scores(s, t)[:2], "three arrays"),
    ("fact_scores", lambda s, t: None, "returns None"),
    ("sampling_weights", lambda n, s: np.where(n, s, 1 - s), "divide it among them"),
    ("sampling_weights", lambda n, s: sampling_weights(n, 1 - s), "kinds are swapped"),
    ("sampling_weights", lambda n, s: np.full(len(n), 1 / len(n)), "equal weights for all"),
    ("sampling_weights", lambda n, s: sampling_weights(n, 0.5), "use `share`"),
    ("sampling_weights", lambda n, s: np.where(n, s, 1 - s) / len(n), "number of its own kind"),
    ("sampling_weights", lambda n, s: 2 * sampling_weights(n, s), "they are probabilities"),
    ("sampling_weights", by_position, "equally often"),
    ("sampling_weights", unguarded, "of one kind"),
    ("sampling_weights", lambda n, s: None, "is None"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message, verdict.message
