"""The checks of lesson 07: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import math

import pytest
import torch

from medvlp_kit.course import checks

lesson = checks.lesson_07


def stub(*arguments, **options):
    raise NotImplementedError


def writer_mask(image_length, text_mask):
    count, words = text_mask.shape
    length = image_length + words
    rows, columns = torch.arange(length)[:, None], torch.arange(length)[None]
    allowed = (columns < image_length) | ((rows >= image_length) & (columns <= rows))  # (L, L)
    real = torch.cat([torch.ones(count, image_length, dtype=torch.bool), text_mask], dim=1)
    return (allowed & real[:, None]) | (rows == columns)


def cross_attention(query, key, value, key_mask):
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    real = key_mask[:, None]  # (B, 1, K)
    return (scores.masked_fill(~real, -1e9).softmax(dim=-1) * real) @ value


def passes(images, texts, *, cross_encoder):
    return images, texts, images * texts if cross_encoder else 0


def rerank_depth(images, texts, *, seconds_per_pair, seconds):
    return min(images, int(seconds / seconds_per_pair / texts))


@pytest.mark.parametrize("reference", [writer_mask, cross_attention, passes, rerank_depth], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def plain_causal(image_length, text_mask):
    length = image_length + text_mask.shape[1]
    return torch.ones(len(text_mask), length, length).tril().bool()


def image_reads_text(image_length, text_mask):
    allowed = writer_mask(image_length, text_mask)
    allowed[:, :image_length, image_length:] = text_mask[:, None]
    return allowed


def strictly_before(image_length, text_mask):
    allowed = writer_mask(image_length, text_mask)
    allowed[:, image_length:, image_length:] &= ~torch.eye(text_mask.shape[1], dtype=torch.bool)
    return allowed


def blind_words(image_length, text_mask):
    allowed = writer_mask(image_length, text_mask)
    allowed[:, image_length:, :image_length] = False
    return allowed


def padding_is_seen(image_length, text_mask):
    return writer_mask(image_length, torch.ones_like(text_mask))


def empty_rows(image_length, text_mask):
    allowed = writer_mask(image_length, text_mask)
    allowed[:, image_length:] &= text_mask[:, :, None]
    return allowed


def scaled(query, key):
    return query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])


def far(scores, mask, low):
    return scores.masked_fill(~mask[:, None], low).softmax(dim=-1)


WRONG = [
    ("writer_mask", plain_causal, "plain causal"),
    ("writer_mask", image_reads_text, "bidirectional autoregressive"),
    ("writer_mask", strictly_before, "not themselves"),
    ("writer_mask", blind_words, "without looking"),
    ("writer_mask", padding_is_seen, "hide its column"),
    ("writer_mask", empty_rows, "divide by zero"),
    ("writer_mask", lambda n, m: writer_mask(n, m).transpose(1, 2), "rows and columns are swapped"),
    ("writer_mask", lambda n, m: ~writer_mask(n, m), "True and False are swapped"),
    ("writer_mask", lambda n, m: torch.ones(len(m), n + m.shape[1], n + m.shape[1]).bool(), "this is bidirectional"),
    ("writer_mask", lambda n, m: writer_mask(n, m).float(), "a mask is bool"),
    ("writer_mask", lambda n, m: writer_mask(n, m)[0], "should have shape"),
    ("cross_attention", lambda q, k, v, m: (q @ k.transpose(1, 2)).softmax(-1) @ v, "square root of d"),
    ("cross_attention", lambda q, k, v, m: (q @ k.transpose(1, 2) / 8).softmax(-1) @ v, "divided by d"),
    ("cross_attention", lambda q, k, v, m: scaled(q, k).softmax(1) @ v, "over the queries"),
    ("cross_attention", lambda q, k, v, m: cross_attention(q, k, k, m), "keys are mixed"),
    ("cross_attention", lambda q, k, v, m: scaled(q, k).softmax(-1) @ v, "key_mask is not used"),
    ("cross_attention", lambda q, k, v, m: far(scaled(q, k), m, 0.0) @ v, "exp(0) = 1"),
    ("cross_attention", lambda q, k, v, m: scaled(q, k).softmax(-1) * m[:, None] @ v, "no longer sum to one"),
    ("cross_attention", lambda q, k, v, m: far(scaled(q, k), m, -math.inf) @ v, "NaN"),
    ("cross_attention", lambda q, k, v, m: far(scaled(q, k), m, -1e9) @ v, "padding is averaged in"),
    ("cross_attention", lambda q, k, v, m: cross_attention(k, q, q, m[:, :4]), "should have shape"),
    ("passes", lambda i, t, cross_encoder: (i * t, i * t, i * t if cross_encoder else 0), "for every pair"),
    ("passes", lambda i, t, cross_encoder: (i, t, i), "only each image with one text"),
    ("passes", lambda i, t, cross_encoder: (i, t, i + t), "once for each exam"),
    ("passes", lambda i, t, cross_encoder: (i, t, i * i), "squared one number"),
    ("passes", lambda i, t, cross_encoder: (i, t, 2 * i * t), "in each direction"),
    ("passes", lambda i, t, cross_encoder: (i, t, i * t), "a dual encoder has no fusion"),
    ("passes", lambda i, t, cross_encoder: i * t, "three numbers"),
    ("rerank_depth", lambda i, t, seconds_per_pair, seconds: int(seconds / seconds_per_pair), "20 texts share it"),
    ("rerank_depth", lambda i, t, seconds_per_pair, seconds: seconds / seconds_per_pair / t, "whole number"),
    ("rerank_depth", lambda i, t, seconds_per_pair, seconds: math.ceil(seconds / seconds_per_pair / t), "rounded up"),
    ("rerank_depth", lambda i, t, seconds_per_pair, seconds: int(seconds / seconds_per_pair / t), "take the smaller"),
    ("rerank_depth", lambda i, t, seconds_per_pair, seconds: i, "full cross-encoder"),
    ("rerank_depth", lambda i, t, seconds_per_pair, seconds: int(seconds / seconds_per_pair / i), "texts that share"),
    (
        "rerank_depth",
        lambda i, t, seconds_per_pair, seconds: max(1, min(i, int(seconds / seconds_per_pair / t))),
        "leave none",
    ),
    ("rerank_depth", lambda i, t, seconds_per_pair, seconds: None, "returns None"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
