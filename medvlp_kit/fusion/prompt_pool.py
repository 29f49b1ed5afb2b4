"""What stands in for a modality that is not there: an empty token, a learned one, or several chosen from a pool.

A model that fuses image and text meets studies with only one of them. PTUnifier (Chen et al., "Towards unifying
medical vision-and-language pre-training via soft prompts", ICCV 2023) keeps a pool of learned vectors a modality;
the modality that is present asks, the nearest vectors answer and take the place of the missing one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KitError


def choose_prompts(query: Tensor, pool: Tensor, *, count: int) -> Tensor:
    """The `count` vectors of the pool (K, D) nearest to each query (B, D) by cosine, nearest first: (B, count, D).

    s_bk = cos(query_b, pool_k); the result is pool[top-k of s_b]. The choice itself has no gradient, as in
    PTUnifier: only the chosen vectors learn, and they learn as tokens. PTUnifier compares by the plain inner product;
    the cosine keeps a vector that has grown long from being chosen for every query.
    """
    if not 0 < count <= len(pool):
        raise KitError(f"cannot choose {count} prompts from a pool of {len(pool)}: take a count of 1 to {len(pool)}")
    with torch.no_grad():
        scores = F.normalize(query.float(), dim=-1) @ F.normalize(pool.float(), dim=-1).T  # (B, K)
        chosen = scores.topk(count, dim=-1).indices  # (B, count)
    return pool[chosen]


class EmptyToken(nn.Module):
    """A token without content: query (B, D) -> zeros (B, 1, D). It has no weights."""

    def forward(self, query: Tensor) -> Tensor:
        return torch.zeros_like(query)[:, None]


class LearnedToken(nn.Module):
    """The same learned token whatever is asked: query (B, D) -> (B, 1, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)

    def forward(self, query: Tensor) -> Tensor:
        return self.token.expand(len(query), -1, -1).to(query.dtype)


class PromptPool(nn.Module):
    """`choose_prompts` over a learned pool (size, D): query (B, D) -> (B, count, D)."""

    def __init__(self, width: int, *, size: int = 64, count: int = 8):
        super().__init__()
        if not 0 < count <= size:
            raise KitError(f"cannot choose {count} prompts from a pool of {size}: take a count of 1 to {size}")
        self.count = count
        self.pool = nn.Parameter(torch.randn(size, width) * 0.02)

    def forward(self, query: Tensor) -> Tensor:
        return choose_prompts(query, self.pool, count=self.count).to(query.dtype)
