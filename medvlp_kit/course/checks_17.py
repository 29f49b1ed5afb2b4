"""Checks of lesson 17, transfer."""

from __future__ import annotations

from .checking import close, exercise, expect, expect_close, expect_not, expect_shape


@exercise
def label_subsets(answer):
    """label_subsets(count, fractions, seed) -> {fraction: indices}, nested. Truth: what the words promise."""
    fractions = (0.1, 0.5, 1.0)
    found = answer(40, fractions, 0)
    expect(isinstance(found, dict), "return a dictionary: fraction -> indices")
    expect(set(found) == set(fractions), f"the keys should be the fractions {fractions}")
    parts = {fraction: [int(i) for i in found[fraction]] for fraction in fractions}
    for fraction, rows in parts.items():
        expect(bool(rows) and all(0 <= row < 40 for row in rows), f"indices must lie from 0 to 39: look at {fraction:g}")
        expect(
            len(set(rows)) == len(rows),
            f"a study is in the subset of {fraction:g} twice: draw without replacement (a permutation does)",
        )
        expect(
            len(rows) == round(fraction * 40),
            f"the subset of {fraction:g} of 40 studies has {len(rows)} studies, not {round(fraction * 40)}",
        )
    small, middle, whole = (set(parts[fraction]) for fraction in fractions)
    expect(
        small <= middle <= whole,
        "the subsets are not nested: draw one order of all studies, and let every subset be a beginning of it",
    )
    expect(small != set(range(4)), "you took the first studies: files lie in order of date or hospital, so shuffle them")
    again = {fraction: sorted(int(i) for i in answer(40, fractions, 0)[fraction]) for fraction in fractions}
    expect(
        again == {fraction: sorted(rows) for fraction, rows in parts.items()},
        "the same seed gave other studies: make a generator from the seed inside the function",
    )
    other = answer(40, fractions, 1)
    expect(
        set(map(int, other[0.1])) != small or set(map(int, other[0.5])) != middle,
        "another seed gave the same studies: the seed is not used",
    )
    alone = set(map(int, answer(40, (0.5,), 0)[0.5]))
    expect(
        alone == middle,
        "the subset of 0.5 depends on which other fractions were asked for: draw the order once, before any cut",
    )


@exercise
def stage_rates(answer):
    """stage_rates(learning_rate, decay, stages) -> learning rates from the stem to the head. Truth: repeated products."""
    rate, decay, stages = 0.01, 0.5, 4
    found = answer(rate, decay, stages)
    expect(found is not None, "your function returns None: does it end with return?")
    found = [float(value) for value in found]
    truth = [rate]
    for _ in range(stages):
        truth.insert(0, truth[0] * decay)  # stem ... top stage, head
    truth[-1] = rate
    top = [rate * decay**depth for depth in range(stages)]  # the top stage learns as fast as the head
    expected = [*top[::-1], rate]
    expect(
        len(found) != stages,
        "the head is missing: return one rate for each stage and one more for the head, stem first and head last",
    )
    expect_shape(found, (stages + 1, "..."), name="the list of rates")
    expect_not(
        found,
        {
            "it is turned round: the stem, at the bottom, learns slowest": expected[::-1],
            "the top stage is slowed already: it learns as fast as the head, and the slowing begins below it": truth,
            "one rate for all: multiply by the decay for every stage below the top": [rate] * (stages + 1),
            "you divided by the decay: lower stages would learn faster": [*[rate / decay**d for d in range(stages)][::-1], rate],
            "you subtracted a share for each stage: the rates fall by a factor, not by a step": [
                *[rate * (1 - d / stages) for d in range(stages)][::-1], rate,
            ],
            "every stage below the head has the same rate: the factor is multiplied in again at each stage": [
                *[rate * decay] * stages, rate,
            ],
        },
    )  # fmt: skip
    expect_close(found, expected, "the top stage and the head at the full rate, each stage below at decay times the one above")
    expect(
        close([float(v) for v in answer(0.2, 1.0, 2)], [0.2, 0.2, 0.2]), "with a decay of 1 all rates are the same"
    )


@exercise
def adapter_logits(answer):
    """adapter_logits(query (N, D), keys (K, D), values (K, C), prompts (N, C), alpha, beta) -> (N, C). Truth: loops."""
    import math

    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(1)

    def unit(rows):
        return F.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=-1)

    query, keys, alpha, beta = unit(3), unit(4), 2.0, 3.0
    values = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    prompts = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    found = answer(query.clone(), keys.clone(), values.clone(), prompts.clone(), alpha, beta)
    expect_shape(found, (3, 2), name="the logits")
    cosines = query @ keys.T
    near = torch.exp(-beta * (1 - cosines))
    truth = torch.tensor([
        [
            float(prompts[n, c]) + alpha * sum(
                math.exp(-beta * (1 - float(query[n] @ keys[k]))) * float(values[k, c]) for k in range(4)
            )
            for c in range(2)
        ]
        for n in range(3)
    ])  # fmt: skip
    expect_not(
        found,
        {
            "the prompts are not used: the cache is added to what they say": alpha * near @ values,
            "the shots are not used: those are the prompts alone": prompts,
            "alpha stands at the prompts: it weighs the cache": alpha * prompts + near @ values,
            "alpha is not used": prompts + near @ values,
            "the sign in the exponent is turned: a shot says less the farther it is": prompts
            + alpha * torch.exp(beta * (1 - cosines)) @ values,
            "the exponent holds the cosine instead of the distance 1 - cosine, and grows with it the wrong way": prompts
            + alpha * torch.exp(-beta * cosines) @ values,
            "exp(beta cosine) lacks the 1 -: all weights are too great by the same factor exp(beta)": prompts
            + alpha * torch.exp(beta * cosines) @ values,
            "you normalised the weights with a softmax: in this adapter a query far from all shots listens to the prompts": prompts
            + alpha * torch.softmax(beta * cosines, dim=1) @ values,
            "the cosine weighs the shots as it is: the sharpening exp(-beta (1 - cosine)) is missing": prompts
            + alpha * cosines @ values,
            "you averaged the shots of a class: here they are added up": prompts + alpha * near @ (values / values.sum(0)),
            "beta stands outside the exponential": prompts + alpha * beta * torch.exp(-(1 - cosines)) @ values,
        },
    )
    expect_close(found, truth, "prompts + alpha exp(-beta (1 - query keysᵀ)) values")
