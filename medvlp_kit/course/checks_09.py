"""Checks of lesson 09, local contrastive."""

from __future__ import annotations

import math

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def pair_score(answer):
    """pair_score(patches (N, D), words (T, D), mask (T,), attention_scale, word_scale) -> Z, paper's form. Truth: loops."""
    import torch

    patches = torch.tensor([[1.0, 0.5], [-0.5, 1.5], [0.2, -0.8], [1.5, 1.0]], dtype=torch.float64)  # (4, 2)
    words = torch.tensor([[1.0, -0.5], [0.3, 1.0], [9.0, 9.0]], dtype=torch.float64)  # (3, 2), the last is padding
    mask, scales = torch.tensor([True, True, False]), (2.0, 3.0)
    truth = _pair_by_loops(patches, words, mask, *scales)
    found = answer(patches.clone(), words.clone(), mask.clone(), *scales)
    expect_shape(found, (), name="the score")
    attention, real = _attention(patches, words[:2], 2.0), words[:2]
    agreement = _cosine(attention @ patches, real)  # (2,)
    over_words = (2.0 * real @ patches.T).softmax(dim=0)
    doubled = (2.0 * (real @ patches.T).softmax(dim=0)).softmax(dim=1)
    hard = patches[(real @ patches.T).argmax(dim=1)]
    along = (attention @ patches * real).sum(dim=1)
    plain = _attention(patches, real, 1.0) @ patches
    divided = _attention(patches, real, 0.5) @ patches
    by_cosine = (2.0 * _cosine(real[:, None], patches[None])).softmax(dim=1) @ patches
    unweighted = patches.mean(dim=0).expand(2, 2)
    with_padding = _cosine(_attention(patches, words, 2.0) @ patches, words)
    blanked = words * mask[:, None]
    as_zero = torch.cat([agreement, _cosine(_attention(patches, blanked, 2.0) @ patches, blanked)[2:]])
    expect_not(
        found,
        {
            "padding still counts: a padded word must not take part in the sum": (3.0 * with_padding).logsumexp(dim=0),
            "padding was set to zero but still counts: each such word adds exp(0) = 1 to the sum": (3.0 * as_zero).logsumexp(dim=0),
            "your softmax runs over the words: in the paper's form each word shares itself out over the regions": (
                3.0 * _cosine(over_words @ patches, real)
            ).logsumexp(dim=0),
            "those are the released code's two softmaxes: the paper's form has only the one over regions": (
                3.0 * _cosine(doubled @ patches, real)
            ).logsumexp(dim=0),
            "the attention scale is not used: multiply the products by it before the softmax": (
                3.0 * _cosine(plain, real)
            ).logsumexp(dim=0),
            "you divided by the attention scale: here scales multiply, they are the paper's temperatures turned over": (
                3.0 * _cosine(divided, real)
            ).logsumexp(dim=0),
            "the attention is made of cosines: the vectors are used as they come, lengths included": (
                3.0 * _cosine(by_cosine, real)
            ).logsumexp(dim=0),
            "every region has the same weight: the softmax of the products is missing": (
                3.0 * _cosine(unweighted, real)
            ).logsumexp(dim=0),
            "each word took its best region alone: the context is a weighted mean of all": (3.0 * _cosine(hard, real)).logsumexp(
                dim=0
            ),
            "context and word are compared by their product: it should be the cosine": (3.0 * along).logsumexp(dim=0),
            "the word scale is not used: multiply the cosines by it before the exponential": agreement.logsumexp(dim=0),
            "that is the mean of the cosines: words are put together by log-sum-exp": agreement.mean(),
            "that is the greatest cosine: log-sum-exp is soft, every word keeps a say": agreement.max(),
            "that is the greatest scaled cosine: log-sum-exp is soft, every word keeps a say": 3.0 * agreement.max(),
            "the logarithm is missing": (3.0 * agreement).exp().sum(),
            "that is the logarithm of a mean: Z is that of a sum over words": (3.0 * agreement).exp().mean().log(),
            "you divided by the word scale at the end, the paper's power: leave it to the scale of the logits": truth / 3.0,
        },
    )
    expect_close(found, truth, "softmax over regions, context, cosine with the word, log-sum-exp over real words")
    generator = torch.Generator().manual_seed(0)
    patches, words = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (7, 4))
    mask = torch.tensor([True, False, True, True])
    for scales in ((4.0, 5.0), (1.0, 2.0)):
        expect_close(
            answer(patches.clone(), words.clone(), mask.clone(), *scales),
            _pair_by_loops(patches, words, mask, *scales),
            f"wrong for 7 regions, 4 words (the second is padding) and scales {scales}",
        )


def _attention(patches, words, scale: float):
    """(T, N): where each word looks."""
    return (scale * words @ patches.T).softmax(dim=1)


def _cosine(one, two):
    import torch.nn.functional as F

    return F.cosine_similarity(one, two, dim=-1)


