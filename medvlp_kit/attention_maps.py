"""Attention maps and how to read them: by layer and part, rolled out over layers, by how widely a head looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import KitError, unknown

KINDS = ("self", "cross", "pool")


@dataclass(frozen=True)
class AttentionMap:
    """weights (B, heads, Q, K) of one layer in one forward pass; each row sums to one (zero if it may look nowhere).

    name: the layer's place in the model, for example "text_encoder.blocks.0.attention".
    kind: "self", "cross" (queries of one modality, keys of the other) or "pool" (a learned query).
    """

    name: str
    kind: str
    weights: Tensor = field(repr=False)


class AttentionMaps:
    """The maps of a captured forward pass, in the order in which layers ran."""

    def __init__(self, maps: Iterable[AttentionMap] = ()):
        self._maps = list(maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __iter__(self) -> Iterator[AttentionMap]:
        return iter(self._maps)

    def __getitem__(self, key: int | str) -> AttentionMap:
        """By number, or by name: the last map of that layer."""
        if isinstance(key, int):
            return self._maps[key]
        found = [m for m in self._maps if m.name == key]
        if not found:
            raise unknown("attention layer", key, self.names)
        return found[-1]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(m.name for m in self._maps))

    def part(self, prefix: str) -> AttentionMaps:
        """The maps of one part of the model, for example "image_encoder"."""
        return AttentionMaps(m for m in self._maps if m.name == prefix or m.name.startswith(prefix + "."))

    def kind(self, kind: str) -> AttentionMaps:
        """The "self", "cross" or "pool" maps."""
        if kind not in KINDS:
            raise unknown("kind of attention", kind, KINDS)
        return AttentionMaps(m for m in self._maps if m.kind == kind)

    def __repr__(self) -> str:
        rows = (f"  {m.name} ({m.kind}) {tuple(m.weights.shape)}" for m in self._maps)
        return "\n".join(["AttentionMaps:", *rows])


def rollout(maps: Iterable[AttentionMap | Tensor], *, residual: float = 0.5, heads: str = "mean") -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020): how much of each input token is in each output token.

    maps: the self-attention of consecutive layers, (B, heads, N, N) each, first layer first. Each layer becomes
    `(1 - residual) * A + residual * I`, for the skip connection, its rows are scaled to sum to one, and the layers are
    multiplied. `heads`: "mean", "max" or "min" over heads. Returns (B, N, N); rows are outputs, columns inputs, each
    row sums to one. In a ViT row 0 without column 0 is the map of the class token.
    """
    if heads not in ("mean", "max", "min"):
        raise unknown("head summary", heads, ("mean", "max", "min"))
    if not 0 <= residual < 1:
        raise KitError(f"residual={residual}: the share of the skip connection is at least 0 and below 1")
    result = None
    for item in maps:
        weights = _weights(item)
        if weights.shape[-1] != weights.shape[-2] or (result is not None and weights.shape[-1] != result.shape[-1]):
            raise KitError(
                f"rollout multiplies square maps of one size, this one is {tuple(weights.shape)}: "
                "choose one encoder's self-attention, maps.part('image_encoder').kind('self')"
            )
        layer = weights.mean(dim=1) if heads == "mean" else getattr(weights, f"a{heads}")(dim=1)  # (B, N, N)
        layer = (1 - residual) * layer + residual * torch.eye(layer.shape[-1], dtype=layer.dtype, device=layer.device)
        layer = layer / layer.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(layer.dtype).tiny)
        result = layer if result is None else layer @ result
    if result is None:
        raise KitError("rollout of no maps: capture a forward pass first")
    return result


def entropy(attention: AttentionMap | Tensor, *, query_mask: Tensor | None = None, normalise: bool = False) -> Tensor:
    """How widely each head looks: the mean over queries of -sum_k w log w, in nats, (B, heads).

    0 is one key, log K is all K keys alike. `query_mask` (B, Q) leaves padded queries out; `normalise` divides by
    log K, so heads of different lengths compare.
    """
    weights = _weights(attention)
    each = -torch.special.xlogy(weights, weights).sum(dim=-1)  # (B, heads, Q)
    if normalise:
        each = each / torch.log(torch.tensor(float(max(2, weights.shape[-1]))))
    if query_mask is None:
        return each.mean(dim=-1)
    real = query_mask[:, None, :].to(each.dtype)
    return (each * real).sum(dim=-1) / real.sum(dim=-1).clamp(min=1.0)


def _weights(item: AttentionMap | Tensor) -> Tensor:
    weights = item.weights if isinstance(item, AttentionMap) else item
    if weights.dim() != 4:
        raise KitError(f"an attention map is (B, heads, Q, K), this one has shape {tuple(weights.shape)}")
    return weights
