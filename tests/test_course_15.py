"""The checks of lesson 15: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import math

import pytest

from medvlp_kit.course import checks

lesson = checks.lesson_15


def stub(*arguments, **options):
    raise NotImplementedError


def rate_of_step(step, *, steps, warmup, highest):
    if step < warmup:
        return highest * (step + 1) / warmup
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def utilisation(pairs_per_second, *, forward_flops, peak):
    return 3 * forward_flops * pairs_per_second / peak


def share_of_rank(chosen, *, rank, processes):
    share = len(chosen) // processes
    return chosen[rank * share : (rank + 1) * share]


def diagnosis(*, last, held_out, waiting, B):
    chance = math.log(B)
    if not math.isfinite(last) or last > chance + 0.5:
        return "diverged"
    if last > chance - 0.2:
        return "not learning"
    if held_out > chance - 0.2:
        return "memorised"
    return "starved" if waiting > 0.5 else "healthy"


REFERENCES = [rate_of_step, utilisation, share_of_rank, diagnosis]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message
    assert "returns None" in check(lambda *arguments, **options: None).message


def with_rate(formula):
    return lambda step, *, steps, warmup, highest: formula(step, steps, warmup, highest)


def unaware(*, last, held_out, waiting, B):
    """Compares without asking whether the loss is a number."""
    if last > math.log(B) + 0.5:
        return "diverged"
    return diagnosis(last=0.0 if math.isnan(last) else last, held_out=held_out, waiting=waiting, B=B)


WRONG = [
    ("rate_of_step", with_rate(lambda s, n, w, h: h * s / w if s < w else h), "no learning rate at all"),
    ("rate_of_step", with_rate(lambda s, n, w, h: h * 0.5 * (1 + math.cos(math.pi * s / n))), "warm-up is missing"),
    ("rate_of_step", with_rate(lambda s, n, w, h: h * (s + 1) / w if s < w else h), "stays at its highest"),
    (
        "rate_of_step",
        with_rate(lambda s, n, w, h: h * (s + 1) / w if s < w else h * 0.5 * (1 + math.cos(math.pi * s / n))),
        "cosine runs over all steps",
    ),
    (
        "rate_of_step",
        with_rate(lambda s, n, w, h: h * (s + 1) / w if s < w else h * (1 - (s - w) / (n - w))),
        "straight line",
    ),
    ("utilisation", lambda p, *, forward_flops, peak: p * forward_flops / peak, "forward pass alone"),
    ("utilisation", lambda p, *, forward_flops, peak: 2 * p * forward_flops / peak, "three times it, not twice"),
    ("utilisation", lambda p, *, forward_flops, peak: peak / (3 * p * forward_flops), "upside down"),
    ("utilisation", lambda p, *, forward_flops, peak: 300 * p * forward_flops / peak, "percent"),
    ("share_of_rank", lambda chosen, *, rank, processes: chosen, "the whole batch"),
    ("share_of_rank", lambda chosen, *, rank, processes: chosen[: len(chosen) // processes], "the same part"),
    ("share_of_rank", lambda chosen, *, rank, processes: chosen[rank : rank + 2], "read by two processes"),
    ("share_of_rank", lambda chosen, *, rank, processes: chosen[rank::processes], "strided"),
    ("share_of_rank", lambda chosen, *, rank, processes: chosen[rank : rank + 1], "read by nobody"),
    ("diagnosis", unaware, "ask math.isfinite"),
    ("diagnosis", lambda **numbers: "fine", "none of the words"),
    (
        "diagnosis",
        lambda *, last, held_out, waiting, B: "starved" if waiting > 0.5 else diagnosis(
            last=last, held_out=held_out, waiting=waiting, B=B),
        "far above ln B",
    ),
    ("diagnosis", lambda *, last, held_out, waiting, B: diagnosis(last=last, held_out=held_out, waiting=waiting, B=32),
     "ln B depends on B"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "words"), WRONG, ids=[f"{name}: {words}" for name, _, words in WRONG])
def test_misconceptions_are_named(name, answer, words):
    verdict = getattr(lesson, name)(answer)
    assert not verdict.passed and words in verdict.message, verdict
