"""What encoders return, whatever their family."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """pooled (B, D), patches (B, N, D) row by row from the top left, grid (h, w) with h * w = N.

    When only some patches were encoded, places (B, K) int64 says which cells of the grid the K patches are.
    """

    pooled: Tensor
    patches: Tensor
    grid: tuple[int, int]
    places: Tensor | None = None


@dataclass(frozen=True)
class TextFeatures:
    """pooled (B, D), tokens (B, T, D), mask (B, T) bool, True on real tokens."""

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
