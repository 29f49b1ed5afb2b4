"""The checks of lesson 05: the reference passes, a stub is told so, and each misconception gets its own sentence."""

from __future__ import annotations

import pytest

from medvlp_kit.course import checks

lesson = checks.lesson_05


def stub(*arguments, **options):
    raise NotImplementedError


def token_count(height, width, patch):
    if height % patch or width % patch:
        raise ValueError("does not tile")
    return (height // patch) * (width // patch) + 1


def unpatchify(patches, *, patch, grid, channels):
    squares = patches.unflatten(2, (channels, patch, patch)).unflatten(1, grid)  # (B, h, w, C, p, p)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(len(patches), channels, grid[0] * patch, grid[1] * patch)


def block_cost(tokens, width):
    return 12 * tokens * width**2, 2 * tokens**2 * width


@pytest.mark.parametrize("reference", [token_count, unpatchify, block_cost], ids=lambda f: f.__name__)
def test_reference_and_stub(reference):
    check = getattr(lesson, reference.__name__)
    assert check(reference).passed, check(reference)
    assert "not written yet" in check(stub).message


def scrambled(patches, *, patch, grid, channels):
    return patches.reshape(len(patches), channels, grid[0] * patch, grid[1] * patch)


def by_columns(patches, *, patch, grid, channels):
    squares = patches.unflatten(2, (channels, patch, patch)).unflatten(1, grid[::-1])  # (B, w, h, C, p, p)
    return squares.permute(0, 3, 2, 4, 1, 5).reshape(len(patches), channels, grid[0] * patch, grid[1] * patch)


def mirrored(patches, *, patch, grid, channels):
    turned = patches.unflatten(2, (channels, patch, patch)).transpose(-1, -2).flatten(2)
    return unpatchify(turned, patch=patch, grid=grid, channels=channels)


def channels_last(patches, *, patch, grid, channels):
    squares = patches.unflatten(2, (patch, patch, channels)).movedim(-1, 2).flatten(2)
    return unpatchify(squares, patch=patch, grid=grid, channels=channels)


def side_by_side(patches, *, patch, grid, channels):
    return unpatchify(patches, patch=patch, grid=grid, channels=channels).transpose(-1, -2)


WRONG = [
    ("token_count", lambda h, w, p: h // p + 1, "one row of patches"),
    ("token_count", lambda h, w, p: (h // p) * (w // p), "class token"),
    ("token_count", lambda h, w, p: h * w + 1, "counted pixels"),
    ("token_count", lambda h, w, p: (h // p) ** 2 + 1, "height for both sides"),
    ("token_count", lambda h, w, p: (w // p) ** 2 + 1, "width for both sides"),
    ("token_count", lambda h, w, p: (h // p) * (w // p) + 1, "not a multiple"),
    ("token_count", lambda h, w, p: None, "returns None"),
    ("unpatchify", scrambled, "only reshaped"),
    ("unpatchify", by_columns, "column by column"),
    ("unpatchify", mirrored, "mirrored along its diagonal"),
    ("unpatchify", channels_last, "last axis"),
    ("unpatchify", side_by_side, "should have shape"),
    ("unpatchify", lambda *a, **o: unpatchify(*a, **o).flip(-1), "not where they were"),
    ("block_cost", lambda n, d: 12 * n * d**2, "two numbers"),
    ("block_cost", lambda n, d: (11 * n * d**2, 2 * n**2 * d), "one of four projections"),
    ("block_cost", lambda n, d: (4 * n * d**2, 2 * n**2 * d), "feed-forward part is missing"),
    ("block_cost", lambda n, d: (8 * n * d**2, 2 * n**2 * d), "8 x tokens x width²"),
    ("block_cost", lambda n, d: (12 * d**2, 2 * n**2 * d), "counted one token"),
    ("block_cost", lambda n, d: (24 * n * d**2, 4 * n**2 * d), "additions too"),
    ("block_cost", lambda n, d: (12 * n * d**2, n**2 * d), "scores only"),
    ("block_cost", lambda n, d: (12 * n * d**2, 2 * n * d**2), "swapped the powers"),
    ("block_cost", lambda n, d: (12 * n * d**2, 6 * n**2 * d), "heads share the width"),
    ("block_cost", lambda n, d: (12 * n * d**2, 2 * n * d), "compared with every token"),
    ("block_cost", lambda n, d: (12 * n * d**2, n**2 * d / 3), "as much"),
]


@pytest.mark.parametrize("name, wrong, message", WRONG, ids=[f"{name}: {message}" for name, _, message in WRONG])
def test_misconceptions(name, wrong, message):
    verdict = getattr(lesson, name)(wrong)
    assert not verdict.passed
    assert message in verdict.message
