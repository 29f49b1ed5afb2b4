"""What fusion returns, whatever its style."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FusedFeatures:
    """pooled (B, D), patches (B, N, D) and tokens (B, T, D) after they have met, mask (B, T) of the tokens.

    patch_levels: the patches after each layer of the fusion, for objectives that read them early.
    """

    pooled: Tensor
    patches: Tensor
    tokens: Tensor
    mask: Tensor
    patch_levels: tuple[Tensor, ...] = ()