def _pair_by_loops(patches, words, mask, attention_scale: float, word_scale: float) -> float:
    """The formula with numbers and plain loops."""
    total = 0.0
    for word, real in zip(words.tolist(), mask.tolist()):
        if not real:
            continue
        powers = [math.exp(attention_scale * sum(a * b for a, b in zip(word, patch))) for patch in patches.tolist()]
        context = [sum(p * patch[d] for p, patch in zip(powers, patches.tolist())) / sum(powers) for d in range(len(word))]
        product = sum(a * b for a, b in zip(context, word))
        cosine = product / math.sqrt(sum(a * a for a in context) * sum(a * a for a in word))
        total += math.exp(word_scale * cosine)
    return math.log(total)


@exercise
def bytes_needed(answer):
    """bytes_needed(batch, regions, words, width) -> (bytes of all contexts, bytes of all scores) in float32."""
    batch, regions, words, width = 10, 30, 7, 20
    found = answer(batch, regions, words, width)
    expect(found is not None, "your function returns None: does it end with return?")
    expect(isinstance(found, (tuple, list)) and len(found) == 2, "return two numbers: contexts, then scores")
    contexts, scores = 4 * batch**2 * words * width, 4 * batch**2 * words * regions
    first, second = float(found[0]), float(found[1])
    expect_not(
        first,
        {
            "contexts: each image is compared with every text, so there are B x B pairs, not B": contexts / batch,
            "contexts: that is the number of numbers: a float32 takes four bytes": contexts / 4,
            "contexts: a float32 takes four bytes, not eight": contexts * 2,
            "contexts: that many numbers are the scores, one for each word and region: a context has D numbers": scores,
            "contexts: there is one context for each word of the text, and the words are missing": contexts / words,
            "contexts: regions are summed over, they do not multiply: a context is one vector of D numbers": contexts * regions,
        },
    )
    expect_close(first, contexts, "contexts: B images x B texts x T words x D numbers x 4 bytes", tolerance=1e-9)
    expect_not(
        second,
        {
            "scores: each image is compared with every text, so there are B x B pairs, not B": scores / batch,
            "scores: that is the number of numbers: a float32 takes four bytes": scores / 4,
            "scores: those are the contexts: a score is one number for each word and region, whatever the width": contexts,
            "scores: the width is gone once the product is taken: one number for each word and region": scores * width,
            "scores: every word of every text is scored, and the words are missing": scores / words,
        },
    )
    expect_close(second, scores, "scores: B images x B texts x T words x N regions x 4 bytes", tolerance=1e-9)
    large = answer(48, 361, 25, 768)
    expect_close(large[0], 4 * 48**2 * 25 * 768, "wrong for B = 48, N = 361, T = 25, D = 768", tolerance=1e-9)
    expect_close(large[1], 4 * 48**2 * 25 * 361, "wrong for B = 48, N = 361, T = 25, D = 768", tolerance=1e-9)


@exercise
def looks_nowhere(answer):
    """looks_nowhere(attention (T, N), mask (T,), threshold) -> (T,) bool: real words whose entropy / ln N is at least it."""
    import torch

    attention = torch.tensor(
        [
            [0.97, 0.01, 0.01, 0.01],  # one place: share of ln 4 is 0.12
            [0.25, 0.25, 0.25, 0.25],  # everywhere: 1
            [0.49, 0.49, 0.01, 0.01],  # two places: 0.57, though its entropy is 0.79
            [0.40, 0.20, 0.20, 0.20],  # nearly everywhere: 0.96
            [0.25, 0.25, 0.25, 0.25],  # padding
        ],
        dtype=torch.float64,
    )
    mask = torch.tensor([True, True, True, True, False])
    found = answer(attention.clone(), mask.clone(), 0.6)
    expect_shape(found, (5,), name="the verdicts")
    found = torch.as_tensor(found)
    expect(found.dtype == torch.bool, f"give True or False for each word, a bool tensor: yours is {found.dtype}")
    truth = torch.tensor([False, True, False, True, False])
    entropy = torch.special.entr(attention).sum(dim=1)
    expect_not(
        found,
        {
            "padding is no word: it must not be reported": entropy / math.log(4) >= 0.6,
            "that is the opposite: those words have found one place": (entropy / math.log(4) < 0.6) & mask,
            "the entropy is not divided by ln N, the most it can be: the threshold is a share of that": (entropy >= 0.6) & mask,
            "only the perfectly even word was reported: judge the entropy of the whole row, by the threshold": (
                entropy / math.log(4) >= 1 - 1e-9
            )
            & mask,
        },
    )
    expect_close(found, truth, "entropy of each row, divided by ln N, at least the threshold, real words alone")
    certain = torch.eye(3, dtype=torch.float64)
    found = answer(certain, torch.ones(3, dtype=torch.bool), 0.5)
    expect(
        not torch.as_tensor(found).any(),
        "a row that is one at one place has entropy zero: mind 0 x log 0, which is NaN unless treated",
    )
    wide = torch.full((2, 9), 1 / 9, dtype=torch.float64)
    wide[1] = torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0, 0])
    found = torch.as_tensor(answer(wide, torch.ones(2, dtype=torch.bool), 0.95))
    expect(
        not bool(found[1]),
        "a word that looks at four of 9 regions has the share ln 4 / ln 9: take the whole row, not its peak, and divide by "
        "the logarithm of the number of regions, not of words",
    )
    expect(bool(found[0]), "a word spread evenly over 9 regions looks nowhere: N is the number of columns, whatever it is")
