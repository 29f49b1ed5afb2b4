"""The checks of lesson 09: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.course import checks
from medvlp_kit.objectives.local import word_region_similarity

lesson = checks.lesson_09


def stub(*arguments, **options):
    raise NotImplementedError


def pair_score(patches, words, mask, attention_scale, word_scale):
    words = words[mask]
    contexts = (attention_scale * words @ patches.T).softmax(dim=1) @ patches
    return (word_scale * F.cosine_similarity(contexts, words, dim=1)).logsumexp(dim=0)


def bytes_needed(batch, regions, words, width):
    pairs = 4 * batch * batch * words
    return pairs * width, pairs * regions


def looks_nowhere(attention, mask, threshold):
    entropy = torch.special.entr(attention).sum(dim=1)
    return (entropy / math.log(attention.shape[1]) >= threshold) & mask


@pytest.mark.parametrize("reference", [pair_score, bytes_needed, looks_nowhere], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_the_truth_is_the_librarys():
    generator = torch.Generator().manual_seed(1)
    patches, words = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (9, 5))
    mask = torch.tensor([True, True, False, True, False])
    expected = word_region_similarity(patches[None], words[None], mask[None], words_first=False)
    torch.testing.assert_close(pair_score(patches, words, mask, 4.0, 5.0), expected[0, 0])


def scored(weights, together=None):
    """A wrong answer: `weights(scores (T, N), scale)` instead of the softmax over regions, `together` of the cosines."""

    def answer(patches, words, mask, attention_scale, word_scale):
        words = words[mask]
        contexts = weights(words @ patches.T, attention_scale) @ patches
        cosines = F.cosine_similarity(contexts, words, dim=1)
        return (word_scale * cosines).logsumexp(dim=0) if together is None else together(cosines, word_scale)

    return answer


def regions(scores, scale):
    return (scale * scores).softmax(dim=1)


def padded(patches, words, mask, a, b):
    return pair_score(patches, words, torch.ones_like(mask), a, b)


def padding_as_zero(patches, words, mask, a, b):
    return padded(patches, words * mask[:, None], mask, a, b)


def product(patches, words, mask, a, b):
    words = words[mask]
    return (b * ((a * words @ patches.T).softmax(dim=1) @ patches * words).sum(dim=1)).logsumexp(dim=0)


def cosine_attention(patches, words, mask, a, b):
    words = words[mask]
    scores = F.normalize(words, dim=1) @ F.normalize(patches, dim=1).T
    return (b * F.cosine_similarity((a * scores).softmax(dim=1) @ patches, words, dim=1)).logsumexp(dim=0)


def first_words(patches, words, mask, a, b):
    """Right only where the padding stands at the end."""
    return pair_score(patches, words, torch.arange(len(mask)) < mask.sum(), a, b)


def fixed_scales(patches, words, mask, a, b):
    return pair_score(patches, words, mask, a if a != 1.0 else 4.0, b)


def entropy_of(attention):
    return torch.special.entr(attention).sum(dim=1)


def by_words(attention, mask, threshold):
    return (entropy_of(attention) / math.log(len(attention)) >= threshold) & mask


def naive_entropy(attention, mask, threshold):
    share = -(attention * attention.log()).sum(dim=1) / math.log(attention.shape[1])
    return ~(share < threshold) & mask


WRONG = [
    ("pair_score", padded, "padding still counts"),
    ("pair_score", padding_as_zero, "set to zero but still counts"),
    ("pair_score", scored(lambda s, a: (a * s).softmax(dim=0)), "runs over the words"),
    ("pair_score", scored(lambda s, a: (a * s.softmax(dim=0)).softmax(dim=1)), "two softmaxes"),
    ("pair_score", scored(lambda s, a: s.softmax(dim=1)), "attention scale is not used"),
    ("pair_score", scored(lambda s, a: (s / a).softmax(dim=1)), "divided by the attention scale"),
    ("pair_score", cosine_attention, "made of cosines"),
    ("pair_score", scored(lambda s, a: torch.full_like(s, 1 / s.shape[1])), "same weight"),
    ("pair_score", scored(lambda s, a: F.one_hot(s.argmax(dim=1), s.shape[1]).to(s)), "best region alone"),
    ("pair_score", product, "should be the cosine"),
    ("pair_score", scored(regions, lambda c, b: c.logsumexp(dim=0)), "word scale is not used"),
    ("pair_score", scored(regions, lambda c, b: c.mean()), "mean of the cosines"),
    ("pair_score", scored(regions, lambda c, b: c.max()), "greatest cosine"),
    ("pair_score", scored(regions, lambda c, b: b * c.max()), "greatest scaled cosine"),
    ("pair_score", scored(regions, lambda c, b: (b * c).exp().sum()), "logarithm is missing"),
    ("pair_score", scored(regions, lambda c, b: (b * c).exp().mean().log()), "logarithm of a mean"),
    ("pair_score", scored(regions, lambda c, b: (b * c).logsumexp(dim=0) / b), "paper's power"),
    ("pair_score", first_words, "second is padding"),
    ("pair_score", fixed_scales, "scales (1.0, 2.0)"),
    ("pair_score", lambda *a: None, "is None"),
    ("pair_score", lambda p, w, m, a, b: p, "should have shape"),
    ("bytes_needed", lambda b, n, t, d: (4 * b * t * d, 4 * b * t * n), "contexts: each image"),
    ("bytes_needed", lambda b, n, t, d: (b * b * t * d, b * b * t * n), "contexts: that is the number of numbers"),
    ("bytes_needed", lambda b, n, t, d: (8 * b * b * t * d, 8 * b * b * t * n), "not eight"),
    ("bytes_needed", lambda b, n, t, d: bytes_needed(b, n, t, d)[::-1], "a context has D numbers"),
    ("bytes_needed", lambda b, n, t, d: (4 * b * b * d, 4 * b * b * n), "the words are missing"),
    ("bytes_needed", lambda b, n, t, d: (4 * b * b * t * d * n, 4 * b * b * t * n), "regions are summed over"),
    ("bytes_needed", lambda b, n, t, d: (bytes_needed(b, n, t, d)[0], 4 * b * t * n), "scores: each image"),
    ("bytes_needed", lambda b, n, t, d: (bytes_needed(b, n, t, d)[0],) * 2, "scores: those are the contexts"),
    ("bytes_needed", lambda b, n, t, d: (bytes_needed(b, n, t, d)[0], 4 * b * b * t * n * d), "the width is gone"),
    ("bytes_needed", lambda b, n, t, d: (bytes_needed(b, n, t, d)[0], 4 * b * b * n), "scores: every word"),
    ("bytes_needed", lambda b, n, t, d: (bytes_needed(b, n, t, d)[0], b * b * t * n), "scores: that is the number"),
    ("bytes_needed", lambda b, n, t, d: bytes_needed(10, 30, 7, 20), "B = 48"),
    ("bytes_needed", lambda b, n, t, d: 4 * b * b * t * d, "two numbers"),
    ("bytes_needed", lambda *a: None, "returns None"),
    ("looks_nowhere", lambda a, m, t: entropy_of(a) / math.log(a.shape[1]) >= t, "padding is no word"),
    ("looks_nowhere", lambda a, m, t: ~looks_nowhere(a, m, t) & m, "the opposite"),
    ("looks_nowhere", lambda a, m, t: (entropy_of(a) >= t) & m, "not divided by ln N"),
    ("looks_nowhere", lambda a, m, t: (a.amax(dim=1) < 0.3) & m, "perfectly even"),
    ("looks_nowhere", lambda a, m, t: (a.std(dim=1) < 1e-6) & m, "perfectly even"),
    ("looks_nowhere", lambda a, m, t: (a.amax(dim=1) < 0.45) & m, "not its peak"),
    ("looks_nowhere", naive_entropy, "0 x log 0"),
    ("looks_nowhere", by_words, "not of words"),
    ("looks_nowhere", lambda a, m, t: looks_nowhere(a, m, t) & (a.shape[1] < 9), "9 regions"),
    ("looks_nowhere", lambda a, m, t: entropy_of(a) * m, "bool tensor"),
    ("looks_nowhere", lambda a, m, t: None, "is None"),
]  # fmt: skip


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
