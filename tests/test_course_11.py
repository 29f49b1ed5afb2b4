"""The checks of lesson 11: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medvlp_kit.course import checks
from medvlp_kit.objectives.masked_image import reconstruction_loss

lesson = checks.lesson_11


def stub(*arguments, **options):
    raise NotImplementedError


def word_targets(original, seen, chosen):
    return original.masked_fill(~chosen, -100)


def put_back(visible, token, restore):
    hidden = token.expand(len(visible), restore.shape[1] - visible.shape[1], -1)
    return torch.cat([visible, hidden], dim=1).gather(1, restore[..., None].expand(-1, -1, visible.shape[2]))


def patch_loss(prediction, target, mask):
    return reconstruction_loss(prediction, target, mask)


def spread(chosen, pieces, *, before=True, after=True, times=99):
    found = chosen.clone()
    for _ in range(times):
        for row, words in enumerate(pieces):
            last = found[row].clone()
            for t in range(1, len(words)):
                if words[t].startswith("##"):
                    found[row, t] |= after & last[t - 1]
                    found[row, t - 1] |= before & last[t]
    return found


def whole_words(chosen, pieces):
    return spread(chosen, pieces)


@pytest.mark.parametrize("reference", [word_targets, put_back, patch_loss, whole_words], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def in_place(original, seen, chosen):
    return original.masked_fill_(~chosen, -100)


def zero_marks(original, seen, chosen):
    return original * chosen


def plain_error(prediction, target, mask):
    return (prediction - target).square().mean(-1)[mask].mean()


def biased(prediction, target, mask):
    return (prediction - F.layer_norm(target, target.shape[-1:], eps=1e-6)).square().mean(-1)[mask].mean()


def everywhere(prediction, target, mask):
    return reconstruction_loss(prediction, target, torch.ones_like(mask))


def by_image(prediction, target, mask):
    return torch.stack([reconstruction_loss(*(x[b : b + 1] for x in (prediction, target, mask))) for b in range(len(mask))]).mean()


def without_epsilon(prediction, target, mask):
    aim = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    return (prediction - aim).square().mean(-1)[mask].mean()


def tokens_first(visible, token, restore):
    hidden = token.expand(len(visible), restore.shape[1] - visible.shape[1], -1)
    return torch.cat([hidden, visible], dim=1).gather(1, restore[..., None].expand(-1, -1, visible.shape[2]))


WRONG = [
    ("word_targets", lambda o, s, c: o, "in plain sight"),
    ("word_targets", lambda o, s, c: o.masked_fill(s != 4, -100), "[MASK] only"),
    ("word_targets", lambda o, s, c: o.masked_fill(s == o, -100), "only where something changed"),
    ("word_targets", lambda o, s, c: s.masked_fill(~c, -100), "cannot be [MASK]"),
    ("word_targets", zero_marks, "number of [PAD]"),
    ("word_targets", lambda o, s, c: o.masked_fill(c, -100), "turned round"),
    ("word_targets", in_place, "wrote into the input"),
    ("word_targets", lambda o, s, c: o[c], "should have shape"),
    ("put_back", lambda v, t, r: torch.cat([v, t.expand(len(v), r.shape[1] - v.shape[1], -1)], dim=1), "shuffled order"),
    ("put_back", lambda v, t, r: put_back(v, t, r.argsort(dim=1)), "already the inverse"),
    ("put_back", tokens_first, "in front"),
    ("put_back", lambda v, t, r: put_back(v, torch.zeros_like(t), r), "hold zeros"),
    ("put_back", lambda v, t, r: v, "should have shape"),
    ("put_back", lambda v, t, r: put_back(v, t, r).flip(1), "number restore[n]"),
    ("patch_loss", everywhere, "over all patches"),
    ("patch_loss", lambda p, t, m: reconstruction_loss(p, t, ~m), "turned round"),
    ("patch_loss", plain_error, "not normalised"),
    ("patch_loss", biased, "P - 1"),
    ("patch_loss", lambda p, t, m: patch_loss(p, t, m) * m.double().mean(), "divide by all patches"),
    ("patch_loss", by_image, "image by image"),
    ("patch_loss", lambda p, t, m: patch_loss(p, t, m) * p.shape[-1], "summed over the pixels"),
    ("patch_loss", without_epsilon, "one colour"),
    ("patch_loss", lambda p, t, m: patch_loss(p, t, m)[None], "should have shape"),
    ("whole_words", lambda c, p: c, "nothing was added"),
    ("whole_words", lambda c, p: spread(c, p, before=False), "only go on to the right"),
    ("whole_words", lambda c, p: spread(c, p, after=False), "only go back to the left"),
    ("whole_words", lambda c, p: spread(c, p, after=False, times=1), "one neighbour"),
    ("whole_words", lambda c, p: torch.ones_like(c), "everything is chosen"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
