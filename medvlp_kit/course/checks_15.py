"""Checks of lesson 15, pretraining on a GPU."""

from __future__ import annotations

import math

from .checking import close, exercise, expect, expect_close, expect_not


@exercise
def rate_of_step(answer):
    """rate_of_step(step, *, steps, warmup, highest) -> learning rate. Truth: the kit's schedule."""
    from ..budget import budget
    from ..schedule import learning_rate

    found = answer(0, steps=100, warmup=10, highest=1.0)
    expect(found is not None, "your function returns None: does it end with return?")
    expect_not(found, {
        "step 0 gets no learning rate at all: count the step that is being made, (step + 1) / warmup": 0.0,
        "the warm-up is missing: the first step already has the highest rate": 1.0,
    })  # fmt: skip
    expect_close(answer(4, steps=100, warmup=10, highest=2.0), 1.0, "half way through the warm-up the rate is half the highest")
    middle = answer(55, steps=100, warmup=10, highest=1.0)
    expect_not(middle, {
        "the cosine runs over all steps: it begins where the warm-up ends, (step - warmup) / (steps - warmup)":
            0.5 * (1 + math.cos(math.pi * 0.55)),
        "that is a whole cosine, which falls below zero: half a cosine is (1 + cos(pi x)) / 2": math.cos(math.pi * 0.5),
        "the rate stays at its highest after the warm-up: half a cosine takes it down to zero": 1.0,
    })  # fmt: skip
    quarter = answer(32, steps=100, warmup=10, highest=1.0)
    expect(not close(quarter, 1 - 22 / 90), "that falls along a straight line: the cosine stays high for longer at first")
    sizes = budget("tiny").but(learning_rate=3e-4, warmup_fraction=0.1)
    for step in range(50):
        wanted = learning_rate(step, sizes, steps=50)
        expect_close(answer(step, steps=50, warmup=5, highest=3e-4), wanted, f"wrong at step {step} of 50", tolerance=1e-9)


@exercise
def utilisation(answer):
    """utilisation(pairs_per_second, *, forward_flops, peak) -> MFU. Truth: FLOPs of a step counted as thrice the forward."""
    found = answer(100.0, forward_flops=2e9, peak=3e12)
    expect(found is not None, "your function returns None: does it end with return?")
    expect_not(found, {
        "that counts the forward pass alone: backward costs twice as much again": 100 * 2e9 / 3e12,
        "backward costs twice the forward pass, so a step is three times it, not twice": 100 * 2 * 2e9 / 3e12,
        "upside down: what is needed, divided by what could be done": 3e12 / (100 * 3 * 2e9),
        "that is in percent: give a share, 0.2 for 20 %": 100 * 100 * 3 * 2e9 / 3e12,
        "divide by the peak: FLOPs a second become a share of what is possible": 100 * 3 * 2e9,
    })  # fmt: skip
    expect_close(found, 0.2, "100 pairs a second of 6 GFLOPs each are 0.6 of 3 TFLOPs/s")
    expect_close(answer(250.0, forward_flops=35e9, peak=989e12), 250 * 105e9 / 989e12, "wrong for other numbers")


@exercise
def share_of_rank(answer):
    """share_of_rank(chosen, *, rank, processes) -> this process's part. Truth: each study once, in order, equal parts."""
    chosen = [7, 3, 11, 5, 2, 13, 0, 9]
    parts = [answer(list(chosen), rank=rank, processes=4) for rank in range(4)]
    expect(all(part is not None for part in parts), "your function returns None: does it end with return?")
    parts = [list(part) for part in parts]
    expect(
        not all(part == chosen for part in parts),
        "every process gets the whole batch: they would all compute the same gradient, four times as slowly",
    )
    expect(
        not all(part == parts[0] for part in parts),
        "every process gets the same part: the others' studies are never read; use rank",
    )
    joined = [index for part in parts for index in part]
    expect(len(set(joined)) == len(joined), f"a study is read by two processes: {sorted(joined)}")
    expect(set(joined) == set(chosen), f"{sorted(set(chosen) - set(joined))} is read by nobody")
    expect({len(part) for part in parts} == {2}, "the parts differ in size: then gradients may not be averaged as they are")
    expect(
        joined == chosen,
        "each study is read once, but strided: rank r's rows of the gathered matrix must be the block r of the global "
        "batch, so that row i of the images still meets row i of the texts",
    )


@exercise
def diagnosis(answer):
    """diagnosis(*, last, held_out, waiting, B) -> one word. Truth: planted runs."""
    chance = math.log(32)
    cases = [
        (dict(last=1.0, held_out=1.3, waiting=0.1), "healthy", "a loss far below ln B on both, little waiting: healthy"),
        (dict(last=math.nan, held_out=math.nan, waiting=0.1), "diverged",
         "NaN is smaller than nothing and greater than nothing: ask math.isfinite, a comparison is always False"),
        (dict(last=9.0, held_out=9.5, waiting=0.9), "diverged", "far above ln B is worse than knowing nothing: diverged"),
        (dict(last=chance - 0.02, held_out=chance, waiting=0.9), "not learning",
         "near ln B nothing is learned: reading faster would not help, so this comes before starved"),
        (dict(last=0.05, held_out=5.0, waiting=0.1), "memorised",
         "training far below ln B while strangers stay at it: memorised"),
        (dict(last=0.05, held_out=chance + 0.4, waiting=0.9), "memorised", "memorised comes before starved"),
        (dict(last=1.0, held_out=1.3, waiting=0.8), "starved", "it learns, but waits more than half the time: starved"),
    ]  # fmt: skip
    words = {word for _, word, _ in cases}
    for numbers, wanted, why in cases:
        found = answer(B=32, **numbers)
        expect(found is not None, "your function returns None: does it end with return?")
        expect(found in words, f"{found!r} is none of the words: {', '.join(sorted(words))}")
        expect(found == wanted, f"{why}; you said {found!r}")
    expect(
        answer(last=math.log(256) - 0.03, held_out=math.log(256), waiting=0.0, B=256) == "not learning",
        "ln B depends on B: with 256 pairs chance is 5.5, not 3.5",
    )
    expect(answer(last=math.log(256) - 2, held_out=math.log(256) - 1.5, waiting=0.0, B=256) == "healthy",
           "a loss of 3.5 with 256 pairs is two below chance: healthy")  # fmt: skip
