"""The checks of lesson 17: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvlp_kit.course import checks
from medvlp_kit.downstream.few_shot import tip_adapter
from medvlp_kit.downstream.fine_tune import Classifier, parameter_groups
from medvlp_kit.downstream.label_fractions import nested_subsets
from medvlp_kit.encoders.image import build_image_encoder

lesson = checks.lesson_17


def stub(*arguments, **options):
    raise NotImplementedError


def label_subsets(count, fractions, seed):
    order = np.random.default_rng(seed).permutation(count)
    return {fraction: order[: round(fraction * count)] for fraction in fractions}


def stage_rates(learning_rate, decay, stages):
    return [learning_rate * decay**depth for depth in reversed(range(stages))] + [learning_rate]


def adapter_logits(query, keys, values, prompts, alpha, beta):
    return prompts + alpha * torch.exp(-beta * (1 - query @ keys.T)) @ values


@pytest.mark.parametrize("reference", [label_subsets, stage_rates, adapter_logits], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def test_the_library_passes_too():
    assert lesson.label_subsets(lambda count, fractions, seed: nested_subsets(count, fractions=fractions, seed=seed)).passed
    cached = lambda q, k, v, z, a, b: torch.as_tensor(tip_adapter(q.numpy(), k.numpy(), v.numpy(), z.numpy(), alpha=a, beta=b))  # noqa: E731, E501
    assert lesson.adapter_logits(cached).passed
    model = Classifier(build_image_encoder("kit_resnet10", channels=1, image_size=32), 2)
    groups = parameter_groups(model, learning_rate=0.01, decay=0.5)
    rates = sorted({group["lr"] for group in groups})
    assert rates == pytest.approx(sorted(set(stage_rates(0.01, 0.5, 4))))  # stem, layer 1 to 3, head


def independent(count, fractions, seed):
    generator = np.random.default_rng(seed)
    return {fraction: generator.permutation(count)[: round(fraction * count)] for fraction in fractions}


def replaced(count, fractions, seed):
    order = np.random.default_rng(seed).integers(0, count, count)
    return {fraction: order[: round(fraction * count)] for fraction in fractions}


def unseeded(count, fractions, seed):
    return label_subsets(count, fractions, None)


def relative(count, fractions, seed):
    """The order depends on how many fractions are asked for."""
    return label_subsets(count, fractions, seed + len(fractions))


def near(q, k, b):
    return torch.exp(-b * (1 - q @ k.T))


WRONG = [
    ("label_subsets", independent, "not nested"),
    ("label_subsets", replaced, "twice"),
    ("label_subsets", lambda n, f, s: {x: np.arange(round(x * n)) for x in f}, "first studies"),
    ("label_subsets", unseeded, "same seed gave other studies"),
    ("label_subsets", lambda n, f, s: label_subsets(n, f, 7), "seed is not used"),
    ("label_subsets", relative, "depends on which other fractions"),
    ("label_subsets", lambda n, f, s: {x: rows[:-1] for x, rows in label_subsets(n, f, s).items()}, "has 3 studies, not 4"),
    ("label_subsets", lambda n, f, s: {x: rows + 1 for x, rows in label_subsets(n, f, s).items()}, "from 0 to 39"),
    ("label_subsets", lambda n, f, s: list(label_subsets(n, f, s).values()), "return a dictionary"),
    ("label_subsets", lambda n, f, s: label_subsets(n, f[:2], s), "keys should be the fractions"),
    ("stage_rates", lambda r, d, s: stage_rates(r, d, s)[::-1], "turned round"),
    ("stage_rates", lambda r, d, s: [r * d**k for k in range(s, -1, -1)], "slowed already"),
    ("stage_rates", lambda r, d, s: [r] * (s + 1), "one rate for all"),
    ("stage_rates", lambda r, d, s: stage_rates(r, 1 / d, s), "divided by the decay"),
    ("stage_rates", lambda r, d, s: [*[r * (1 - k / s) for k in range(s)][::-1], r], "by a factor"),
    ("stage_rates", lambda r, d, s: [*[r * d] * s, r], "multiplied in again"),
    ("stage_rates", lambda r, d, s: stage_rates(r, d, s)[:-1], "head is missing"),
    ("stage_rates", lambda r, d, s: None, "returns None"),
    ("stage_rates", lambda r, d, s: stage_rates(r, 0.5, s), "decay of 1"),
    ("adapter_logits", lambda q, k, v, z, a, b: a * near(q, k, b) @ v, "prompts are not used"),
    ("adapter_logits", lambda q, k, v, z, a, b: z, "shots are not used"),
    ("adapter_logits", lambda q, k, v, z, a, b: a * z + near(q, k, b) @ v, "alpha stands at the prompts"),
    ("adapter_logits", lambda q, k, v, z, a, b: z + near(q, k, b) @ v, "alpha is not used"),
    ("adapter_logits", lambda q, k, v, z, a, b: adapter_logits(q, k, v, z, a, -b), "sign in the exponent"),
    ("adapter_logits", lambda q, k, v, z, a, b: z + a * torch.exp(-b * (q @ k.T)) @ v, "instead of the distance"),
    ("adapter_logits", lambda q, k, v, z, a, b: z + a * torch.exp(b * (q @ k.T)) @ v, "too great by the same factor"),
    ("adapter_logits", lambda q, k, v, z, a, b: z + a * (b * (q @ k.T)).softmax(1) @ v, "softmax"),
    ("adapter_logits", lambda q, k, v, z, a, b: z + a * (q @ k.T) @ v, "sharpening"),
    ("adapter_logits", lambda q, k, v, z, a, b: adapter_logits(q, k, v / v.sum(0), z, a, b), "averaged the shots"),
    ("adapter_logits", lambda q, k, v, z, a, b: z + a * b * near(q, k, 1) @ v, "outside the exponential"),
    ("adapter_logits", lambda q, k, v, z, a, b: None, "is None"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
