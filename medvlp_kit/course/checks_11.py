"""Checks of lesson 11, masked prediction."""

from __future__ import annotations

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def word_targets(answer):
    """word_targets(original (B, T), seen (B, T), chosen (B, T) bool) -> (B, T), -100 where nothing is asked."""
    import torch

    original = torch.tensor([[2, 11, 12, 13, 14, 3, 0], [2, 21, 22, 23, 3, 0, 0]])
    chosen = torch.zeros_like(original, dtype=torch.bool)
    chosen[0, 1:4] = True  # one becomes [MASK], one another word, one stays
    chosen[1, 2] = True
    seen = original.clone()
    seen[0, 1], seen[0, 2], seen[1, 2] = 4, 77, 4
    truth = torch.tensor([[-100, 11, 12, 13, -100, -100, -100], [-100, -100, 22, -100, -100, -100, -100]])
    before = original.clone(), seen.clone()
    found = answer(original, seen, chosen)
    expect_shape(found, (2, 7), name="the targets")
    expect(
        torch.equal(original, before[0]) and torch.equal(seen, before[1]),
        "you wrote into the input: work on a copy, other objectives read the same tensors",
    )
    expect_not(
        found,
        {
            "you ask for every token: a loss on words in plain sight teaches copying": original,
            "you ask for [MASK] only: the words that were exchanged or kept are asked for as well": truth.where(
                seen == 4, torch.tensor(-100)
            ),
            "you ask only where something changed: a chosen word that stays is asked for as well": truth.where(
                seen != original, torch.tensor(-100)
            ),
            "the answer to [MASK] cannot be [MASK]: ask for the original word": seen.where(chosen, torch.tensor(-100)),
            "0 is the number of [PAD]: mark what is not asked with -100, or the model learns to write padding": original.where(
                chosen, torch.tensor(0)
            ),
            "turned round: you ask for the words that are not chosen": original.where(~chosen, torch.tensor(-100)),
        },
    )
    expect_close(found, truth, "the original word where chosen, -100 everywhere else")


@exercise
def put_back(answer):
    """put_back(visible (B, K, D), token (D,), restore (B, N)) -> (B, N, D), the token in every hidden place."""
    import torch

    order = torch.tensor([[2, 0, 3, 1, 4], [4, 1, 0, 2, 3]])  # which patch went where; the first two are visible
    restore = order.argsort(dim=1)
    patches = torch.arange(1.0, 21.0).view(2, 5, 2)  # (B, N, D)
    visible = patches.gather(1, order[:, :2, None].expand(-1, -1, 2))
    token = torch.tensor([-1.0, -2.0])
    truth = token.expand(2, 5, 2).clone()
    for row in range(2):
        for slot in range(2):
            truth[row, order[row, slot]] = visible[row, slot]
    found = answer(visible, token, restore)
    expect_shape(found, (2, 5, 2), name="the tokens")
    last = torch.cat([visible, token.expand(2, 3, 2)], dim=1)
    first = torch.cat([token.expand(2, 3, 2), visible], dim=1)

    def moved(tokens, places):
        return tokens.gather(1, places[..., None].expand(-1, -1, 2))

    expect_not(
        found,
        {
            "everything is still in the shuffled order: gather with restore": last,
            "you undid restore instead of applying it: restore is already the inverse of the shuffle": moved(last, order),
            "the hidden places got the visible patches: put the visible ones in front before you gather": moved(first, restore),
            "the hidden places hold zeros: a learned token stands there": truth.where(truth > 0, torch.tensor(0.0)),
        },
    )
    expect_close(found, truth, "patch n of the answer must be token number restore[n] of [visible, hidden]")


@exercise
def patch_loss(answer):
    """patch_loss(prediction (B, N, P), target (B, N, P), mask (B, N) bool) -> a number: MAE's loss."""
    import torch

    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 6, 4, generator=generator, dtype=torch.float64)  # two times (B=2, N=6, P=4)
    target = 3 * target + torch.arange(6.0, dtype=torch.float64)[None, :, None]
    mask = torch.tensor([[True, True, False, True, True, False], [False, True, False, False, False, False]])
    found = answer(prediction, target, mask)
    expect_shape(found, (), name="the loss")

    def error(*, correction=1, normalise=True):
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True, correction=correction)
        aim = (target - mean) / (variance + 1e-6).sqrt() if normalise else target
        return (prediction - aim).square().mean(-1)  # (B, N)

    truth = error()[mask].mean()
    expect_not(
        found,
        {
            "the mean runs over all patches: those in plain sight ask for nothing but a copy": error().mean(),
            "turned round: the mean runs over the visible patches": error()[~mask].mean(),
            "the target is not normalised: each patch gets mean 0 and variance 1 first": error(normalise=False)[mask].mean(),
            "the variance divides by P: here it is the unbiased one, which divides by P - 1": error(correction=0)[mask].mean(),
            "you divide by all patches: divide by the number of hidden ones": (error() * mask).mean(),
            "you averaged image by image: every hidden patch counts the same": torch.stack(
                [error()[row][mask[row]].mean() for row in range(2)]
            ).mean(),
            "you summed over the pixels of a patch: take their mean": 4 * truth,
        },
    )
    expect_close(found, truth, "normalise each target patch, square the error, average over the hidden patches")
    flat = answer(torch.zeros(1, 2, 4), torch.full((1, 2, 4), 0.3), torch.ones(1, 2, dtype=torch.bool))
    expect_close(flat, 0.0, "a patch of one colour has variance 0: add 1e-6 before the root, or the loss is NaN")


@exercise
def whole_words(answer):
    """whole_words(chosen (B, T) bool, pieces: B lists of T strings) -> (B, T) bool: if a piece is chosen, its word is."""
    import torch

    pieces = [["cost", "##oph", "##renic", "angle", "blunt", "##ed"], ["no", "pneum", "##o", "effusion", "hilar", "."]]
    chosen = torch.tensor([[False, False, True, False, True, False], [False, False, True, False, True, False]])
    truth = torch.tensor([[True, True, True, False, True, True], [False, True, True, False, True, False]])
    found = answer(chosen, pieces)
    expect_shape(found, (2, 6), name="the choice")
    forward = torch.tensor([[False, False, True, False, True, True], [False, False, True, False, True, False]])
    backward = torch.tensor([[True, True, True, False, True, False], [False, True, True, False, True, False]])
    one = torch.tensor([[False, True, True, False, True, False], [False, True, True, False, True, False]])
    expect_not(
        found,
        {
            "nothing was added: a word is hidden as a whole when any of its pieces is": chosen,
            "you only go on to the right: pieces to the left belong to the word as well": forward,
            "you only go back to the left: pieces to the right belong to the word as well": backward,
            "you take in one neighbour: a word may have many pieces": one,
            "everything is chosen: a piece without ## begins a new word": torch.ones_like(chosen),
        },
    )
    expect_close(found, truth, "a word is a piece without ## and all ## pieces that follow it")
