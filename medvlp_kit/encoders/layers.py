"""Attention, written out once: every transformer of the kit (ViT, BERT, fusion) is made of these blocks.

Masks are boolean, True where a query may look. `attend` is the formula in plain operations and returns the weights;
the modules use PyTorch's fused kernel, which computes the same and keeps no weights, unless weights are asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KitError


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1).

    query (B, heads, Q, d), key and value (B, heads, K, d), mask broadcastable to (B, heads, Q, K), True = may look.
    Returns the output (B, heads, Q, d) and the weights (B, heads, Q, K). Rows of weights sum to one; a row that may
    look nowhere is all zero, and so is its output.
    """
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # (B, heads, Q, K)
    if mask is None:
        weights = scores.softmax(dim=-1)
    else:
        # The smallest finite number, not -inf: a row without any allowed key would give NaN in the backward pass.
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1) * mask
    return weights @ value, weights


def attention_mask(mask: Tensor | None, *, causal: bool, queries: int, keys: int, device=None) -> Tensor | None:
    """One boolean mask that broadcasts to (B, heads, Q, K) from what callers have at hand.

    mask: None, (B, K) real keys, (B, Q, K) who sees whom, or (B, heads or 1, Q, K). `causal` adds the lower triangle:
    query t sees keys up to t only.
    """
    if mask is not None:
        if mask.dtype != torch.bool:
            raise KitError(f"an attention mask is boolean (True = may look), not {mask.dtype}: pass mask.bool()")
        if mask.dim() == 2:
            mask = mask[:, None, None, :]
        elif mask.dim() == 3:
            mask = mask[:, None]
        if mask.dim() != 4 or mask.shape[-1] != keys or mask.shape[-2] not in (1, queries):
            raise KitError(
                f"attention mask of shape {tuple(mask.shape)} does not fit {queries} queries and {keys} keys: "
                "use (B, keys), (B, queries, keys) or (B, heads, queries, keys)"
            )
    if causal:
        triangle = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        mask = triangle if mask is None else mask & triangle
    return mask


class Attention(nn.Module):
    """Multi-head attention: queries from `x`, keys and values from `context`, or from `x` itself when it is None.

    forward(x (B, Q, width), context (B, K, context_width) or None, mask=..., causal=...) -> (B, Q, width).
    With return_weights=True it returns (output (B, Q, width), weights (B, heads, Q, K)).
    `mask` is boolean, True = may look: (B, K), (B, Q, K) or (B, heads or 1, Q, K).
    `attention.capture` records the weights of every layer of this class without any change to the caller.
    """

    def __init__(self, width: int, heads: int, *, context_width: int | None = None, dropout: float = 0.0):
        super().__init__()
        if heads < 1 or width % heads:
            raise KitError(f"width {width} cannot be split among {heads} heads: choose a divisor of {width}")
        self.width, self.heads, self.dropout = width, heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width or width, width)
        self.value = nn.Linear(context_width or width, width)
        self.output = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        context = x if context is None else context
        query = self._split(self.query(x))  # (B, heads, Q, d)
        key, value = self._split(self.key(context)), self._split(self.value(context))  # (B, heads, K, d)
        mask = attention_mask(mask, causal=causal, queries=x.shape[1], keys=context.shape[1], device=x.device)
        if return_weights:
            mixed, weights = attend(query, key, value, mask=mask)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, Q, width)
        output = self.output(mixed)
        return (output, weights) if return_weights else output

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class CrossAttention(Attention):
    """`Attention` that must be given a context: words that look at patches, or patches that look at words."""

    def forward(self, x: Tensor, context: Tensor | None = None, **options):
        if context is None:
            raise KitError("cross-attention needs a context (B, K, D): the tokens of the other modality")
        return super().forward(x, context, **options)


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between, applied to each token alone."""

    def __init__(self, width: int, *, ratio: float = 4.0, dropout: float = 0.0):
        hidden = int(width * ratio)
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), nn.Dropout(dropout))


class Block(nn.Module):
    """One transformer layer: self-attention, cross-attention if `cross`, feed-forward, each added to its input.

    `norm="pre"` normalises before each part (ViT, GPT-2); `norm="post"` after each sum (BERT).
    forward(x (B, Q, width), mask=..., causal=..., context (B, K, context_width), context_mask=...) -> (B, Q, width).
    With return_weights=True it returns (output, {"self": (B, heads, Q, Q), "cross": (B, heads, Q, K)}), the second
    entry only when the block has cross-attention. Masks are as in `Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        cross: bool = False,
        context_width: int | None = None,
        ratio: float = 4.0,
        dropout: float = 0.0,
        norm: str = "pre",
        epsilon: float = 1e-6,
    ):
        super().__init__()
        if norm not in ("pre", "post"):
            raise KitError(f"norm={norm!r}: a block normalises 'pre' (ViT) or 'post' (BERT)")
        self.pre = norm == "pre"
        self.attention = Attention(width, heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        if cross:
            self.cross_attention = CrossAttention(width, heads, context_width=context_width, dropout=dropout)
            self.cross_norm = nn.LayerNorm(width, eps=epsilon)
        else:
            self.cross_attention = None
        self.feed_forward = FeedForward(width, ratio=ratio, dropout=dropout)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        weights: dict[str, Tensor] = {}

        def look(name: str, layer: Attention, **options):
            def part(y: Tensor) -> Tensor:
                result = layer(y, return_weights=return_weights, **options)
                if return_weights:
                    result, weights[name] = result
                return self.drop(result)

            return part

        x = self._add(x, look("self", self.attention, mask=mask, causal=causal), self.attention_norm)
        if self.cross_attention is not None:
            part = look("cross", self.cross_attention, context=context, mask=context_mask)
            x = self._add(x, part, self.cross_norm)
        x = self._add(x, self.feed_forward, self.feed_forward_norm)
        return (x, weights) if return_weights else x

    def _add(self, x: Tensor, part, norm: nn.LayerNorm) -> Tensor:
        return x + part(norm(x)) if self.pre else norm(x + part(x))


class AttentionPool(nn.Module):
    """A learned query looks at all tokens: forward(tokens (B, N, width), mask (B, N) or None) -> (B, width)."""

    def __init__(self, width: int, *, heads: int | None = None):
        super().__init__()
        heads = heads or next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = CrossAttention(width, heads)

    def forward(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)
        return self.attention(query, tokens, mask=mask)[:, 0]
