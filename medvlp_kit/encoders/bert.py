"""BERT, written out (Devlin et al. 2019): embeddings, post-norm blocks, and nothing else.

With the weights of a transformers BertModel (`load_transformers`) it gives the same numbers. With `causal=True` every
token sees only the tokens before it, which makes the same network a language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import KitError
from .layers import Block
from .text import TextEncoder


class BertEmbeddings(nn.Module):
    """Word, position and segment vectors, added and normalised: ids (B, T) -> (B, T, D)."""

    def __init__(self, vocabulary_size: int, width: int, *, length: int, segments: int = 1, dropout: float = 0.0):
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.positions = nn.Embedding(length, width)
        self.segments = nn.Embedding(segments, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.drop = nn.Dropout(dropout)

    def forward(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        segments = torch.zeros_like(ids) if segments is None else segments
        return self.drop(self.norm(self.words(ids) + self.positions(places) + self.segments(segments)))


class BertEncoder(TextEncoder):
    """ids (B, T), mask (B, T) bool -> TextFeatures, as `text.TextEncoder` says."""

    def __init__(
        self, *, vocabulary_size: int, width: int = 128, layers: int = 2, heads: int = 4, length: int = 64,
        pooling: str = "cls", dropout: float = 0.0, causal: bool = False, segments: int = 1,
    ):  # fmt: skip
        super().__init__(
            width=width, layers=layers, length=length, vocabulary_size=vocabulary_size, pooling=pooling, causal=causal
        )
        self.embeddings = BertEmbeddings(vocabulary_size, width, length=length, segments=segments, dropout=dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout=dropout, norm="post", epsilon=1e-12) for _ in range(layers)
        )
        self.apply(_initialise)

    def encode(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        states = [self.embeddings(ids)]  # (B, T, D)
        for block in self.blocks:
            states.append(block(states[-1], mask=mask, causal=self.causal))
        return states

    def parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return [self.embeddings], list(self.blocks)

    def load_transformers(self, state: dict[str, Tensor]) -> BertEncoder:
        """Take the weights of a transformers BertModel (its `state_dict()`); sizes must agree. Returns the encoder."""
        state = {name.removeprefix("bert."): value for name, value in state.items()}
        renamed = {}
        for name, value in state.items():
            new = _rename(name)
            if new is not None:
                renamed[new] = value
        try:
            self.load_state_dict(renamed)
        except RuntimeError as error:
            reason = " ".join(str(error).split()[:40])
            raise KitError(f"these weights do not fit this BERT, check its sizes: {reason}") from error
        return self


_PARTS = {
    "attention.self.query": "attention.query", "attention.self.key": "attention.key",
    "attention.self.value": "attention.value", "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm", "intermediate.dense": "feed_forward.0",
    "output.dense": "feed_forward.2", "output.LayerNorm": "feed_forward_norm",
}  # fmt: skip
_EMBEDDINGS = {
    "word_embeddings": "words", "position_embeddings": "positions", "token_type_embeddings": "segments",
    "LayerNorm": "norm",
}  # fmt: skip


def _rename(name: str) -> str | None:
    """transformers' name of a weight -> this file's; None for what an encoder does not need (pooler, heads)."""
    body, _, kind = name.rpartition(".")
    if body.startswith("embeddings."):
        part = _EMBEDDINGS.get(body.removeprefix("embeddings."))
        return None if part is None else f"embeddings.{part}.{kind}"
    if body.startswith("encoder.layer."):
        number, _, part = body.removeprefix("encoder.layer.").partition(".")
        if part in _PARTS:
            return f"blocks.{number}.{_PARTS[part]}.{kind}"
    return None


def _initialise(module: nn.Module) -> None:
    """Normal with deviation 0.02, biases zero, the padding vector zero, as BERT does."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
